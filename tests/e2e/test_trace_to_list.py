"""One trace from an event to its list: the producer's span, the worker's, and the write of the list within it."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaConsumer
from matching_kit import START_MS
from matching_live import Live, live, partition_of, wait_for

from vitrine import trace_context
from vitrine.data.replay import user_event
from vitrine.placement import bucket_of, qualify
from vitrine.runtime import kafka, tracing
from vitrine.runtime.embedded import EmbeddedStack

MALFORMED = [b"", b"\xff\xfe", b"00-0-0-01", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"]


@pytest.fixture
def run(stack: EmbeddedStack, namespace: str, tmp_path: Path) -> Iterator[Live]:
    tracing.setup(f"file://{tmp_path}/spans.jsonl", 1.0, "front end", namespace)
    try:
        with live(stack, namespace, tmp_path) as started:
            yield started
    finally:
        tracing.close()


def spans(folder: Path) -> list[dict]:
    file = folder / "spans.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def send(run: Live, user_id: int, headers: list, value: bytes | None = None) -> None:
    event = user_event("purchase", user_id, START_MS, int(run.catalog.items[user_id]), 0, 0)
    value = event.SerializeToString() if value is None else value
    run.producer.send(run.topic, key=kafka.key_of(user_id), value=value, headers=headers).get(timeout=20)


def test_one_trace_joins_the_event_the_worker_and_the_lists_write(run: Live, tmp_path: Path):
    worker = run.worker(otlp_endpoint=f"file://{tmp_path}/spans.jsonl").wait_serving()
    with tracing.span("purchase", kind="producer") as trace:
        send(run, 7, trace_context.headers())
    unsampled = [("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")]
    for headers in ([], unsampled, *([("traceparent", value)] for value in MALFORMED)):
        send(run, 8, headers)
    with tracing.span("poison", kind="producer") as poisoned:
        send(run, 9, trace_context.headers(), b"no event at all")
    run.valid, run.poisoned = 3 + len(MALFORMED), 1
    run.check()  # the malformed headers cost nothing
    tracing.close()
    wait_for(lambda: len(spans(tmp_path)) >= 5, 30, lambda: f"{spans(tmp_path)}\n{worker.said()}")
    worker.process.terminate()
    assert worker.wait_end() == 0  # and what was not exported yet is by now
    found = spans(tmp_path)

    purchase, process, write = (
        next(span for span in found if span["name"] == name)
        for name in ("purchase", "process user-events", "write list")
    )
    assert {span["context"]["trace_id"] for span in (purchase, process, write)} == {f"0x{trace}"}
    assert process["parent_id"] == purchase["context"]["span_id"]
    assert write["parent_id"] == process["context"]["span_id"]
    assert (process["kind"], write["kind"]) == ("SpanKind.CONSUMER", "SpanKind.CLIENT")
    assert process["resource"]["attributes"]["service.name"] == "matching-worker"
    assert process["attributes"]["messaging.destination.name"] == run.topic
    assert process["attributes"]["messaging.destination.partition.id"] == str(partition_of(7))
    assert process["attributes"]["messaging.kafka.offset"] == 0
    assert process["attributes"]["vitrine.bucket"] == write["attributes"]["vitrine.bucket"] == bucket_of(7)
    assert write["attributes"]["vitrine.user_id"] == "7"
    assert process["start_time"] <= write["start_time"] <= write["end_time"] <= process["end_time"]

    # The dead letter is the end of its trace, in the span, the log and the letter; nothing else was followed.
    others = [span for span in found if span not in (purchase, process, write)]
    assert {span["name"] for span in others} == {"poison", "process user-events"}
    (dead,) = [span for span in others if span["name"] == "process user-events"]
    assert dead["context"]["trace_id"] == f"0x{poisoned}"
    assert dead["status"]["status_code"] == "ERROR"
    assert dead["status"]["description"].startswith("dead letter: ")
    lines = [json.loads(line) for line in worker.log.read_text().splitlines() if '"dead letter"' in line]
    assert [(line["trace_id"], line["span_id"]) for line in lines] == [(poisoned, dead["context"]["span_id"][2:])]
    consumer = KafkaConsumer(
        qualify(run.namespace, "dead-letters"),
        **kafka.parse_url(run.stack.kafka_url).kwargs(),
        auto_offset_reset="earliest",
        consumer_timeout_ms=5_000,
    )
    try:
        assert f"-{poisoned}-" in dict(next(consumer).headers)["traceparent"].decode()
    finally:
        consumer.close(autocommit=False)
