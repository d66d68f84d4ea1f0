"""`vitrine replay`: send the matching workers back to an offset or a time of `user-events`."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer
from kafka import KafkaConsumer, TopicPartition
from rich.console import Console

from vitrine.cli.operate import NamespaceOption, RedisUrl, store_of
from vitrine.cli.progress import stages
from vitrine.cli.topics import KafkaUrl, required, told
from vitrine.errors import FieldError
from vitrine.matching.rewind import rewind
from vitrine.matching.store import Store
from vitrine.placement import BUCKETS, qualify
from vitrine.runtime import audit, kafka, topics


@dataclass(frozen=True)
class Log:
    """`user-events` as it lies: by partition, the offsets that it has and those wanted."""

    name: str
    first: list[int]
    end: list[int]
    wanted: list[int]


def replay(
    kafka_url: KafkaUrl = "",
    redis_url: RedisUrl = "",
    namespace: NamespaceOption = "",
    from_offset: Annotated[
        int | None, typer.Option(min=0, help="of every partition that is replayed; 0 for all there ever was")
    ] = None,
    from_time: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d"], help="UTC; events appended from then on"),
    ] = None,
    partition: Annotated[list[int] | None, typer.Option(help="only this one; repeatable")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Drop states and lists, and have the workers make them anew from user-events, from an offset or a time on.

    From the first offset on, this gives the same bytes again; from a later one, what came before it is forgotten.
    Deletions stay. Workers need not be stopped: they notice within a second. Run again where it was interrupted.

    Examples:

        vitrine replay --from-offset 0 --kafka-url kafka://127.0.0.1:9092 --redis-url redis://127.0.0.1:6379

        vitrine replay --from-time 2026-11-01T00:00:00 --partition 3
    """
    with told():
        if (from_offset is None) == (from_time is None):
            raise FieldError("--from-offset, --from-time", "give one of the two")
        store, url = store_of(redis_url, namespace), required(kafka_url)
        log = _look(url, namespace, from_offset, from_time)
        chosen = _partitions(partition, len(log.end))
        for place in chosen:
            if not log.first[place] <= log.wanted[place] <= log.end[place]:
                raise FieldError(
                    "--from-offset",
                    f"partition {place} has offsets {log.first[place]} to {log.end[place]}, and not"
                    f" {log.wanted[place]}",
                )
        events = sum(log.end[place] - log.wanted[place] for place in chosen)
        if not yes:
            typer.confirm(
                f"Drop states and lists of {len(chosen)} partitions, and apply {events:,} records again?",
                abort=True,
            )
        target = f"partitions {','.join(map(str, chosen))}"
        with (
            audit.recorded("matching.replay", target, offsets=[log.wanted[p] for p in chosen]),
            stages(Console(stderr=True), "replay") as progress,
        ):
            for number, bucket in enumerate(b for b in range(BUCKETS) if b % len(log.end) in chosen):
                if not rewind(store, bucket, log.name, log.wanted[bucket % len(log.end)]):
                    raise FieldError(
                        "--kafka-url",
                        f"bucket {bucket} holds offsets of another log than {log.name}; replay the events into a"
                        " fresh VITRINE_NAMESPACE (docs/matching-operate.md)",
                    )
                progress("buckets", (number + 1) * len(log.end) / (BUCKETS * len(chosen)))
    print(f"{events:,} records are read again")


def behind(store: Store, url: str, namespace: str) -> list[dict[str, int]]:
    """By partition: the log's end, and how far the watermark furthest behind is from it."""
    log = _look(url, namespace, 0, None)
    marks = store.read_marks(range(BUCKETS))
    rows = []
    for place, end in enumerate(log.end):
        least = min(mark.events for mark in marks[place :: len(log.end)])
        rows.append({"partition": place, "end": end, "behind": max(0, end - max(least, log.first[place]))})
    return rows


def _look(url: str, namespace: str, offset: int | None, time: datetime | None) -> Log:
    """Reads the log's offsets, and where the wanted offset or time lies in each partition."""
    topic = qualify(namespace, topics.USER_EVENTS)
    with kafka.answering(url):
        consumer = KafkaConsumer(**kafka.parse_url(url).kwargs(), enable_auto_commit=False)
    try:
        places = [TopicPartition(topic, p) for p in range(kafka.partition_count(consumer, topic))]
        with kafka.answering(url):
            first, end = consumer.beginning_offsets(places), consumer.end_offsets(places)
            if time is not None:
                ms = int(time.replace(tzinfo=UTC).timestamp() * 1000)
                found = consumer.offsets_for_times(dict.fromkeys(places, ms))
                wanted = [end[p] if found[p] is None else found[p].offset for p in places]
            else:
                wanted = [offset or 0] * len(places)
    finally:
        consumer.close(autocommit=False)
    name = f"{kafka.cluster_id(url)}/{len(places)}"
    return Log(name, [first[p] for p in places], [end[p] for p in places], wanted)


def _partitions(chosen: list[int] | None, partitions: int) -> list[int]:
    for place in chosen or ():
        if not 0 <= place < partitions:
            raise FieldError("--partition", f"{place}: user-events has partitions 0 to {partitions - 1}")
    return sorted(set(chosen)) if chosen else list(range(partitions))
