"""The gRPC process: bind, announce, serve, and drain on SIGTERM; every service runs in one (docs/runtime.md)."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vitrine.errors import FieldError
from vitrine.runtime import errors, logs, metrics
from vitrine.runtime.health import Check, Health
from vitrine.runtime.settings import Settings

_log = logs.get_logger(__name__)


class StartError(Exception):
    """The process cannot start as it was told to; the message says what to change."""


class Process:
    """A gRPC server with health, metrics and an orderly end.

    `serve` is all that a service needs. A worker whose own thread may fail uses `run`, and `stop` from that thread;
    tests use `start` and `drain`.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        register: Callable[[grpc.Server], None] | None = None,
        *,
        ready: Check | Mapping[str, Check] | None = None,
        degraded: Mapping[str, Check] | None = None,
        on_drain: Sequence[Callable[[], None]] = (),
    ) -> None:
        """
        service:  short name, in logs and in the announcement: "ctr".
        register: adds the servicers: `lambda server: add_CtrServiceServicer_to_server(servicer, server)`.
        ready:    readiness checks by name (or one); the process says NOT_SERVING until all pass.
        degraded: conditions shown while it serves on, by reason.
        on_drain: called in order once the calls in flight have ended, or where the process could not start.
        """
        logs.setup(settings.log_level, service)
        self._settings = settings
        self._service = service
        self._on_drain = list(on_drain)
        self._stops: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._calls = _CallInterceptor()
        self._metrics: metrics.MetricsServer | None = None
        self.address = ""
        self.metrics_address = ""
        self.health = Health({"ready": ready} if callable(ready) else ready, degraded)
        self.server = grpc.server(
            ThreadPoolExecutor(settings.max_workers, thread_name_prefix="rpc"),
            interceptors=[self._calls],
            options=_channel_options(settings),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
        )
        names = _Names(self.server)
        if register is not None:
            register(cast(grpc.Server, names))
        self.health.add_services(names.services)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self.server)
        if settings.reflection:
            shown = (*names.services, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(shown, self.server)

    @property
    def in_flight(self) -> int:
        """Calls being handled now."""
        return self._calls.in_flight

    def start(self) -> None:
        """Binds, serves and announces the addresses; raises StartError where a port is taken."""
        settings = self._settings
        try:
            _try_to_bind(settings.host, settings.port)  # where grpc fails to, it says on stderr what it pleases
            port = self.server.add_insecure_port(f"{_bracketed(settings.host)}:{settings.port}")
        except (OSError, RuntimeError) as error:
            raise StartError(_cannot_listen(settings.host, "port", settings.port, error)) from error
        try:
            self._metrics = metrics.MetricsServer(settings.host, settings.metrics_port, settings.namespace)
        except OSError as error:
            raise StartError(_cannot_listen(settings.host, "metrics_port", settings.metrics_port, error)) from error
        self.address = f"{_bracketed(settings.host)}:{port}"
        self.metrics_address = f"{_bracketed(settings.host)}:{self._metrics.port}"
        self.server.start()
        self.health.start()
        self._announce()

    def run(self) -> int:
        """Starts, waits for SIGTERM, SIGINT or `stop`, drains; the exit status. Call it from the main thread."""
        try:
            self.start()
        except StartError as error:
            print(f"vitrine {self._service}: {error}", file=sys.stderr)
            self._end_parts()
            return 2
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        status = self._stops.get()
        return self.drain() or status

    def stop(self, status: int = 0) -> None:
        """Asks `run` to drain and return `status`; from any thread, or a signal handler."""
        self._stops.put(status)

    def drain(self) -> int:
        """NOT_SERVING, no new calls, up to `drain_s` for those in flight, `on_drain`.

        Returns 0 where all went well.
        """
        settings = self._settings
        self.health.drain()
        _log.info("draining", in_flight=self._calls.in_flight)
        time.sleep(settings.drain_delay_ms / 1000)
        self.server.stop(settings.drain_s).wait()
        status = self._end_parts()
        if self._metrics is not None:
            self._metrics.close()
        if settings.address_file is not None:
            settings.address_file.unlink(missing_ok=True)
        abandoned = self._calls.in_flight
        if abandoned:
            _log.error("calls did not end in time", abandoned=abandoned, drain_s=settings.drain_s)
            status = 1
        _log.info("drained")
        return status

    def _end_parts(self) -> int:
        status = 0
        for callback in self._on_drain:
            try:
                callback()
            except Exception:
                _log.exception("a drain step failed")
                status = 1
        return status

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
        self.stop()

    def _announce(self) -> None:
        line = json.dumps(
            {
                "event": "listening",
                "service": self._service,
                "address": self.address,
                "metrics": self.metrics_address,
                "pid": os.getpid(),
            }
        )
        if self._settings.address_file is not None:
            _write_whole(self._settings.address_file, line + "\n")
        print(line, flush=True)


def serve(
    settings: Settings,
    service: str,
    register: Callable[[grpc.Server], None] | None = None,
    *,
    ready: Check | Mapping[str, Check] | None = None,
    degraded: Mapping[str, Check] | None = None,
    on_drain: Sequence[Callable[[], None]] = (),
) -> int:
    """Runs a service until SIGTERM and returns its exit status: 0 after a clean drain, 2 where it could not start.

    Arguments as in `Process`. `sys.exit(serve(...))` is a service's last line.
    """
    process = Process(settings, service, register, ready=ready, degraded=degraded, on_drain=on_drain)
    status = process.run()
    if process.in_flight:
        os._exit(status)  # a handler that never returns would hold the interpreter's exit for ever
    return status


class _CallInterceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Around every call: expired ones end before any work, exceptions become statuses, and all are measured."""

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
            self._around(handler.unary_unary, handler.request_deserializer, details.method),
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


class _Names:
    """Stands in for the server while servicers are added, and notes the services' names."""

    def __init__(self, server: grpc.Server) -> None:
        self._server = server
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        self.services += [h.service_name() for h in handlers if isinstance(h, grpc.ServiceRpcHandler)]
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self._server.add_registered_method_handlers(service, handlers)  # type: ignore[attr-defined]


def _channel_options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server on it
        ("grpc.max_receive_message_length", int(settings.max_request_mb * 2**20)),
        ("grpc.max_send_message_length", int(settings.max_response_mb * 2**20)),
        # Pings find a dead peer within 80 s and are taken from clients that send one every 20 s, calls or none.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _try_to_bind(host: str, port: int) -> None:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind(address)
        trial.listen(1)


def _cannot_listen(host: str, field: str, port: int, error: Exception) -> str:
    flag, variable = "--" + field.replace("_", "-"), "VITRINE_" + field.upper()
    why = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"cannot listen on {host}:{port} ({why}); give another {flag} (or {variable}), or 0 for a free one"


def _write_whole(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)
