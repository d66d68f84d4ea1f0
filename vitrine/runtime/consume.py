"""The loop that reads one topic in a consumer group and hands batches to a handler, from offsets it keeps.

Where reading starts is the handler's to say (watermarks in Redis), never Kafka's: a log that no longer has that
record ends the loop with LogLostError. The handler's methods run on the thread that called `run`, one at a
time; `revoked` may run on kafka-python's network thread while that thread waits, so they never overlap.

A handler says "not now" by raising UnavailableError or by letting out redis-py's errors of a server that is
away. The loop then reads nothing, stays in the group, and about once a second asks `assigned` again for all its
partitions; when that answers, it reads on from there. That is the only way back: what a half-done batch left
behind is the watermarks' business.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import structlog
from kafka import ConsumerRebalanceListener, KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    FencedInstanceIdError,
    KafkaError,
    LogTruncationError,
    OffsetOutOfRangeError,
    RetriableError,
)

from vitrine.errors import UnavailableError
from vitrine.runtime.backlog import Backlog
from vitrine.runtime.kafka import admin, answering, log_lost, parse_url, partition_count
from vitrine.runtime.readings import kafka_contact, plain_topic
from vitrine.runtime.redis import AWAY

_log = structlog.get_logger(__name__)

_NOT_NOW: tuple[type[Exception], ...] = (UnavailableError, *AWAY)


class MemberTakenError(RuntimeError):
    """A younger process has this loop's member name; this one must not go on."""


class Record(Protocol):
    """What the loop hands over: kafka-python's ConsumerRecord. `timestamp` is the append time, milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Handler(Protocol):
    """What is done with the records; see the module for who calls when."""

    def assigned(self, partitions: list[int]) -> Mapping[int, int]:
        """These partitions are this loop's: their next offsets. May take its time; heartbeats go on."""

    def revoked(self, partitions: list[int]) -> None:
        """These are no longer; also where their `assigned` failed. Short, no calls back into the loop."""

    def batch(self, records: Mapping[int, Sequence[Record]]) -> None:
        """Records in offset order, by partition."""

    def idle(self) -> None:
        """About once a second, also while records flow; not while the loop waits for `assigned`."""


class ConsumerLoop:
    """Reads `topic` as a member of `group`; see the module.

    member:           static membership: a restart under the same name gets its partitions back at once, while
                      another live process of that name ends this one. Empty: an ordinary member
    session_timeout_ms: how long a member may be silent before its partitions go to others
    max_poll_records: the longest batch
    fetch_max_wait_ms: how long a broker may hold an unanswered fetch; not a delay of records

    With `memory://` there is no group: the loop takes every partition.
    """

    def __init__(
        self,
        url: str,
        topic: str,
        group: str,
        handler: Handler,
        *,
        member: str = "",
        session_timeout_ms: int = 30_000,
        heartbeat_interval_ms: int = 1_000,
        max_poll_records: int = 2_000,
        fetch_max_wait_ms: int = 250,
        poll_ms: int = 100,
        idle_s: float = 1.0,
    ) -> None:
        self.topic = topic
        self.group = group
        self._url = url
        self._config = parse_url(url)
        self._handler = handler
        self._member = member
        self._poll_ms = poll_ms
        self._idle_s = idle_s
        self._settings: dict[str, Any] = self._config.kwargs() | {
            "auto_offset_reset": "none",
            "enable_auto_commit": False,
            "max_poll_records": max_poll_records,
            # The in-memory broker answers a waiting fetch only when its time is up, records or not.
            "fetch_max_wait_ms": 20 if self._config.memory else fetch_max_wait_ms,
            "allow_auto_create_topics": self._config.memory,
        }
        if not self._config.memory:
            self._settings |= {
                "group_id": group,
                "group_instance_id": member or None,
                "session_timeout_ms": session_timeout_ms,
                "heartbeat_interval_ms": heartbeat_interval_ms,
                "partition_assignment_strategy": [CooperativeStickyAssignor],
            }
        self._consumer: KafkaConsumer | None = None
        self._stop = threading.Event()
        self._asked_to_pause = False
        self._waiting = False  # the handler said "not now"
        self._owned: set[int] = set()
        self._unplaced: set[int] = set()  # owned, but the handler has not said yet from where
        self._told: set[int] = set()  # owned, and the handler knows: `assigned` was called
        self._commits: dict[int, int] = {}
        self.backlog = Backlog()
        self._contact = time.monotonic()

    # What others ask, from any thread.

    def stop(self) -> None:
        """Ends `run` after the batch in hand; from any thread or a signal handler."""
        self._stop.set()

    def pause(self) -> None:
        """Reads nothing until `resume`; membership, `idle` and rebalances go on."""
        self._asked_to_pause = True

    def resume(self) -> None:
        """Undoes `pause`."""
        self._asked_to_pause = False

    @property
    def paused(self) -> bool:
        """Whether nothing is read: asked for, or because the handler is unavailable."""
        return self._asked_to_pause or self._waiting

    @property
    def partitions(self) -> list[int]:
        """The partitions that are being read from where the handler said."""
        return sorted(self._owned - self._unplaced)

    @property
    def seconds_since_contact(self) -> float:
        """Seconds since Kafka last answered; asked about once a second."""
        return time.monotonic() - self._contact

    # What the handler may call from its methods.

    def seek(self, partition: int, offset: int) -> None:
        """The next record of `partition` to hand over is `offset`."""
        self._client().seek(self._place(partition), offset)
        self.backlog.placed(partition, offset)

    def commit(self, offsets: Mapping[int, int]) -> None:
        """The next offsets of these partitions, for lag monitors; told to Kafka about once a second."""
        self._commits.update({p: offset for p, offset in offsets.items() if p in self._owned})

    # The loop.

    def run(self) -> None:
        """Reads until `stop`.

        Raises LogLostError (see there), NotFoundError where the topic does not exist, UnavailableError where no
        broker answers at the start, MemberTakenError where another process took the same member name, and
        whatever the handler raises. A broker lost on the way is waited for.
        """
        consumer = self._connect()
        kafka_contact.add(self._read_contact)
        try:
            next_idle = time.monotonic()
            while not self._stop.is_set():
                self._apply_pauses(consumer)
                records = self._poll(consumer)
                if records:
                    self._contact = time.monotonic()
                try:
                    if self._unplaced and not self._asked_to_pause and self._may_ask(next_idle):
                        self._ask_where(consumer)
                    if records:
                        self._hand_over(records)
                    if time.monotonic() >= next_idle and not self._waiting:
                        self._handler.idle()
                except _NOT_NOW as error:
                    self._wait_for_handler(error)
                if time.monotonic() >= next_idle:
                    self._send_commits(consumer)
                    self._measure(consumer)
                    next_idle = time.monotonic() + self._idle_s
            self._leave(consumer)
        except FencedInstanceIdError as error:
            raise MemberTakenError(
                f"another live process is member {self._member!r} of group {self.group}: give each its own name"
            ) from error
        finally:
            self._consumer = None
            kafka_contact.remove(self._read_contact)
            consumer.close(autocommit=False, timeout_ms=2_000)

    def _hand_over(self, records: dict[int, list[Record]]) -> None:
        for partition, batch in records.items():
            self.backlog.offered(partition, batch[0].timestamp, batch[-1].offset + 1)
        self._handler.batch(records)
        for partition, batch in records.items():
            self.backlog.applied(partition, batch[-1].timestamp, batch[-1].offset + 1)

    def _leave(self, consumer: KafkaConsumer) -> None:
        """Out of the group after an orderly stop, so that the others have the partitions at once.

        kafka-python leaves for members without a name alone. By the member's id as well as its name, lest a process
        that has taken the name over is thrown out.
        """
        if not self._member or self._config.memory:
            return
        try:
            with admin(self._url, timeout_s=2.0) as client:
                client.remove_group_members(
                    self.group, [MemberToRemove(consumer.group_metadata().member_id, self._member)]
                )
        except (KafkaError, UnavailableError) as error:
            _log.warning("the group was not left; others wait for the session's end", reason=str(error))

    def _connect(self) -> KafkaConsumer:
        with answering(self._url):
            consumer = KafkaConsumer(**self._settings)
        try:
            count = partition_count(consumer, self.topic)
            if self._config.memory:
                consumer.assign([self._place(p) for p in range(count)])
                self._take(consumer, range(count))
            else:
                consumer.subscribe([self.topic], listener=_Listener(self))
        except BaseException:
            consumer.close(autocommit=False, timeout_ms=2_000)
            raise
        self._consumer = consumer
        self._contact = time.monotonic()
        return consumer

    def _poll(self, consumer: KafkaConsumer) -> dict[int, list[Record]]:
        try:
            polled = consumer.poll(timeout_ms=self._poll_ms)
        except OffsetOutOfRangeError as error:
            ((place, wanted),) = error.args[0].items()
            raise log_lost(consumer, self.topic, place.partition, wanted) from error
        except LogTruncationError as error:
            place = next(iter(error.divergent_offsets))
            raise log_lost(consumer, self.topic, place.partition, self._commits.get(place.partition, -1)) from error
        except RetriableError as error:
            _log.warning("waiting for Kafka", topic=self.topic, reason=str(error))
            self._stop.wait(0.1)
            return {}
        return {place.partition: records for place, records in polled.items()}

    def _take(self, consumer: KafkaConsumer, partitions: Iterable[int]) -> None:
        """New partitions: held still, at a place that is never read from, until the handler has said where."""
        for partition in partitions:
            consumer.seek(self._place(partition), 0)
            consumer.pause(self._place(partition))
            self._owned.add(partition)
            self._unplaced.add(partition)

    def _give(self, partitions: set[int]) -> None:
        told = partitions & self._told
        self._owned -= partitions
        self._unplaced -= partitions
        self._told -= partitions
        for partition in partitions:
            self._commits.pop(partition, None)
        self.backlog.gone(partitions)
        if told:
            self._handler.revoked(sorted(told))

    def _may_ask(self, next_idle: float) -> bool:
        return not self._waiting or time.monotonic() >= next_idle

    def _ask_where(self, consumer: KafkaConsumer) -> None:
        asked = sorted(self._unplaced)
        self._told |= self._unplaced
        offsets = self._handler.assigned(asked)
        for partition in asked:
            consumer.seek(self._place(partition), offsets[partition])
            self._commits[partition] = offsets[partition]
            self.backlog.placed(partition, offsets[partition])
        self._unplaced -= set(asked)
        if self._waiting:
            self._waiting = False
            _log.info("reading again", topic=self.topic, partitions=asked)

    def _wait_for_handler(self, error: Exception) -> None:
        if not self._waiting:
            _log.warning("reading nothing until the handler is available", topic=self.topic, reason=str(error))
        self._waiting = True
        self._unplaced = set(self._owned)

    def _apply_pauses(self, consumer: KafkaConsumer) -> None:
        """Makes kafka-python's pauses what they should be: the unplaced partitions, or all."""
        still = {self._place(p) for p in (self._owned if self._asked_to_pause else self._unplaced)}
        assigned = consumer.assignment()
        paused = consumer.paused()
        consumer.pause(*(still & assigned) - paused)
        consumer.resume(*(paused & assigned) - still)

    def _send_commits(self, consumer: KafkaConsumer) -> None:
        """Sent again even where nothing moved: an answer is how kafka-python learns that its name was taken.

        (It only logs a heartbeat's, and would read on for ever beside the new member.)
        """
        if self._commits and not self._config.memory:
            consumer.commit_async({self._place(p): OffsetAndMetadata(o, "", -1) for p, o in self._commits.items()})

    def _measure(self, consumer: KafkaConsumer) -> None:
        """One small question to the broker: proves contact and tells the lag."""
        asked = sorted(self._owned) or [0]
        asked_at = time.time()
        try:
            ends = consumer.end_offsets([self._place(p) for p in asked], timeout_ms=1_000)
            for p in self.partitions:
                self.backlog.passed(p, consumer.position(self._place(p), timeout_ms=0) or 0)
        except KafkaError:
            return  # seconds_since_contact grows, and health speaks of it
        self.backlog.ends({place.partition: end for place, end in ends.items()}, asked_at)
        self._contact = time.monotonic()

    def _read_contact(self) -> dict[str, float]:
        return {plain_topic(self.topic): self.seconds_since_contact}

    def _place(self, partition: int) -> TopicPartition:
        return TopicPartition(self.topic, partition)

    def _client(self) -> KafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("the loop is not running")
        return self._consumer


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """Rebalances, on kafka-python's network thread while the loop's thread waits in poll."""

    def __init__(self, loop: ConsumerLoop) -> None:
        self._loop = loop

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        partitions = sorted(place.partition for place in assigned)
        _log.info("partitions assigned", topic=self._loop.topic, partitions=partitions)
        self._loop._take(self._loop._client(), partitions)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        partitions = {place.partition for place in revoked}
        if partitions:
            _log.info("partitions revoked", topic=self._loop.topic, partitions=sorted(partitions))
            self._loop._give(partitions)

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        self.on_partitions_revoked(lost)
