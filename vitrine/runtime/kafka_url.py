"""Where a Kafka cluster is and how it is spoken to, from a URL: plaintext or TLS, nobody or a SASL user.

    kafka://host:port[,host:port]              plaintext
    kafkas://host:port[,host:port]             TLS
    memory://host:port                         the in-memory broker of the embedded stack

The first two take `user:password@` before the hosts, percent-encoded, and after them

    ?sasl=PLAIN | SCRAM-SHA-256 | SCRAM-SHA-512     with a user, how it is proved
    &password_file=PATH                             in place of the password
    &ca=PATH                                        kafkas: the CA of the brokers' certificates; else the system's
    &cert=PATH&key=PATH                             kafkas: the client's own certificate

Passwords stand in no `repr` and no error.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from vitrine.errors import FieldError
from vitrine.runtime.redact import redact_url

# Back to a restarted broker within a second; kafka-python's default waits up to thirty.
_RECONNECT_MAX_MS = 1_000
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_FILES = ("ca", "cert", "key")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """Where a cluster is; `kwargs()` is what every kafka-python client is given, `librdkafka()` what others are.

    bootstrap: "host:port" of one broker or more
    memory:    the in-memory broker of the embedded stack
    tls:       whether the connection is encrypted; ca, cert and key are paths of PEM files, or empty
    mechanism: SASL's, or empty where nobody is asked who they are
    """

    bootstrap: tuple[str, ...]
    memory: bool
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    mechanism: str = ""
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def protocol(self) -> str:
        """Kafka's name of it: SASL_SSL and the like."""
        return ("SASL_" if self.mechanism else "") + ("SSL" if self.tls else "PLAINTEXT")

    def kwargs(self) -> dict[str, Any]:
        """Settings of a kafka-python client."""
        settings: dict[str, Any] = {
            "bootstrap_servers": list(self.bootstrap),
            "reconnect_backoff_max_ms": _RECONNECT_MAX_MS,
            "metrics_enabled": False,
        }
        if self.memory:
            settings["api_version"] = (2, 3)
        if self.tls or self.mechanism:
            settings["security_protocol"] = self.protocol
        if self.tls:
            settings |= {
                "ssl_cafile": self.ca or None,
                "ssl_certfile": self.cert or None,
                "ssl_keyfile": self.key or None,
            }
        if self.mechanism:
            settings |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.user,
                "sasl_plain_password": self.password,
            }
        return settings

    def librdkafka(self) -> dict[str, str]:
        """The same for a client on librdkafka (confluent-kafka)."""
        settings = {"bootstrap.servers": ",".join(self.bootstrap), "security.protocol": self.protocol}
        for name, value in (
            ("ssl.ca.location", self.ca),
            ("ssl.certificate.location", self.cert),
            ("ssl.key.location", self.key),
            ("sasl.mechanism", self.mechanism),
            ("sasl.username", self.user),
            ("sasl.password", self.password),
        ):
            if value:
                settings[name] = value
        return settings


def parse_url(url: str) -> ClientConfig:
    """Raises FieldError("kafka_url") naming the part or parameter that is wrong, and what would be right."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("kafka", "kafkas", "memory"):
        raise FieldError(
            "kafka_url",
            f"{redact_url(url)!r} is not a Kafka URL; write kafka://host:port[,host:port], or kafkas:// for TLS",
        )
    rest, _, query = rest.partition("?")
    if "@" in query:  # then what stands here as a host or a parameter may be a piece of a password
        raise _wrong(url, "percent-encode what is special in user and password, and any @ after the ?")
    login, at, hosts = rest.rpartition("@")
    servers = tuple(server.strip() for server in hosts.rstrip("/").split(","))
    for server in servers:
        host, colon, port = server.rpartition(":")
        if not host or not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            # Of a URL with a login, what looks like a host may be a piece of a password that was not encoded.
            raise _wrong(url, f"{server!r} is not host:port" if not at else "has hosts that are not host:port")
    given = _parameters(url, query)
    if scheme == "memory":
        if at or given:
            raise _wrong(url, "takes neither user nor parameters: the in-memory broker asks nobody who they are")
        return ClientConfig(servers, memory=True)
    tls = scheme == "kafkas"
    for name in _FILES:
        if name in given and not tls:
            raise _wrong(url, f"{name}: is for TLS; write kafkas://")
    user, password = _login(url, login, bool(at), given)
    config = ClientConfig(
        servers,
        memory=False,
        tls=tls,
        mechanism=given.get("sasl", ""),
        user=user,
        password=password,
        **{name: given.get(name, "") for name in _FILES},
    )
    _check_files(url, config)
    return config


def _parameters(url: str, query: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in ("sasl", "password_file", *_FILES):
            raise _wrong(url, f"{name}: unknown; parameters are sasl, password_file, ca, cert and key")
        if name in given:
            raise _wrong(url, f"{name}: given twice")
        if not value:
            raise _wrong(url, f"{name}: is empty")
        given[name] = value
    if "sasl" in given and given["sasl"] not in MECHANISMS:
        raise _wrong(url, f"sasl: should be one of {', '.join(MECHANISMS)}, not {given['sasl']!r}")
    return given


def _login(url: str, login: str, present: bool, given: Mapping[str, str]) -> tuple[str, str]:
    """User and password."""
    user, _, password = (unquote(part) for part in login.partition(":"))
    if present and "sasl" not in given:
        raise _wrong(url, f"sasl: say how the user is proved: {', '.join(MECHANISMS)}")
    if "sasl" in given and not user:
        raise _wrong(url, "sasl: needs a user; write user:password@ before the hosts")
    path = given.get("password_file")
    if path is not None:
        if not user or password:
            raise _wrong(url, "password_file: goes with a user, and in place of the password")
        password = _read(url, "password_file", path).decode("utf-8", "replace").strip("\r\n")
    if user and not password:
        raise _wrong(url, "the user has no password; write user:password@, or password_file=PATH")
    return user, password


def _check_files(url: str, config: ClientConfig) -> None:
    """Raises FieldError where a file cannot be used; a client would only say that the broker does not answer."""
    if bool(config.cert) != bool(config.key):
        raise _wrong(url, "cert, key: give both, or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if config.ca:
        try:
            context.load_verify_locations(cadata=_read(url, "ca", config.ca).decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise _wrong(url, f"ca: {config.ca} holds no PEM certificate") from error
    if config.cert:
        _read(url, "cert", config.cert)
        _read(url, "key", config.key)
        try:
            context.load_cert_chain(config.cert, config.key, password="")
        except ssl.SSLError as error:
            raise _wrong(url, f"cert, key: {config.cert} and {config.key} are not a pair of PEM files") from error


def _read(url: str, name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _wrong(url, f"{name}: {path} cannot be read ({error.strerror})") from error


def _wrong(url: str, message: str) -> FieldError:
    return FieldError("kafka_url", f"{redact_url(url)!r}: {message}")
