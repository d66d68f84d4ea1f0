"""The one place where exceptions become gRPC statuses, and where a status gets its details."""

from __future__ import annotations

import math
import secrets

import grpc
import redis.exceptions
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from vitrine.errors import FieldError, NotFoundError, UnavailableError
from vitrine.runtime import logs
from vitrine.runtime.callers import Refused

_STORE_LOST = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)

_log = logs.get_logger(__name__)


def to_status(error: Exception, method: str = "") -> grpc.Status:
    """The status that a caller gets for `error`.

    FieldError -> INVALID_ARGUMENT with google.rpc.BadRequest naming the field; NotFoundError -> NOT_FOUND;
    UnavailableError, and Redis lost or silent -> UNAVAILABLE; Refused -> UNAUTHENTICATED, PERMISSION_DENIED, or
    RESOURCE_EXHAUSTED with google.rpc.RetryInfo; anything else -> INTERNAL, which says no more than a reference,
    under which the log has the traceback.
    """
    if isinstance(error, FieldError):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details = AnyMessage()
        details.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        return _status(grpc.StatusCode.INVALID_ARGUMENT, str(error), details)
    if isinstance(error, NotFoundError):
        return _status(grpc.StatusCode.NOT_FOUND, str(error))
    if isinstance(error, Refused):
        return _refusal(error)
    if isinstance(error, UnavailableError):
        return _status(grpc.StatusCode.UNAVAILABLE, str(error))
    reference = secrets.token_hex(4)
    if isinstance(error, _STORE_LOST):
        _log.warning("store lost during a call", method=method, reference=reference, error=str(error))
        return _status(grpc.StatusCode.UNAVAILABLE, f"the store does not answer; try again (reference {reference})")
    _log.error("call failed", method=method, reference=reference, exc_info=error)
    return _status(grpc.StatusCode.INTERNAL, f"internal error (reference {reference})")


_REFUSALS = {
    "no_token": grpc.StatusCode.UNAUTHENTICATED,
    "wrong_token": grpc.StatusCode.UNAUTHENTICATED,
    "method": grpc.StatusCode.PERMISSION_DENIED,
    "rate": grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def _refusal(refused: Refused) -> grpc.Status:
    details = []
    if refused.retry_after_s:
        details.append(AnyMessage())
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromNanoseconds(math.ceil(refused.retry_after_s * 1e9))
        details[0].Pack(info)
    return _status(_REFUSALS[refused.reason], str(refused), *details)


def _status(code: grpc.StatusCode, message: str, *details: AnyMessage) -> grpc.Status:
    return rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=details))
