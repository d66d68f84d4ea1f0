"""The gRPC process: a server around the registered services, with one life for all of them (docs/runtime.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import grpc
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vitrine.runtime import callers, lifecycle, logs
from vitrine.runtime.health import Check, bracketed
from vitrine.runtime.interceptor import CallInterceptor
from vitrine.runtime.lifecycle import StartError
from vitrine.runtime.settings import Settings
from vitrine.runtime.tls import ServerTls

__all__ = ["Process", "StartError", "serve"]

Register = Callable[[grpc.Server], None]


class Process(lifecycle.Lifecycle):
    """A gRPC server with health, metrics and an orderly end.

    `serve` is all that a service needs. A worker whose own thread may fail uses `run`, and `stop` from that thread;
    tests use `start` and `drain`.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        register: Register | None = None,
        *,
        ready: Check | Mapping[str, Check] | None = None,
        degraded: Mapping[str, Check] | None = None,
        on_drain: Sequence[Callable[[], None]] = (),
    ) -> None:
        """
        register: adds the servicers: `lambda server: add_CtrServiceServicer_to_server(servicer, server)`.

        The others as in `Lifecycle`.
        """
        logs.setup(settings.log_level, service)
        who = callers.of_settings(settings)
        front = _GrpcFront(settings, CallInterceptor(who))
        super().__init__(settings, service, front, ready=ready, degraded=degraded, on_drain=on_drain, callers=who)
        self.server = front.server
        names = _Names(self.server)
        if register is not None:
            register(cast(grpc.Server, names))
        self.health.add_services(names.services)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self.server)
        if settings.reflection:
            shown = (*names.services, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(shown, self.server)


def serve(
    settings: Settings,
    service: str,
    register: Register | None = None,
    *,
    ready: Check | Mapping[str, Check] | None = None,
    degraded: Mapping[str, Check] | None = None,
    on_drain: Sequence[Callable[[], None]] = (),
) -> int:
    """Runs a service until SIGTERM and returns its exit status: 0 after a clean drain, 2 where it could not start.

    Arguments as in `Process`. `sys.exit(serve(...))` is a service's last line.
    """
    return lifecycle.run(Process(settings, service, register, ready=ready, degraded=degraded, on_drain=on_drain))


class _GrpcFront:
    """The gRPC server as a process's front."""

    def __init__(self, settings: Settings, calls: CallInterceptor) -> None:
        self._settings = settings
        self._calls = calls
        self.server = grpc.server(
            ThreadPoolExecutor(settings.max_workers, thread_name_prefix="rpc"),
            interceptors=[calls],
            options=_channel_options(settings),
            maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
        )

    @property
    def in_flight(self) -> int:
        return self._calls.in_flight

    def bind(self, tls: ServerTls | None) -> int:
        where = f"{bracketed(self._settings.host)}:{self._settings.port}"
        if tls is None:
            return self.server.add_insecure_port(where)
        return self.server.add_secure_port(where, tls.grpc_credentials())

    def start(self) -> None:
        self.server.start()

    def stop(self, grace_s: float) -> None:
        self.server.stop(grace_s).wait()


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
