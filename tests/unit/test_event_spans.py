"""The worker's spans where things go wrong: a write that is fenced off, a store that is away, a replay."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from matching_kit import MemoryStore

from services.matching.spans import EventSpans, WatchedStore
from vitrine import trace_context
from vitrine.errors import UnavailableError
from vitrine.matching.store import BucketWrite
from vitrine.placement import bucket_of
from vitrine.runtime import tracing


@dataclass
class Sent:
    """A record as kafka-python gives it."""

    offset: int
    key: bytes
    headers: list[tuple[str, bytes]]
    partition: int = 0
    timestamp: int = 0
    value: bytes = b""
    topic: str = "user-events"


@dataclass
class Traced:
    """A store under watch, its spans, and what was exported once the tracing is closed."""

    file: Path
    store: WatchedStore = field(default_factory=lambda: WatchedStore(MemoryStore()))

    @property
    def spans(self) -> EventSpans:
        return EventSpans(self.store, "user-events", 1)

    def exported(self) -> list[dict]:
        tracing.close()
        lines = [json.loads(line) for line in self.file.read_text().splitlines()]
        return [line for line in lines if line["name"] != "producer"]


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Traced]:
    tracing.setup(f"file://{tmp_path}/spans", 1.0, "test")
    yield Traced(tmp_path / "spans")
    tracing.close()


def record(user_id: int, offset: int = 0) -> Sent:
    with tracing.span("producer"):
        return Sent(offset, b"%d" % user_id, trace_context.headers())


def write(user_id: int, expected: bytes = b"") -> BucketWrite:
    return BucketWrite(bucket_of(user_id), expected, "log", 1, 1, [(user_id, b"state", b"list")])


def test_a_fenced_off_write_is_an_error_in_the_trace(traced: Traced):
    sent = record(7)
    with traced.spans.around({0: [sent]}):
        assert traced.store.write([write(7, expected=b"old")]) == [None]
    written, processed = traced.exported()
    assert written["status"] == {
        "status_code": "ERROR",
        "description": "fenced off: another owner wrote the bucket",
    }
    assert written["parent_id"] == processed["context"]["span_id"]
    assert processed["status"]["status_code"] == "UNSET"


def test_a_store_that_is_away_ends_the_spans_of_the_batch(traced: Traced):
    spans = traced.spans
    batch = {0: [record(7, 0), record(8, 1)]}
    with pytest.raises(UnavailableError), spans.around(batch):
        raise UnavailableError("Redis does not answer")
    with spans.around({0: [record(9, 2)]}):  # and the next batch has its own
        traced.store.write([write(9)])
    *failed, _, _ = exported = traced.exported()
    assert [span["status"].get("description") for span in failed] == ["Redis does not answer"] * 2
    assert len({span["context"]["trace_id"] for span in exported}) == 3


def test_a_replayed_record_has_no_write(traced: Traced):
    with traced.spans.around({0: [record(7)]}):
        traced.store.write([write(8)])  # the bucket of another user; 7 lay below its watermark
    (processed,) = traced.exported()
    assert processed["name"] == "process user-events"


def test_untraced_records_cost_no_notes(traced: Traced):
    with traced.spans.around({0: [Sent(0, b"7", [])]}):
        traced.store.write([write(7)])
        assert traced.store.last is None
    tracing.close()
    assert not traced.file.exists()
