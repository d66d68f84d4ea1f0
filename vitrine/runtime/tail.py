"""A compacted topic read whole, without a group: every process that needs the table has a thread like this."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from vitrine.errors import NotFoundError, UnavailableError
from vitrine.runtime.consume import Record
from vitrine.runtime.kafka import LogLostError, answering, log_lost, parse_url, partition_count
from vitrine.runtime.readings import kafka_contact, plain_topic, tail_lag, tail_skipped

_log = structlog.get_logger(__name__)

_CONTACT_S = 1.0

Apply = Callable[[Mapping[int, Sequence[Record]]], int]


class Tail:
    """Applies every record of `topic`, of all its partitions, from `offsets` on, in a thread, for ever.

    apply:     called with {partition: [record, ...]}, in offset order; value None is a tombstone. Returns how many
               it passed over. What it raises ends the tail
    offsets:   where to begin, by partition; 0 in those that are not named
    caught_up: set once everything is applied that the topic held at the start
    error:     why the tail has ended, None while it runs; LogLostError where the log lacks an offset

    A broker that goes away, and a topic that is not there yet, are waited for.
    """

    def __init__(self, url: str, topic: str, apply: Apply, offsets: Mapping[int, int] | None = None) -> None:
        self.topic = topic
        self.caught_up = threading.Event()
        self.error: BaseException | None = None
        self.skipped = 0
        self._url = url
        self._apply = apply
        self._positions = dict(offsets or {})
        self._ends: dict[int, int] = {}
        self._contact: float | None = None
        self._closing = threading.Event()
        self._moved = threading.Condition()
        self._gate = threading.Lock()
        label = plain_topic(topic)
        self._readings = (
            (kafka_contact, lambda: {label: self.seconds_since_contact}),
            (tail_lag, lambda: {label: float(self.unread)}),
            (tail_skipped, lambda: {label: float(self.skipped)}),
        )
        for metric, read in self._readings:
            metric.add(read)
        self._thread = threading.Thread(target=self._run, name=f"tail {topic}", daemon=True)
        self._thread.start()

    @property
    def positions(self) -> dict[int, int]:
        """The next offset of each partition: everything below it is applied."""
        return dict(self._positions)

    @property
    def unread(self) -> int:
        """Offsets between the positions and the log's ends, as last heard; 0 before the ends are known."""
        return sum(max(0, end - self._positions.get(place, 0)) for place, end in self._ends.copy().items())

    @property
    def seconds_since_contact(self) -> float:
        """Seconds since Kafka last answered; infinite before it first did. Asked about once a second."""
        return float("inf") if self._contact is None else time.monotonic() - self._contact

    def wait_caught_up(self, timeout_s: float) -> None:
        """Returns once caught up. Raises what ended the tail, or UnavailableError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self.caught_up.wait(0.05):
            if self.error is not None:
                raise self.error
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{self.topic} was not read whole within {timeout_s:.0f} s (at offsets {self._positions})"
                )

    def reached(self, positions: Mapping[int, int]) -> bool:
        """Whether everything below these offsets is applied."""
        return all(self._positions.get(place, 0) >= offset for place, offset in positions.items())

    def wait_reached(self, positions: Mapping[int, int], timeout_s: float) -> bool:
        """Waits until everything below these offsets is applied; whether it was within `timeout_s`."""
        with self._moved:
            return self._moved.wait_for(lambda: self.reached(positions), timeout_s)

    @contextmanager
    def held(self) -> Iterator[dict[int, int]]:
        """Nothing is applied meanwhile; gives the positions."""
        with self._gate:
            yield self.positions

    def close(self) -> None:
        """Ends the thread and waits for it."""
        self._closing.set()
        self._thread.join()
        for metric, read in self._readings:
            metric.remove(read)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                self._read()
            except (UnavailableError, NotFoundError, KafkaError) as error:
                _log.warning("tail waits for Kafka", topic=self.topic, reason=str(error))
                self._closing.wait(1.0)
            except Exception as error:
                self.error = error
                _log.error("tail ended", topic=self.topic, reason=str(error))
                return

    def _read(self) -> None:
        config = parse_url(self._url)
        settings: dict[str, Any] = config.kwargs() | {
            "auto_offset_reset": "none",
            "enable_auto_commit": False,
            "max_poll_records": 2_000,
            "fetch_max_wait_ms": 20 if config.memory else 250,
            "allow_auto_create_topics": config.memory,
            "bootstrap_timeout_ms": 5_000,
        }
        with answering(self._url):
            consumer = KafkaConsumer(**settings)
        try:
            count = partition_count(consumer, self.topic)
            if self._positions and max(self._positions) >= count:
                lost = max(self._positions)
                raise LogLostError(self.topic, lost, self._positions[lost], None)
            self._positions = {place: self._positions.get(place, 0) for place in range(count)}
            places = [TopicPartition(self.topic, place) for place in self._positions]
            consumer.assign(places)
            for place in places:
                consumer.seek(place, self._positions[place.partition])
            self._follow(consumer, places)
        finally:
            consumer.close(autocommit=False, timeout_ms=1_000)

    def _follow(self, consumer: KafkaConsumer, places: list[TopicPartition]) -> None:
        targets: dict[int, int] | None = None
        ask_at = 0.0
        while not self._closing.is_set():
            if time.monotonic() >= ask_at:
                if self._ask_ends(consumer, places) and targets is None:
                    targets = dict(self._ends)
                ask_at = time.monotonic() + _CONTACT_S
            try:
                polled = consumer.poll(timeout_ms=100)
            except OffsetOutOfRangeError as error:
                ((place, wanted),) = error.args[0].items()
                raise log_lost(consumer, self.topic, place.partition, wanted) from error
            except LogTruncationError as error:
                place = next(iter(error.divergent_offsets))
                wanted = self._positions[place.partition]
                raise log_lost(consumer, self.topic, place.partition, wanted) from error
            with self._gate:
                if self._closing.is_set():
                    return
                if polled:
                    self._contact = time.monotonic()
                    self._take({place.partition: records for place, records in polled.items()})
                # Past what compaction removed at the end, too.
                for place in places:
                    at = consumer.position(place, timeout_ms=0) or 0
                    self._positions[place.partition] = max(self._positions[place.partition], at)
            with self._moved:
                self._moved.notify_all()
            if targets is not None and self.reached(targets):
                self.caught_up.set()

    def _ask_ends(self, consumer: KafkaConsumer, places: list[TopicPartition]) -> bool:
        try:
            ends = consumer.end_offsets(places, timeout_ms=1_000)
        except KafkaError:
            return False  # seconds_since_contact grows, and health speaks of it
        self._ends = {place.partition: end for place, end in ends.items()}
        self._contact = time.monotonic()
        return True

    def _take(self, records: Mapping[int, Sequence[Record]]) -> None:
        self.skipped += self._apply(records)
        for partition, some in records.items():
            self._positions[partition] = some[-1].offset + 1


def one_by_one(topic: str, apply: Callable[[int, bytes | None, bytes | None], None]) -> Apply:
    """For a Tail: `apply(offset, key, value)` for each record.

    A record that it refuses (ValueError and its like: any Exception) is logged, counted and passed over, and must
    leave no half of a change behind.
    """
    return stamped(topic, lambda offset, append_ms, key, value: apply(offset, key, value))


def stamped(topic: str, apply: Callable[[int, int, bytes | None, bytes | None], None]) -> Apply:
    """As `one_by_one`, for an `apply(offset, append_ms, key, value)` that also wants the broker's append time."""

    def all_of(records: Mapping[int, Sequence[Record]]) -> int:
        skipped = 0
        for partition, some in records.items():
            for record in some:
                try:
                    apply(record.offset, record.timestamp, record.key, record.value)
                except Exception as error:
                    skipped += 1
                    skip(topic, partition, record, repr(error))
        return skipped

    return all_of


def skip(topic: str, partition: int, record: Record, reason: str) -> None:
    """Says in the log that a record is passed over."""
    _log.error(
        "record skipped",
        topic=topic,
        partition=partition,
        offset=record.offset,
        key=repr(record.key),
        reason=reason,
    )
