"""Logs: one JSON object a line on stderr, from structlog and from the standard library alike."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from vitrine import trace_context
from vitrine.runtime.redact import redact

_FIRST = ("time", "level", "service", "event")
# Libraries that say at INFO what matters only to someone debugging them.
_CHATTY = ("kafka", "grpc", "urllib3", "asyncio", "fsspec", "s3fs", "botocore")


def setup(level: str = "info", service: str = "", stream: TextIO | None = None) -> None:
    """Sends every log line of this process to stderr as JSON: time (UTC), level, service, event, then the rest.

    level:  debug, info, warning or error. Calling it again replaces the earlier set-up.
    stream: where to, in place of stderr
    """

    def finish(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["service"] = service
        event.update(trace_context.ids())
        ordered = {key: event.pop(key) for key in _FIRST if key in event} | dict(event)
        return {key: redact(value) for key, value in ordered.items()}

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    renderer = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            finish,
            structlog.processors.JSONRenderer(default=str),
        ],
    )
    handler = logging.StreamHandler(stream) if stream else _ToStderr()
    handler.setFormatter(renderer)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


class _ToStderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment: a test, or a library, may have put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def get_logger(name: str = "vitrine", **context: Any) -> structlog.stdlib.BoundLogger:
    """A logger whose every line carries `context`; `log.info("what happened", rows=3)`."""
    return structlog.stdlib.get_logger(name, **context)
