"""The channels to servers: one a target and security, shared by its clients, over plaintext, TLS or mTLS."""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import grpc

from vitrine import trace_context

# Metadata of a call, as grpc takes it.
Metadata = tuple[tuple[str, str], ...]

_LOOK_EVERY_S = 5.0  # how often files are looked at for a change; a rotation overlaps for far longer


@dataclass(frozen=True, slots=True)
class Security:
    """How a client proves who it is, and whom it trusts. Files are PEM and are read again when they change.

    ca:         CA that signed the servers' certificates; given, the calls go over TLS.
    cert, key:  the client's own certificate and its key, for servers that ask for one (mTLS).
    token:      bearer token, as `vitrine callers new` printed it
    token_file: file that holds the token, in place of `token`

    A token without `ca` crosses the network readable: for loopback, or where a mesh encrypts.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    token: str = field(default="", repr=False)
    token_file: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key: give both, or neither")
        if self.cert is not None and self.ca is None:
            raise ValueError("ca: a client certificate is for TLS, which needs the servers' CA")
        if self.token and self.token_file is not None:
            raise ValueError("token and token_file: give one of them")
        _check_token(self.token, "token")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self | None:
        """From VITRINE_CLIENT_CA, _CERT, _KEY and _TOKEN_FILE; None, plaintext and no token, where none is set."""
        variables = os.environ if environment is None else environment
        given = {name: variables.get(f"VITRINE_CLIENT_{name.upper()}") or None for name in _FROM_ENVIRONMENT}
        if not any(given.values()):
            return None
        try:
            return cls(**given)  # type: ignore[arg-type]  # names of str | None fields alone
        except ValueError as error:
            raise ValueError(f"VITRINE_CLIENT_CA, _CERT, _KEY, _TOKEN_FILE: {error}") from error


_FROM_ENVIRONMENT = ("ca", "cert", "key", "token_file")


# One channel a target and security in this process, counted by its users.
_lock = threading.Lock()
_open: dict[tuple[str, Security | None], tuple[Channel, int]] = {}


def take(target: str, security: Security | None) -> Channel:
    """A share in the channel to `target`. Raises ValueError naming the file of `security` that cannot be used."""
    with _lock:
        channel, users = _open.get((target, security)) or (Channel(target, security), 0)
        _open[target, security] = channel, users + 1
        return channel


def give_back(target: str, security: Security | None) -> None:
    """Returns a share; the last one closes the channel."""
    with _lock:
        channel, users = _open.pop((target, security))
        if users > 1:
            _open[target, security] = channel, users - 1
        else:
            channel.close()


class Channel:
    """What a stub is made on; it opens a new connection with the new files once a certificate has been replaced."""

    _service_config = json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            # A server that says NOT_SERVING, as one that drains does, gets no more calls; the others take them.
            "healthCheckConfig": {"serviceName": ""},
            "methodConfig": [
                {
                    "name": [{}],
                    "retryPolicy": {
                        "maxAttempts": 4,
                        "initialBackoff": "0.1s",
                        "maxBackoff": "1s",
                        "backoffMultiplier": 2.5,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ],
            # Stops retrying where more than about one call in ten fails, so that retries do not fell a weak server.
            "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.1},
        }
    )
    _common: ClassVar[list[tuple[str, Any]]] = [
        ("grpc.service_config", _service_config),
        ("grpc.max_receive_message_length", 64 * 2**20),
        # A server that restarts is found again within the retries' second, not after grpc's backoff of minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt to connect may take
        # A pod that replaces another has another address; grpc would ask DNS again after 30 s at the earliest.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]

    def __init__(
        self,
        target: str,
        security: Security | None,
        *,
        shared: bool = True,
        retries: bool = True,
        certified_as: str = "",
    ) -> None:
        """
        shared:       take part in grpc's pool, where all channels of a process to one server use one connection.
        retries:      False for who tries another server itself
        certified_as: name that the server's certificate has to have, where the target is an address behind it
        """
        self._target = target
        self._options = [
            *self._common,
            ("grpc.use_local_subchannel_pool", int(not shared)),
            ("grpc.enable_retries", int(retries)),
        ]
        if certified_as:
            self._options.append(("grpc.ssl_target_name_override", certified_as))
        self._security = security or Security()
        self._files = [path for path in (self._security.ca, self._security.cert, self._security.key) if path]
        self._next_look = time.monotonic() + _LOOK_EVERY_S
        self._look_lock = threading.Lock()
        self._seen = self._stamps()
        self._token = self._read_token()
        self._retired: grpc.Channel | None = None
        self.current = self._open()
        self.metadata = self._metadata()

    def unary_unary(self, method: str, *serializers: Any, **named: Any) -> Callable[..., Any]:
        """As grpc.Channel's."""
        made: tuple[grpc.Channel | None, Any] = (None, None)

        def begin(how: str, request: Any, timeout: float | None, wait_for_ready: bool | None) -> Any:
            nonlocal made
            if self._security_changes and time.monotonic() >= self._next_look:
                self._look()
            if made[0] is not (current := self.current):
                made = current, current.unary_unary(method, *serializers, **named)
            metadata = (*(self.metadata or ()), *trace_context.metadata()) or None
            start = getattr(made[1], how)
            return start(request, timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready)

        def call(request: Any, timeout: float | None = None, wait_for_ready: bool | None = None) -> Any:
            return begin("__call__", request, timeout, wait_for_ready)

        def future(request: Any, timeout: float | None = None, wait_for_ready: bool | None = None) -> Any:
            return begin("future", request, timeout, wait_for_ready)

        call.future = future  # type: ignore[attr-defined]  # a function with an attribute, as grpc's object has it
        return call

    @property
    def _security_changes(self) -> bool:
        return bool(self._files or self._security.token_file)

    def close(self) -> None:
        """Ends every call on it."""
        for channel in (self.current, self._retired):
            if channel is not None:
                channel.close()

    def _look(self) -> None:
        """Takes changed files up; keeps what it has where they cannot be used, half written as they may be."""
        if not self._look_lock.acquire(blocking=False):
            return  # another thread is at it
        try:
            self._next_look = time.monotonic() + _LOOK_EVERY_S
            seen = self._stamps()
            if seen == self._seen:
                return
            certificates_changed = seen[1:] != self._seen[1:]
            self._token = self._read_token()
            self.metadata = self._metadata()
            if certificates_changed:
                fresh = self._open()
                if self._retired is not None:
                    self._retired.close()
                self._retired, self.current = self.current, fresh  # calls in flight end where they began
            self._seen = seen
        except ValueError:
            pass  # asked again at the next look; a call says UNAVAILABLE or UNAUTHENTICATED where it matters
        finally:
            self._look_lock.release()

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in (self._security.token_file, *self._files):
            try:
                status = os.stat(path) if path else None
            except OSError:
                status = None
            stamps.append(status and (status.st_mtime_ns, status.st_size, status.st_ino))
        return stamps

    def _open(self) -> grpc.Channel:
        security = self._security
        if security.ca is None:
            return grpc.insecure_channel(self._target, self._options)
        ca = _read("ca", security.ca)
        cert = _read("cert", security.cert) if security.cert else None
        key = _read("key", security.key) if security.key else None
        _check_pems(security)
        return grpc.secure_channel(self._target, grpc.ssl_channel_credentials(ca, key, cert), self._options)

    def _read_token(self) -> str:
        path = self._security.token_file
        if path is None:
            return self._security.token
        token = _read("token_file", path).decode("ascii", "replace").strip()
        _check_token(token, f"token_file: {path}")
        if not token:
            raise ValueError(f"token_file: {path} is empty")
        return token

    def _metadata(self) -> Metadata | None:
        return (("authorization", f"Bearer {self._token}"),) if self._token else None


def _read(name: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{name}: {path} cannot be read ({error.strerror})") from error


def _check_pems(security: Security) -> None:
    """Raises ValueError where a file is no certificate, or the key another's; grpc would only say UNAVAILABLE."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(security.ca)
    except OSError as error:
        raise ValueError(f"ca: {security.ca} holds no PEM certificate") from error
    if security.cert is not None:
        try:
            # Without a password here OpenSSL would ask for one at the terminal.
            context.load_cert_chain(security.cert, security.key, password="")
        except OSError as error:
            raise ValueError(
                f"cert, key: {security.cert} and {security.key} are not a pair of PEM files without a password"
            ) from error


def _check_token(token: str, name: str) -> None:
    if not (token.isascii() and (token.isprintable() and " " not in token)):
        raise ValueError(f"{name}: should be printable ASCII without spaces")  # never the token itself
