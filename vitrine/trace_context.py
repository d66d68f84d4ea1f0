"""The W3C trace context of the span that is current, where OpenTelemetry is loaded; it is never loaded from here.

A span can only be current where somebody has imported OpenTelemetry, so the bare wheel needs none of it, and a
process that traces nothing pays one look into a dictionary (docs/observability.md, "Traces").
"""

from __future__ import annotations

import sys
from typing import Any


def metadata() -> tuple[tuple[str, str], ...]:
    """traceparent, and tracestate where there is one, as gRPC metadata. Empty where no span is current."""
    found = _current()
    if found is None:
        return ()
    parent = ("traceparent", f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}")
    state = found.trace_state.to_header()
    return (parent, ("tracestate", state)) if state else (parent,)


def headers() -> list[tuple[str, bytes]]:
    """The same as headers of a Kafka record: `producer.send(..., headers=trace_context.headers())`."""
    return [(key, value.encode()) for key, value in metadata()]


def ids() -> dict[str, str]:
    """{"trace_id": ..., "span_id": ...} in hexadecimal, for log lines. Empty where no span is current."""
    found = _current()
    return {} if found is None else {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}


def _current() -> Any:
    get_current_span = getattr(sys.modules.get("opentelemetry.trace"), "get_current_span", None)
    if get_current_span is None:
        return None
    found = get_current_span().get_span_context()
    return found if found.is_valid else None
