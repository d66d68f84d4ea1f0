"""What tracing is made of where it is on: OpenTelemetry's SDK, a bounded queue, and exporters that disturb nobody.

Spans wait in the queue for a thread that exports them; a collector that is slow, dead or was never there loses
spans and nothing else. Only `tracing.py` imports this file, and only where an endpoint is set.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_QUEUE_SPANS = 2_048
_EXPORT_EVERY_MS = 1_000
_COMPLAIN_EVERY_S = 60.0
# A call that ends in one of these is the server's failure; the others are the caller's.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

_log = structlog.get_logger(__name__)
_propagator = TraceContextTextMapPropagator()


class Tracing:
    """One process's spans on their way to `endpoint`; see `tracing.setup` for the arguments.

    lost: called for each batch of spans that the endpoint did not take
    """

    def __init__(
        self, endpoint: str, ratio: float, service: str, namespace: str, *, lost: Callable[[], None]
    ) -> None:
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # a line a batch; `_Patient` has one a minute
        version = importlib.metadata.version("vitrine-serving")
        self._ratio = ratio
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),  # `_begins` has decided: the SDK's own way takes 25 us a call
            resource=Resource.create(
                {
                    "service.name": service,
                    "service.namespace": "vitrine",
                    "service.version": version,
                    "vitrine.namespace": namespace,
                }
            ),
            shutdown_on_exit=False,  # it would wait for a dead collector
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                _Patient(endpoint, lost), max_queue_size=_QUEUE_SPANS, schedule_delay_millis=_EXPORT_EVERY_MS
            )
        )
        self.tracer = self._provider.get_tracer("vitrine", version)

    def close(self, timeout_s: float) -> None:
        flush = threading.Thread(target=self._provider.shutdown, name="traces end", daemon=True)
        flush.start()
        flush.join(timeout_s)

    @contextlib.contextmanager
    def span(self, name: str, kind: str, attributes: Mapping[str, str | int | float | bool]) -> Iterator[str]:
        if not get_current_span().get_span_context().is_valid and not self._begins():
            ids = self._provider.id_generator
            unrecorded = SpanContext(ids.generate_trace_id(), ids.generate_span_id(), is_remote=False)
            with use_span(NonRecordingSpan(unrecorded)):  # so that whom this process calls is told
                yield f"{unrecorded.trace_id:032x}"
            return
        with self.tracer.start_as_current_span(name, kind=SpanKind[kind.upper()], attributes=attributes) as started:
            yield f"{started.get_span_context().trace_id:032x}"

    def _begins(self) -> bool:
        """Whether a trace that would begin here is recorded."""
        return self._ratio >= 1 or random.random() < self._ratio

    def parent(self, carrier: Iterable[tuple[str, str | bytes | None]]) -> Context | None:
        context = _propagator.extract(_carried(carrier), Context())
        found = get_current_span(context).get_span_context()
        return context if found.is_valid and found.trace_flags.sampled else None

    def around(self, call: Callable[[bytes, Any], Any], method: str) -> Callable[[bytes, Any], Any]:
        name = method.lstrip("/")
        service, _, short = name.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": short}

        def traced(data: bytes, context: Any) -> Any:
            carried = _carried(context.invocation_metadata())
            if carried.get("traceparent", "").endswith("-00"):
                return call(data, context)  # a service calls no other, so nobody needs to be told
            parent = _propagator.extract(carried, Context()) if carried else Context()
            if not parent and not self._begins():
                return call(data, context)
            with self.tracer.start_as_current_span(
                name,
                parent,
                SpanKind.SERVER,
                attributes,
                record_exception=False,  # the status is the context's to say, and the log has the traceback
                set_status_on_exception=False,
            ) as current:
                try:
                    return call(data, context)
                finally:
                    code = context.code()
                    if code is not None and current.is_recording():
                        current.set_attribute("rpc.grpc.status_code", code.value[0])
                        if code.name in _FAULTS:
                            current.set_status(Status(StatusCode.ERROR, code.name))

        return traced


def _carried(carrier: Iterable[tuple[str, str | bytes | None]]) -> dict[str, str]:
    """What headers or metadata say of a trace."""
    found = {}
    for key, value in carrier:
        if key in ("traceparent", "tracestate") and value:
            found[key] = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return found


class _Patient(SpanExporter):
    """The exporter to `endpoint`, made when first needed; says at most once a minute that spans are lost."""

    def __init__(self, endpoint: str, lost: Callable[[], None]) -> None:
        self._endpoint = endpoint
        self._lost = lost
        self._inner: SpanExporter | None = None
        self._complain_at = 0.0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        reason = "no answer"
        try:
            self._inner = self._inner or self._make()
            result = self._inner.export(spans)
        except Exception as error:
            result, reason = SpanExportResult.FAILURE, str(error)
        if result is not SpanExportResult.SUCCESS:
            self._lost()
            if time.monotonic() >= self._complain_at:
                self._complain_at = time.monotonic() + _COMPLAIN_EVERY_S
                _log.warning("spans are lost", endpoint=self._endpoint, spans=len(spans), reason=reason)
        return result

    def shutdown(self) -> None:
        if self._inner is not None:
            self._inner.shutdown()

    def _make(self) -> SpanExporter:
        parts = urlsplit(self._endpoint)
        if parts.scheme == "file":
            return _Lines(unquote(parts.path))
        return OTLPSpanExporter(endpoint=self._endpoint, insecure=parts.scheme == "http", timeout=5)


class _Lines(SpanExporter):
    """One JSON span a line; a batch is appended in one write, so that processes can share the file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        lines = "".join(each.to_json(indent=None) + "\n" for each in spans).encode()
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, lines)
        finally:
            os.close(file)
        return SpanExportResult.SUCCESS
