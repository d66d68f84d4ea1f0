"""A compacted topic read whole, without a group: every process that needs the table has a thread like this."""

import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, LogTruncationError, OffsetOutOfRangeError

from vitrine.errors import NotFoundError, UnavailableError
from vitrine.runtime.kafka import answering, log_lost, parse_url, partition_count
from vitrine.runtime.readings import kafka_contact, plain_topic, tail_lag, tail_skipped

_log = structlog.get_logger(__name__)

_CONTACT_S = 1.0


class Tail:
    """Applies every record of partition 0 of `topic` from `from_offset` on, in a thread, for ever.

    apply:     called with (offset, key, value); value None is a tombstone. A record that it refuses (ValueError
               and its like: any Exception) is logged, counted in `skipped` and passed over
    caught_up: set once everything is applied that the topic held at the start
    error:     why the tail has ended, None while it runs; LogLostError where the log lacks `from_offset`

    A broker that goes away, and a topic that is not there yet, are waited for. A failed `apply` must not leave half
    a change behind.
    """

    def __init__(
        self, url: str, topic: str, apply: Callable[[int, bytes | None, bytes | None], None], from_offset: int = 0
    ) -> None:
        self.topic = topic
        self.caught_up = threading.Event()
        self.error: BaseException | None = None
        self.skipped = 0
        self._url = url
        self._apply = apply
        self._position = from_offset
        self._end: int | None = None
        self._contact: float | None = None
        self._closing = threading.Event()
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
    def position(self) -> int:
        """The next offset: everything below it is applied."""
        return self._position

    @property
    def unread(self) -> int:
        """Offsets between the position and the log's end, as last heard; 0 before the end is known."""
        return 0 if self._end is None else max(0, self._end - self._position)

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
                    f"{self.topic} was not read whole within {timeout_s:.0f} s (at offset {self._position})"
                )

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
            place = TopicPartition(self.topic, 0)
            consumer.assign([place])
            consumer.seek(place, self._position)
            partition_count(consumer, self.topic)
            self._follow(consumer, place)
        finally:
            consumer.close(autocommit=False, timeout_ms=1_000)

    def _follow(self, consumer: KafkaConsumer, place: TopicPartition) -> None:
        target: int | None = None
        ask_at = 0.0
        while not self._closing.is_set():
            if time.monotonic() >= ask_at:
                self._ask_end(consumer, place)
                if target is None:
                    target = self._end
                ask_at = time.monotonic() + _CONTACT_S
            try:
                polled = consumer.poll(timeout_ms=100)
            except (OffsetOutOfRangeError, LogTruncationError) as error:
                raise log_lost(consumer, self.topic, 0, self._position) from error
            for record in polled.get(place, ()):
                self._contact = time.monotonic()
                self._take(record.offset, record.key, record.value)
            # Past what compaction removed at the end, too.
            self._position = max(self._position, consumer.position(place, timeout_ms=0) or 0)
            if target is not None and self._position >= target:
                self.caught_up.set()

    def _ask_end(self, consumer: KafkaConsumer, place: TopicPartition) -> None:
        try:
            self._end = consumer.end_offsets([place], timeout_ms=1_000)[place]
        except KafkaError:
            return  # seconds_since_contact grows, and health speaks of it
        self._contact = time.monotonic()

    def _take(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        try:
            self._apply(offset, key, value)
        except Exception as error:
            self.skipped += 1
            _log.error("record skipped", topic=self.topic, offset=offset, key=repr(key), reason=repr(error))
        self._position = offset + 1
