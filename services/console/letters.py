"""The last dead letters: which records could not be applied, and why."""

import time
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from services.console.fresh import Fresh
from vitrine.api.events.v1.events_pb2 import DeadLetter
from vitrine.errors import UnavailableError
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics

_SHOWN = 10


@dataclass(frozen=True)
class Box:
    """The newest letters first, and how many were ever written."""

    letters: list[DeadLetter]
    written: int


class Letters:
    """Reads the end of `dead-letters`, no more often than every few seconds."""

    def __init__(self, url: str, namespace: str, *, timeout_s: float) -> None:
        self._url, self._topic = url, qualify(namespace, topics.DEAD_LETTERS)
        self._timeout_s = timeout_s
        self._fresh = Fresh(self._look, what="Kafka", wait_s=3 * timeout_s)

    def last(self) -> Box:
        """Raises UnavailableError where Kafka is not set or does not answer."""
        if not self._url:
            raise UnavailableError("no Kafka is set; start the console with VITRINE_KAFKA_URL")
        return self._fresh.get()

    def _look(self) -> Box:
        wait_ms = int(self._timeout_s * 1000)
        with kafka.answering(self._url):
            consumer = KafkaConsumer(
                **kafka.parse_url(self._url).kwargs(),
                bootstrap_timeout_ms=wait_ms,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                allow_auto_create_topics=False,
            )
        try:
            return self._read(consumer, wait_ms)
        except KafkaError as error:
            raise UnavailableError(f"Kafka did not show {self._topic}: {error}") from error
        finally:
            consumer.close(autocommit=False, timeout_ms=500)

    def _read(self, consumer: KafkaConsumer, wait_ms: int) -> Box:
        if not consumer.partitions_for_topic(self._topic):
            return Box([], 0)
        place = TopicPartition(self._topic, 0)
        end = consumer.end_offsets([place], timeout_ms=wait_ms)[place]
        first = consumer.beginning_offsets([place], timeout_ms=wait_ms)[place]
        consumer.assign([place])
        consumer.seek(place, max(first, end - _SHOWN))
        letters: list[DeadLetter] = []
        deadline = time.monotonic() + self._timeout_s
        while (consumer.position(place, timeout_ms=wait_ms) or 0) < end:
            if time.monotonic() >= deadline:
                raise UnavailableError(f"Kafka did not show {self._topic} within {self._timeout_s:g} s")
            for record in consumer.poll(timeout_ms=100).get(place, ()):
                try:
                    letters.append(DeadLetter.FromString(record.value or b""))
                except DecodeError:
                    letters.append(DeadLetter(reason="this letter itself cannot be read"))
        return Box(letters[::-1][:_SHOWN], end)
