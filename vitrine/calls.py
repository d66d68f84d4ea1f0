"""One call to a server: the shared channel, the deadline, the retries, and errors as exceptions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import grpc
from google.protobuf import unknown_fields
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError

from vitrine import channels
from vitrine.channels import Security


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


class UnauthenticatedError(VitrineError):
    """The server knows no caller by this token, or was shown none."""


class PermissionDeniedError(VitrineError):
    """The caller is known, and may not call this method."""


class UnavailableError(VitrineError):
    """No server, or one that cannot answer now; the call may succeed later."""


class DeadlineExceededError(VitrineError, TimeoutError):
    """No answer within `timeout_s`."""


class ResourceExhaustedError(VitrineError):
    """The message is larger than the server takes, it has too many calls at once, or this caller makes too many.

    In the last case `retry_after_s` is the time until it may make one again; else it is 0.
    """

    retry_after_s = 0.0


_Response = TypeVar("_Response")


class Client:
    """A share in the channel to one target, and the call that every method makes."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 1.0,
        wait_for_ready: bool = False,
        security: Security | None = None,
        own_connection: bool = False,
    ) -> None:
        """
        target:         "host:port", or any gRPC name; several addresses of one name take turns.
        timeout_s:      deadline of a call, retries included, where the call gives none.
        wait_for_ready: wait for a server within the deadline, where there is none yet, rather than fail.
        security:       TLS, the client's certificate and its token; None is plaintext without a token.
        own_connection: share no channel with other clients: for load generators, whose clients stand for many.

        Raises ValueError naming the file of `security` that cannot be used.
        """
        self._timeout_s = timeout_s
        self._wait_for_ready = wait_for_ready
        self._target: str | None = target
        self._security = security
        self._own = channels.Channel(target, security, shared=False) if own_connection else None
        channel = self._own or channels.take(target, security)
        self._channel = cast(grpc.Channel, channel)  # as far as stubs need one

    def close(self) -> None:
        """Gives the share in the channel back; the last one closes it."""
        if self._target is not None:
            target, self._target = self._target, None
            if self._own is not None:
                self._own.close()
            else:
                channels.give_back(target, self._security)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self,
        method: Callable[..., _Response],
        request: Any,
        timeout_s: float | None,
    ) -> _Response:
        if self._target is None:
            raise ValueError("the client is closed")
        timeout = self._timeout_s if timeout_s is None else timeout_s
        try:
            return method(request, timeout=timeout, wait_for_ready=self._wait_for_ready)
        except grpc.RpcError as error:
            raise _error(error) from error


_CLASSES: dict[grpc.StatusCode, type[VitrineError]] = {
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
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
    made = _CLASSES.get(code, VitrineError)(code, message)
    if isinstance(made, ResourceExhaustedError):
        made.retry_after_s = _retry_after_s(error.trailing_metadata() or ())
    return made


def _violations(metadata: Iterable[tuple[str, str | bytes]]) -> dict[str, str]:
    """Field -> what would be right, from the google.rpc.BadRequest among a status's details.

    BadRequest.field_violations = 1; field = 1, description = 2.
    """
    found: dict[str, str] = {}
    try:
        for bad in _details(metadata, b"/google.rpc.BadRequest"):
            for violation in _parts(bad, 1):
                field, description = (b"".join(_parts(violation, number)).decode() for number in (1, 2))
                found[field] = description
    except (DecodeError, UnicodeDecodeError):
        return {}  # a proxy's details, not ours; the message still says what is wrong
    return found


def _retry_after_s(metadata: Iterable[tuple[str, str | bytes]]) -> float:
    """Seconds, from the google.rpc.RetryInfo among a status's details; RetryInfo.retry_delay = 1."""
    try:
        for info in _details(metadata, b"/google.rpc.RetryInfo"):
            delay = Duration.FromString(b"".join(_parts(info, 1)))
            return max(0.0, delay.seconds + delay.nanos / 1e9)
    except DecodeError:
        pass
    return 0.0


def _details(metadata: Iterable[tuple[str, str | bytes]], kind: bytes) -> list[bytes]:
    """The messages of one kind among a status's details, serialised.

    Read as unknown fields, because the generated classes of google.rpc are not among the wheel's dependencies:
    Status.details = 3; Any.type_url = 1, value = 2.
    """
    return [
        b"".join(_parts(detail, 2))
        for key, value in metadata
        if key == "grpc-status-details-bin" and isinstance(value, bytes)
        for detail in _parts(value, 3)
        if b"".join(_parts(detail, 1)).endswith(kind)
    ]


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
