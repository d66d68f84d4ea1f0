"""An event's spans in the worker, in the trace that its producer began: its processing, and its list's write.

Only records whose headers say that their trace is sampled have spans; the worker begins no traces of its own, so
the front end decides what is followed. A batch is folded, matched and written as a whole, so the spans of its
events lie side by side.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitrine.matching.events import bucket_of_record
from vitrine.matching.store import BucketStore, BucketWrite, Mark
from vitrine.runtime import tracing
from vitrine.runtime.consume import Record

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer


@dataclass(slots=True)
class _Write:
    """begin, end: nanoseconds since 1970. let_through: user id -> whether the bucket took the list."""

    begin: int
    end: int
    let_through: dict[int, bool]


class WatchedStore:
    """A store that notes its last write while `noting`; in all else the one inside."""

    def __init__(self, store: BucketStore) -> None:
        self.noting = False
        self.last: _Write | None = None
        self._store = store

    def read_marks(self, buckets: Sequence[int]) -> list[Mark]:
        return self._store.read_marks(buckets)

    def read_states(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]:
        return self._store.read_states(users)

    def read_lists(self, users: Mapping[int, Sequence[int]]) -> dict[int, bytes]:
        return self._store.read_lists(users)

    def scan(self, bucket: int, chunk: int = 1_000) -> Iterator[list[tuple[int, bytes, bytes | None]]]:
        return self._store.scan(bucket, chunk)

    def write(
        self, writes: Sequence[BucketWrite], between: Callable[[], None] = lambda: None
    ) -> list[bytes | None]:
        begin = time.time_ns()
        tokens = self._store.write(writes, between)
        if self.noting:
            users = {
                user_id: token is not None
                for write, token in zip(writes, tokens, strict=True)
                for user_id, _, _ in write.users
            }
            self.last = _Write(begin, time.time_ns(), users)
        return tokens


class EventSpans:
    """The spans of one batch at a time.

    topic:      as the records' producers name it
    partitions: of the topic
    """

    def __init__(self, store: WatchedStore, topic: str, partitions: int) -> None:
        self._store = store
        self._topic = topic
        self._partitions = partitions
        self._open: dict[tuple[int, int], Span] = {}

    @contextlib.contextmanager
    def around(self, batch: Mapping[int, Sequence[Record]]) -> Iterator[None]:
        """Within the block the batch is applied; an exception that leaves it is its spans' status."""
        tracer = tracing.tracer()
        if tracer is None:
            yield
            return
        records = self._begin(tracer, batch)
        self._store.noting, self._store.last = bool(records), None
        try:
            yield
            if self._store.last is not None:
                for record in records:
                    self._show_write(tracer, record, self._store.last)
        except Exception as error:
            for span in self._open.values():
                _fail(span, str(error))
            raise
        finally:
            for span in self._open.values():
                span.end()
            self._open = {}

    @contextlib.contextmanager
    def dead_letter(self, partition: int, offset: int, reason: str) -> Iterator[None]:
        """Within the block the record's span is current, where it has one: log lines and headers name it."""
        span = self._open.get((partition, offset))
        if span is None:
            yield
            return
        from opentelemetry.trace import use_span

        _fail(span, f"dead letter: {reason}")
        with use_span(span):
            yield

    def _begin(self, tracer: "Tracer", batch: Mapping[int, Sequence[Record]]) -> list[Record]:
        """The records of the batch that are followed, each with an open span."""
        from opentelemetry.trace import SpanKind

        followed = []
        now_ms = time.time() * 1000
        for partition, records in batch.items():
            for record in records:
                parent = tracing.parent(record.headers) if record.headers else None
                if parent is None:
                    continue
                attributes: dict[str, str | int] = {
                    "messaging.system": "kafka",
                    "messaging.operation.name": "process",
                    "messaging.destination.name": self._topic,
                    "messaging.destination.partition.id": str(partition),
                    "messaging.kafka.offset": record.offset,
                    "vitrine.bucket": bucket_of_record(record.key, partition, self._partitions)[0],
                    "vitrine.waited_ms": max(0, int(now_ms) - record.timestamp),  # since the broker's append
                }
                self._open[partition, record.offset] = tracer.start_span(
                    "process user-events", parent, SpanKind.CONSUMER, attributes
                )
                followed.append(record)
        return followed

    def _show_write(self, tracer: "Tracer", record: Record, write: _Write) -> None:
        """The span of the write of the record's list, where there was one: not of a replay or a dead letter."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        user_id = int(record.key) if record.key is not None and record.key.isdigit() else 0
        if user_id not in write.let_through:
            return
        bucket, _ = bucket_of_record(record.key, record.partition, self._partitions)
        span = tracer.start_span(
            "write list",
            set_span_in_context(self._open[record.partition, record.offset]),
            SpanKind.CLIENT,
            {"db.system.name": "redis", "vitrine.bucket": bucket, "vitrine.user_id": str(user_id)},
            start_time=write.begin,
        )
        if not write.let_through[user_id]:
            _fail(span, "fenced off: another owner wrote the bucket")
        span.end(write.end)


def _fail(span: "Span", reason: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, reason))
