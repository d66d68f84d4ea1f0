"""Audit: one JSON log line for everything that changes what others see, with who did it and how it ended.

Lines carry `"audit": true` and go where the log goes (stderr), whatever the log's level. A gRPC method only reads
where its proto says `option idempotency_level = NO_SIDE_EFFECTS`; the interceptor records every other, so that a
method whose author forgot the option is recorded rather than missed. docs/security.md lists what is recorded.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from vitrine.runtime import callers, logs

_LOGGER = "vitrine.audit"
_log = logs.get_logger(_LOGGER)

# Served by grpc's own packages, whose protos say nothing about side effects.
_READS = ("grpc.health.", "grpc.reflection.")
_LONGEST = 64


def record(action: str, target: str, *, caller: str, outcome: str = "ok", **details: Any) -> None:
    """Writes the line.

    action:  what was done: "artifacts.rollback", or "service/Method".
    target:  to what: "catalog stable"
    caller:  name of the caller (`callers.current`), or `operator()`; empty where everybody may call
    outcome: "ok", "failed"; details are the line's other fields, no secrets among them
    """
    if not structlog.is_configured():
        logs.setup("warning", "vitrine")
    logging.getLogger(_LOGGER).setLevel(logging.INFO)  # its own: a log of errors alone has these lines too
    _log.info("audit", audit=True, action=action, target=target, caller=caller, outcome=outcome, **details)


@contextmanager
def recorded(action: str, target: str, *, caller: str | None = None, **details: Any) -> Iterator[dict[str, Any]]:
    """Records what the block does once it ends, with outcome "failed" and the reason where it raises.

    The block may add details to what it is given. `caller` is the operator at this command line, if left out.
    """
    who = operator() if caller is None else caller
    try:
        yield details
    except BaseException as error:
        details |= {"outcome": "failed", "reason": str(error) or type(error).__name__}
        raise
    finally:
        record(action, target, caller=who, **details)


def operator() -> str:
    """Who is at this command line: "cli:" and the name of the account."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user without a name
        return "cli:unknown"


def only_reads(method: str) -> bool:
    """Whether "/package.Service/Method" is known to change nothing."""
    name = method.lstrip("/").replace("/", ".")
    if name.startswith(_READS):
        return True
    try:
        options = descriptor_pool.Default().FindMethodByName(name).GetOptions()
    except KeyError:
        return False
    return bool(options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS)


def around(behaviour: Callable[[Any, Any], Any], method: str) -> Callable[[Any, Any], Any]:
    """`behaviour`, a method's handler, with a line for each of its calls; of a stream, when it begins."""

    def call(request: Any, context: Any) -> Any:
        target = _scalars(request) if isinstance(request, Message) else ""
        with recorded(method.lstrip("/"), target, caller=callers.current.get(), peer=context.peer()) as told:
            try:
                return behaviour(request, context)
            finally:
                if context.code() not in (None, grpc.StatusCode.OK):
                    told |= {"outcome": "failed", "status": context.code().name}

    return call


def _scalars(request: Message) -> str:
    """The request's own short numbers and words: "user_id=17". What is long or nested is left out."""
    found = []
    for field, value in request.ListFields():
        if isinstance(value, bool | int | float | str) and len(str(value)) <= _LONGEST:
            found.append(f"{field.name}={value}")
    return " ".join(found)
