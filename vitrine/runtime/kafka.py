"""Kafka by URL: clients with this system's settings, and the few questions asked of a cluster.

`kafka_url.py` has the URL's forms. The in-memory broker of the embedded stack speaks an older protocol and cannot
create topics. Records are read by `consume.ConsumerLoop` and `tail.Tail`; docs/streaming.md tells the whole story.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError

from vitrine import trace_context
from vitrine.api.events.v1 import events_pb2
from vitrine.errors import NotFoundError, UnavailableError
from vitrine.runtime.kafka_url import parse_url
from vitrine.runtime.redact import redact_url

__all__ = [
    "DEAD_LETTER_BYTES",
    "DeadLetters",
    "LogLostError",
    "admin",
    "answering",
    "cluster_id",
    "key_of",
    "log_lost",
    "parse_url",
    "partition_count",
    "producer",
    "wait_ready",
]

# Of a key, and of a value: a letter must fit wherever its record did, compressed as that may have been.
DEAD_LETTER_BYTES = 64 * 1024


def key_of(id: int) -> bytes:
    """The record key of an id: decimal ASCII."""
    return b"%d" % id


def producer(url: str, *, linger_ms: int = 1, **overrides: Any) -> KafkaProducer:
    """A producer whose records survive (acks=all, idempotent) and keep the order of their keys.

    Partitions by murmur2 of the key, as every producer of these topics must. `linger_ms` gathers a batch for
    that long; `overrides` are kafka-python's. Raises UnavailableError where no broker answers.
    """
    config = parse_url(url)
    settings = config.kwargs() | {"acks": "all", "enable_idempotence": True, "linger_ms": linger_ms}
    with answering(url):
        return KafkaProducer(**(settings | overrides))


@contextlib.contextmanager
def admin(url: str, *, timeout_s: float = 10.0) -> Iterator[KafkaAdminClient]:
    """An admin client for a while. Raises UnavailableError where no broker answers within `timeout_s`."""
    config = parse_url(url).kwargs()
    config.pop("metrics_enabled")  # the admin client has no such switch
    with answering(url):
        client = KafkaAdminClient(**config, bootstrap_timeout_ms=int(timeout_s * 1000))
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def answering(url: str) -> Iterator[None]:
    """Turns kafka-python's errors of reaching a broker into an UnavailableError that names the URL."""
    try:
        yield
    except (KafkaError, OSError) as error:
        raise UnavailableError(f"Kafka does not answer at {redact_url(url)}: {error}") from error


def wait_ready(url: str, *, timeout_s: float = 30.0) -> None:
    """Returns once the cluster answers a metadata request. Raises UnavailableError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with admin(url, timeout_s=max(0.5, min(5.0, deadline - time.monotonic()))) as client:
                client.describe_cluster()
                return
        except (UnavailableError, KafkaError) as error:
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"Kafka at {redact_url(url)} was not ready after {timeout_s:.0f} s: {error}"
                ) from error
            time.sleep(0.1)


def cluster_id(url: str, *, timeout_s: float = 10.0) -> str:
    """The cluster's id. Offsets mean something within one cluster only, so watermarks carry it."""
    with admin(url, timeout_s=timeout_s) as client, answering(url):
        found = client.describe_cluster()["cluster_id"]
    if not found:
        raise UnavailableError(f"the cluster at {redact_url(url)} has no id")
    return str(found)


def partition_count(consumer: KafkaConsumer, topic: str, *, timeout_s: float = 5.0) -> int:
    """How many partitions `topic` has. Raises NotFoundError where it is still missing after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        # Once asked about, a missing topic is an error of every metadata answer, not only of the question's.
        with contextlib.suppress(KafkaTimeoutError, UnknownTopicOrPartitionError):
            if partitions := consumer.partitions_for_topic(topic):
                return len(partitions)
            consumer.end_offsets([TopicPartition(topic, 0)], timeout_ms=200)  # the in-memory broker now makes it
        if time.monotonic() >= deadline:
            raise NotFoundError(f"topic {topic} does not exist; `vitrine topics create` makes it")
        time.sleep(0.05)


class LogLostError(RuntimeError):
    """The log no longer has (or never had) the record that is to be read next: state and log do not fit."""

    def __init__(self, topic: str, partition: int, wanted: int, available: tuple[int, int] | None) -> None:
        self.topic = topic
        self.partition = partition
        self.wanted = wanted
        self.available = available
        has = "offsets unknown" if available is None else f"offsets {available[0]} to {available[1]}"
        super().__init__(
            f"{topic}, partition {partition}: wanted offset {wanted}, but the log has {has}. Records between "
            "were deleted, or this is another cluster or a topic made anew. Way out: rebuild the state from the "
            "inputs under a fresh VITRINE_NAMESPACE; raise the topic's retention.ms if records expired unread."
        )


def log_lost(consumer: KafkaConsumer, topic: str, partition: int, wanted: int) -> LogLostError:
    """The LogLostError of a failed read, with the offsets that the log has."""
    place = TopicPartition(topic, partition)
    try:
        available = (
            consumer.beginning_offsets([place], timeout_ms=5_000)[place],
            consumer.end_offsets([place], timeout_ms=5_000)[place],
        )
    except KafkaError:
        available = None
    return LogLostError(topic, partition, wanted, available)


class DeadLetters:
    """Sends records that cannot be applied to the dead-letter topic, keyed by their origin.

    The same record twice is the same key, so compaction keeps one.
    """

    def __init__(self, producer: KafkaProducer, topic: str, *, timeout_s: float = 30.0) -> None:
        self._producer = producer
        self._topic = topic
        self._timeout_s = timeout_s

    def send(
        self,
        topic: str,
        partition: int,
        offset: int,
        append_time_ms: int,
        key: bytes | None,
        value: bytes | None,
        reason: str,
    ) -> None:
        """Returns when the broker has it. Raises UnavailableError where it does not within the timeout."""
        letter = events_pb2.DeadLetter(
            topic=topic,
            partition=partition,
            offset=offset,
            append_time_ms=append_time_ms,
            key=(key or b"")[:DEAD_LETTER_BYTES],
            value=(value or b"")[:DEAD_LETTER_BYTES],
            reason=reason,
        )
        try:
            self._producer.send(
                self._topic,
                key=f"{topic}/{partition}/{offset}".encode(),
                value=letter.SerializeToString(),
                headers=trace_context.headers(),
            ).get(timeout=self._timeout_s)
        except KafkaError as error:
            raise UnavailableError(f"a dead letter could not be written to {self._topic}: {error}") from error
