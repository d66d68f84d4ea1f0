"""Metrics: what this process counts, as a Prometheus page over HTTP; every sample carries the namespace."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from vitrine.runtime.tls import ServerTls

# Domain metrics register here as well: Counter("vitrine_...", "...", registry=REGISTRY).
REGISTRY = CollectorRegistry()
disable_created_metrics()  # type: ignore[no-untyped-call]
ProcessCollector(registry=REGISTRY)

# Seconds. A fetch is below a millisecond, a scan or a scoring call a few; 2.5 s is past every sane deadline.
LATENCY_BUCKETS = (
    0.00025, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075,
    0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip

_METHOD = ("grpc_service", "grpc_method")
rpc_started = Counter("grpc_server_started_total", "Calls begun.", _METHOD, registry=REGISTRY)
rpc_handled = Counter(
    "grpc_server_handled_total", "Calls answered, by status.", (*_METHOD, "grpc_code"), registry=REGISTRY
)
rpc_seconds = Histogram(
    "grpc_server_handling_seconds",
    "Time from a worker thread's taking the call to its answer.",
    _METHOD,
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
rpc_in_flight = Gauge("grpc_server_in_flight", "Calls being handled now.", registry=REGISTRY)

serving = Gauge("vitrine_serving", "1 where health says SERVING.", registry=REGISTRY)
not_ready = Gauge("vitrine_not_ready", "1 where this readiness check fails.", ("check",), registry=REGISTRY)
degraded = Gauge(
    "vitrine_degraded", "1 where the process answers with less, by reason.", ("reason",), registry=REGISTRY
)
artifact_info = Gauge(
    "vitrine_artifact_info", "1 for each artifact version in use.", ("name", "version"), registry=REGISTRY
)

_artifacts: dict[str, str] = {}
_artifacts_lock = threading.Lock()


def artifact_served(name: str, version: str) -> None:
    """Says that `version` of artifact `name` is in use from now on, in place of the one before."""
    with _artifacts_lock:
        before = _artifacts.get(name)
        if before is not None:
            artifact_info.remove(name, before)
        _artifacts[name] = version
        artifact_info.labels(name, version).set(1)


class MetricsServer:
    """The Prometheus page of this process, on a thread of its own."""

    def __init__(self, host: str, port: int, namespace: str = "", tls: ServerTls | None = None) -> None:
        """Listens at once; port 0 takes a free one. Raises OSError where the port is in use."""
        page = CollectorRegistry(auto_describe=False)
        page.register(_WithNamespace(namespace))
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        kind = _PageServer6 if family == socket.AF_INET6 else _PageServer
        self._server = make_server(host, port, make_wsgi_app(page), kind, handler_class=_PageRequest)
        if tls is not None:
            # The handshake is the request's thread's: a caller who sends nothing holds up nobody else.
            self._server.socket = tls.context().wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _PageServer(ThreadingWSGIServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who hangs up, or speaks no TLS, is no error of this process."""


class _PageServer6(_PageServer):
    address_family = socket.AF_INET6


class _PageRequest(WSGIRequestHandler):
    timeout = 10  # seconds of silence, after which the connection and its thread end

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""


class _WithNamespace(Collector):
    """REGISTRY's metrics with the label `namespace` added, so that no caller has to carry it."""

    def __init__(self, namespace: str) -> None:
        self._label = {"namespace": namespace}

    def collect(self) -> Iterator[Metric]:
        for metric in REGISTRY.collect():
            labelled = Metric(metric.name, metric.documentation, metric.type, metric.unit)
            labelled.samples = [
                sample._replace(labels={**sample.labels, **self._label}) for sample in metric.samples
            ]
            yield labelled
