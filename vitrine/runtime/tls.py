"""TLS of a process's ports: certificate, key and callers' CA, taken up anew when the files are replaced."""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from vitrine.runtime.files import FileError, Reloaded, read_all

if TYPE_CHECKING:
    from vitrine.runtime.settings import Settings


_HANDSHAKE_GRACE_S = 0.2


class TlsError(FileError):
    """`field` is the setting at fault."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class _Loaded:
    grpc: grpc.ServerCertificateConfiguration
    context: ssl.SSLContext


class ServerTls:
    """Certificates for every port of a process: `grpc_credentials` for gRPC, `context` for HTTP.

    New connections get the files' newest usable version; those that are open keep what they began with.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None, *, every_s: float = 1.0) -> None:
        """client_ca: callers must show a certificate that this CA signed. Raises TlsError."""
        check(cert, key, client_ca)
        self._client_ca = client_ca
        paths = [cert, key] if client_ca is None else [cert, key, client_ca]
        self._files = Reloaded("certificates", paths, lambda found: _load(paths, found), every_s=every_s)

    @property
    def refusal(self) -> str | None:
        """Why the files as they are now cannot be used, while older ones are; a degraded check."""
        return self._files.refusal

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For `add_secure_port`, once.

        grpc asks `newest` at every handshake under a lock, and drops its old handshaker factory when it is given
        certificates; but a handshake that has asked takes that factory without the lock, and a factory dropped in
        between ends the process (grpcio 1.85.1, SIGSEGV). So unchanged ones are not given again, and changed ones
        only after a wait in which, the lock being held, every handshake that has asked gets its factory.
        """
        shown = self._files.current

        def newest() -> grpc.ServerCertificateConfiguration | None:
            nonlocal shown
            if shown is self._files.current:
                return None
            time.sleep(_HANDSHAKE_GRACE_S)
            shown = self._files.current
            return shown.grpc

        return grpc.dynamic_ssl_server_credentials(
            shown.grpc,
            newest,  # type: ignore[arg-type]  # None is "unchanged", as grpc documents
            require_client_authentication=self._client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """For a server socket. Every handshake is handed on to the context of the files in use.

        A context that is in use is not loaded into again: OpenSSL allows no change while another thread reads it.
        """

        def newest(connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
            connection.context = self._files.current.context

        first = self._files.current.context
        first.sni_callback = newest  # OpenSSL asks it in every handshake, with or without a server name
        return first

    def close(self) -> None:
        """Looks at the files no more."""
        self._files.close()


def of_settings(settings: Settings) -> ServerTls | None:
    """The process's own, where it has certificates; the settings have checked them."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return ServerTls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def check(cert: Path | None, key: Path | None, client_ca: Path | None) -> None:
    """Raises TlsError where these settings cannot be used together, or a file of them not at all."""
    if cert is None and key is None and client_ca is None:
        return
    if cert is None:
        raise TlsError("tls_cert", "is required with a key or a callers' CA: the server's certificate")
    if key is None:
        raise TlsError("tls_key", f"is required with the certificate {cert}: its private key")
    paths = [cert, key] if client_ca is None else [cert, key, client_ca]
    found: list[bytes] = []
    for path, field in zip(paths, _FIELDS, strict=False):
        try:
            found += read_all([path])
        except FileError as error:
            raise TlsError(field, str(error)) from error
    _load(paths, found)


_FIELDS = ("tls_cert", "tls_key", "tls_client_ca")


def _load(paths: Sequence[Path], found: Sequence[bytes]) -> _Loaded:
    """paths, found: certificate, key and perhaps callers' CA."""
    _add_certificates(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), found[0], "tls_cert", paths[0])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # No session is resumed: that would let a caller in whose certificate has run out since.
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0
    try:
        context.load_cert_chain(paths[0], paths[1], password="")  # else OpenSSL would ask at the terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError("tls_key", f"{paths[1]} is not the key of the certificate {paths[0]}") from error
        raise TlsError("tls_key", f"{paths[1]} holds no PEM private key without a password") from error
    if len(paths) > 2:
        _add_certificates(context, found[2], "tls_client_ca", paths[2])
        context.verify_mode = ssl.CERT_REQUIRED
    if read_all(paths) != list(found):  # the context read the files once more
        raise TlsError("tls_cert", f"{paths[0]} or a file beside it changed while being read")
    client_ca = found[2] if len(paths) > 2 else None
    pair = [(found[1], found[0])]
    return _Loaded(grpc.ssl_server_certificate_configuration(pair, root_certificates=client_ca), context)


def _add_certificates(context: ssl.SSLContext, pem: bytes, field: str, path: Path) -> None:
    try:
        context.load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(field, f"{path} holds no PEM certificate") from error
