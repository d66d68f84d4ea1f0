"""Traces, where an endpoint is set: server spans, spans of one's own, and the contexts that records carry.

Without an endpoint nothing of OpenTelemetry is imported and every function here returns at once; with one,
`otel.py` does the work (docs/observability.md, "Traces").
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter

from vitrine.runtime import logs, metrics

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer

    from vitrine.runtime.otel import Tracing

_log = logs.get_logger(__name__)

export_failures = Counter(
    "vitrine_trace_export_failures_total",
    "Batches of spans that the endpoint did not take; they are lost.",
    registry=metrics.REGISTRY,
)

_tracing: Tracing | None = None


def setup(endpoint: str, ratio: float, service: str, namespace: str = "") -> None:
    """Traces this process from here on, until `close`; nothing where `endpoint` is empty.

    endpoint: http(s)://host:port of a collector that takes OTLP over gRPC, or file:///path, one JSON span a line
    ratio:    of the traces that begin in this process, how many are kept; one that came in is as its caller decided
    """
    global _tracing
    if not endpoint:
        return
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        _log.warning("no traces: OpenTelemetry is not installed; `pip install vitrine-serving[serve]`")
        return
    from vitrine.runtime import otel

    close()
    _tracing = otel.Tracing(endpoint, ratio, service, namespace, lost=export_failures.inc)


def close(timeout_s: float = 2.0) -> None:
    """Exports what waits, for at most `timeout_s`, and traces nothing from here on."""
    global _tracing
    ended, _tracing = _tracing, None
    if ended is not None:
        ended.close(timeout_s)


def tracer() -> Tracer | None:
    """OpenTelemetry's tracer; None where this process traces nothing."""
    return None if _tracing is None else _tracing.tracer


@contextlib.contextmanager
def span(name: str, *, kind: str = "internal", **attributes: str | int | float | bool) -> Iterator[str]:
    """A span that is current within the block; yields its trace id in hexadecimal, "" where nothing is traced.

    kind: internal, server, client, producer or consumer. An exception that leaves the block is the span's status.
    """
    if _tracing is None:
        yield ""
        return
    with _tracing.span(name, kind, attributes) as trace_id:
        yield trace_id


def parent(carrier: Iterable[tuple[str, str | bytes | None]]) -> Context | None:
    """The sampled context that Kafka headers carry; None where there is none, or nothing is traced here."""
    return None if _tracing is None else _tracing.parent(carrier)


def around(call: Callable[[bytes, Any], Any], method: str) -> Callable[[bytes, Any], Any]:
    """`call`, a gRPC handler that has named its status by the time it ends, inside a server span of its own."""
    return call if _tracing is None or method.startswith("/grpc.") else _tracing.around(call, method)
