"""Around every call: expired ones end before any work, exceptions become statuses, and all are measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from vitrine.errors import FieldError
from vitrine.runtime import errors, metrics, tracing


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """One for each server; see the module."""

    def __init__(self) -> None:
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._in_flight = 0
        self._lock = threading.Lock()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        wrapped = self._wrapped.get(details.method)
        if wrapped is not None:
            return wrapped
        handler = continuation(details)
        if handler is None or handler.unary_unary is None or handler.request_deserializer is None:
            return handler  # unknown, or a stream: health's Watch and reflection
        wrapped = grpc.unary_unary_rpc_method_handler(
            tracing.around(
                self._around(handler.unary_unary, handler.request_deserializer, details.method), details.method
            ),
            request_deserializer=None,  # `_around` does it: what is no message is refused and counted like the rest
            response_serializer=handler.response_serializer,
        )
        self._wrapped[details.method] = wrapped
        return wrapped

    def _around(
        self, behaviour: Callable[[Any, Any], Any], deserialize: Callable[[bytes], Any], method: str
    ) -> Callable[[bytes, Any], Any]:
        service, _, name = method.lstrip("/").rpartition("/")
        started = metrics.rpc_started.labels(service, name)
        seconds = metrics.rpc_seconds.labels(service, name)

        def call(data: bytes, context: Any) -> Any:
            begin = time.perf_counter()
            started.inc()
            self._count(1)
            code = grpc.StatusCode.OK
            try:
                left = context.time_remaining()
                if left is not None and left <= 0:
                    context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the work began")
                if not context.is_active():
                    context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")
                try:
                    request = deserialize(data)
                except DecodeError as error:
                    raise FieldError("request", str(error)) from error
                response = behaviour(request, context)
                code = context.code() or code
                return response
            except Exception as error:
                if context.code() is not None and _by_abort(error):  # the handler chose the status itself
                    code = context.code()
                    raise
                status = errors.to_status(error, method)
                code = status.code
                context.abort_with_status(status)
            finally:
                self._count(-1)
                seconds.observe(time.perf_counter() - begin)
                metrics.rpc_handled.labels(service, name, code.name).inc()

        return call

    def _count(self, change: int) -> None:
        with self._lock:
            self._in_flight += change
        metrics.rpc_in_flight.set(self._in_flight)


def _by_abort(error: Exception) -> bool:
    """Whether `error` is what grpc's `context.abort` raises: a bare Exception()."""
    return type(error) is Exception and not error.args
