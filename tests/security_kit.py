"""Certificates for tests: an authority, and what it signs for servers and callers, run out too."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """Paths of a certificate and its key, PEM."""

    cert: Path
    key: Path

    def replace_by(self, other: Pair) -> None:
        """As a rotation does it: each file at once, one after the other."""
        for old, new in ((self.cert, other.cert), (self.key, other.key)):
            part = old.with_suffix(".part")
            part.write_bytes(new.read_bytes())
            part.replace(old)

    def both(self, path: Path) -> Path:
        """Key and certificate in one file, as Kafka's PEM key stores want them."""
        path.write_bytes(self.key.read_bytes() + self.cert.read_bytes())
        return path


class Authority:
    """A CA whose files lie in `folder`; `cert` is its own certificate."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._name = _named(f"test {name}")
        self._key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        made = (
            _about(self._name, self._name, self._key.public_key(), now - DAY, now + 30 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.cert = folder / f"{name}.pem"
        self.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str = "server") -> Pair:
        """For 127.0.0.1 and localhost; brokers call each other with theirs."""
        return self._issue(name, DAY, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)

    def client(self, name: str = "client") -> Pair:
        """For a caller."""
        return self._issue(name, DAY, ExtendedKeyUsageOID.CLIENT_AUTH)

    def expired_client(self, name: str = "expired") -> Pair:
        """A caller's, that ran out an hour ago."""
        return self._issue(name, -DAY / 24, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _issue(self, name: str, lasts: datetime.timedelta, *uses: x509.ObjectIdentifier) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            _about(_named(name), self._name, key.public_key(), now - DAY, now + lasts)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _about(subject, issuer, public_key, begin, end) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
