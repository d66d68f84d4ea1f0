"""Around every call: who may not call is refused, expired calls end before any work, exceptions become statuses.

The order: who (on grpc's own thread, before the request is read or a worker taken), expired, deserialise, behave.
What gets past the first is measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from vitrine.errors import FieldError
from vitrine.runtime import audit, callers, errors, metrics, tracing
from vitrine.runtime.callers import Callers, Refused

_OPEN = "/grpc.health.v1.Health/"  # probes have no token


class CallInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """One for each server; see the module."""

    def __init__(self, callers: Callers | None = None) -> None:
        """callers: who may call; None is everybody."""
        self._callers = callers
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
        if self._callers is not None and not details.method.startswith(_OPEN):
            try:
                caller = self._callers.admit(_authorization(details.invocation_metadata), details.method[1:])
            except Refused as refusal:
                return self._refuse(refusal)
            callers.current.set(caller.name)  # seen by the behaviour: grpc runs both in one context
        wrapped = self._wrapped.get(details.method)
        if wrapped is not None:
            return wrapped
        handler = continuation(details)
        if handler is not None and not audit.only_reads(details.method):
            handler = _audited(handler, details.method)
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

    def _refuse(self, refusal: Refused) -> grpc.RpcMethodHandler[Any, Any]:
        """A handler that ends the call, whatever its method is, without reading a request."""
        status = errors.to_status(refusal)

        def end(_: Any, context: Any) -> Any:
            context.abort_with_status(status)

        end.experimental_thread_pool = _AT_ONCE  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(end)

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


class _AtOnce(ThreadPoolExecutor):
    """What grpc takes for a pool, and runs a refusal on the thread that called: no worker, no switch of threads."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*arguments, **named))
        except Exception as error:
            done.set_exception(error)
        return done


_AT_ONCE = _AtOnce(1)  # makes no thread until its own `submit` would


def _audited(handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
    kind = (
        ("stream" if handler.request_streaming else "unary")
        + ("_stream" if handler.response_streaming else "_unary")
    )  # fmt: skip
    behaviour = audit.around(getattr(handler, kind), method)
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(behaviour, handler.request_deserializer, handler.response_serializer)  # type: ignore[no-any-return]


def _authorization(metadata: Iterable[tuple[str, str | bytes]] | None) -> str | bytes | None:
    for key, value in metadata or ():
        if key == "authorization":
            return value
    return None


def _by_abort(error: Exception) -> bool:
    """Whether `error` is what grpc's `context.abort` raises: a bare Exception()."""
    return type(error) is Exception and not error.args
