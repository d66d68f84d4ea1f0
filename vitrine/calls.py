"""One call to a server: the shared channel, the deadline, the retries, and errors as exceptions."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

import grpc
from google.protobuf import unknown_fields
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError


class VitrineError(Exception):
    """A call failed; `code` is gRPC's, `message` the server's."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


class InvalidArgumentError(VitrineError, ValueError):
    """The request is wrong; `fields` holds what would be right, by the field's name."""

    def __init__(self, message: str, fields: dict[str, str]) -> None:
        super().__init__(grpc.StatusCode.INVALID_ARGUMENT, message)
        self.fields = fields


class NotFoundError(VitrineError, LookupError):
    """What was asked for does not exist."""


class UnavailableError(VitrineError):
    """No server, or one that cannot answer now; the call may succeed later."""


class DeadlineExceededError(VitrineError, TimeoutError):
    """No answer within `timeout_s`."""


class ResourceExhaustedError(VitrineError):
    """The message is larger than the server takes, or the server has too many calls at once."""


_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Client:
    """A share in the channel to one target, and the call that every method makes."""

    def __init__(self, target: str, *, timeout_s: float = 1.0, wait_for_ready: bool = False) -> None:
        """
        target:         "host:port", or any gRPC name; several addresses of one name take turns.
        timeout_s:      deadline of a call, retries included, where the call gives none.
        wait_for_ready: wait for a server within the deadline, where there is none yet, rather than fail.
        """
        self._timeout_s = timeout_s
        self._wait_for_ready = wait_for_ready
        self._target: str | None = target
        self._channel = _Channels.take(target)

    def close(self) -> None:
        """Gives the share in the channel back; the last one closes it."""
        if self._target is not None:
            target, self._target = self._target, None
            _Channels.give_back(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        timeout_s: float | None,
    ) -> _Response:
        if self._target is None:
            raise ValueError("the client is closed")
        timeout = self._timeout_s if timeout_s is None else timeout_s
        try:
            return method(request, timeout=timeout, wait_for_ready=self._wait_for_ready)
        except grpc.RpcError as error:
            raise _error(error) from error


class _Channels:
    """One channel a target in this process, counted by its users."""

    _lock = threading.Lock()
    _open: ClassVar[dict[str, tuple[grpc.Channel, int]]] = {}

    _service_config = json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
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
    _options: ClassVar[list[tuple[str, Any]]] = [
        ("grpc.service_config", _service_config),
        ("grpc.max_receive_message_length", 64 * 2**20),
        # A server that restarts is found again within the retries' second, not after grpc's backoff of minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt to connect may take
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]

    @classmethod
    def take(cls, target: str) -> grpc.Channel:
        with cls._lock:
            channel, users = cls._open.get(target) or (grpc.insecure_channel(target, cls._options), 0)
            cls._open[target] = channel, users + 1
            return channel

    @classmethod
    def give_back(cls, target: str) -> None:
        with cls._lock:
            channel, users = cls._open.pop(target)
            if users > 1:
                cls._open[target] = channel, users - 1
            else:
                channel.close()


_CLASSES: dict[grpc.StatusCode, type[VitrineError]] = {
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
}


def _error(error: Any) -> VitrineError:
    """The exception for a failed call; `error` is grpc's, a Call as well."""
    code, message = error.code(), error.details() or ""
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidArgumentError(message, _violations(error.trailing_metadata() or ()) or _named_in(message))
    return _CLASSES.get(code, VitrineError)(code, message)


def _violations(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Field -> what would be right, from the google.rpc.BadRequest among a status's details.

    Read as unknown fields, because the generated classes of google.rpc are not among the wheel's dependencies:
    Status.details = 3; Any.type_url = 1, value = 2; BadRequest.field_violations = 1; field = 1, description = 2.
    """
    found: dict[str, str] = {}
    for key, value in metadata:
        if key != "grpc-status-details-bin" or not isinstance(value, bytes):
            continue
        try:
            for detail in _parts(value, 3):
                if b"".join(_parts(detail, 1)).endswith(b"/google.rpc.BadRequest"):
                    for violation in _parts(b"".join(_parts(detail, 2)), 1):
                        field, description = (b"".join(_parts(violation, number)).decode() for number in (1, 2))
                        found[field] = description
        except (DecodeError, UnicodeDecodeError):
            return {}  # a proxy's details, not ours; the message still says what is wrong
    return found


def _parts(message: bytes, number: int) -> list[bytes]:
    """Values of the length-delimited field `number` of a serialised message."""
    fields = unknown_fields.UnknownFieldSet(Empty.FromString(message))
    return [
        f.data for f in (fields[i] for i in range(len(fields))) if f.field_number == number and f.wire_type == 2
    ]


def _named_in(message: str) -> dict[str, str]:
    """The field that a message of the form "field: what would be right" names, where details did not come along."""
    named = re.match(r"([a-z][\w.\[\]]*): (.+)", message, re.DOTALL)
    return {named[1]: named[2]} if named else {}
