"""The owner of buckets: folds a batch of events into states, matches, and writes each bucket behind its fence.

No sockets, clocks or threads here: the store, the dead-letter sink and the failpoints are handed in, so that tests
drive every interleaving (tests/unit/test_matching_owner.py). services/matching/worker.py is the process around it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vitrine import placement
from vitrine.api.events.v1 import events_pb2
from vitrine.matching import record, state
from vitrine.matching.events import RecordError, bucket_of_record, parse_event
from vitrine.matching.match import Matcher
from vitrine.matching.state import UserState, fold
from vitrine.matching.store import DROP, BucketStore, BucketWrite, Mark, UserWrite


class Record(Protocol):
    """A record of `user-events`; `timestamp` is the broker's append time, milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class DeadLetterSink(Protocol):
    """Takes a record that cannot be applied; returns once it is safe, raises UnavailableError where it is not."""

    def __call__(self, partition: int, record: Record, reason: str) -> None: ...


class OtherLogError(RuntimeError):
    """Buckets hold offsets of another log: another Kafka cluster, or the topic with other partitions."""


class PartitionsError(ValueError):
    """The partitions of `user-events` are not ones that buckets lie whole in, or not those of the start."""


class ForeignStateError(RuntimeError):
    """A bucket holds a state that this process cannot read, and must not overwrite."""


@dataclass(slots=True)
class Outcome:
    """What one call of the owner did.

    seek:     partition -> offset to read on from, where a bucket turned out to be someone else's work
    commit:   partition -> next offset, for lag monitors
    appended: append times (ms) of the events applied and written, one an event
    lists:    lists written
    dead_letters: records sent to the dead letters
    rejected: buckets whose write was fenced off
    reloaded: buckets whose watermark was read again
    """

    seek: dict[int, int] = field(default_factory=dict)
    commit: dict[int, int] = field(default_factory=dict)
    appended: list[int] = field(default_factory=list)
    lists: int = 0
    dead_letters: int = 0
    rejected: int = 0
    reloaded: int = 0


@dataclass(slots=True)
class _Share:
    """One bucket's part of a batch: its events in offset order, and where the batch ends."""

    partition: int
    end: int
    events: list[tuple[Record, events_pb2.UserEvent]] = field(default_factory=list)


class Owner:
    """Owns the buckets of the partitions assigned to it, for one topic of one Kafka cluster.

    A bucket's watermark and token are in memory from its assignment on. Every record below its bucket's watermark
    is skipped, so that a batch may be given again. Every method may raise UnavailableError: forget everything
    (`revoked`), and ask `assigned` again later.

    partitions: of `user-events`, a power of two; PartitionsError where it is none
    failpoint:  called with a name at the places where tests kill the process
    """

    def __init__(
        self,
        store: BucketStore,
        matcher: Matcher,
        dead_letter: DeadLetterSink,
        *,
        cluster: str,
        partitions: int,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> None:
        if not 1 <= partitions <= placement.BUCKETS or partitions & (partitions - 1):
            raise PartitionsError(
                f"user-events has {partitions} partitions, not a power of two up to {placement.BUCKETS}: events"
                " would miss their buckets. Way out: a fresh VITRINE_NAMESPACE, and `vitrine topics create`"
            )
        self._store = store
        self._matcher = matcher
        self._dead_letter = dead_letter
        self._log = f"{cluster}/{partitions}"
        self._partitions = partitions
        self._failpoint = failpoint
        self._marks: dict[int, Mark] = {}
        self._positions: dict[int, int] = {}  # everything below is in the watermarks of the partition's buckets

    @property
    def partitions(self) -> list[int]:
        """The partitions owned."""
        return sorted(self._positions)

    def assigned(self, partitions: Iterable[int]) -> dict[int, int]:
        """Takes partitions over: reads their buckets' watermarks and returns where reading must start.

        Raises OtherLogError where a watermark is of another log, PartitionsError for a partition
        that was added since the start.
        """
        for partition in partitions:
            if partition >= self._partitions:
                raise PartitionsError(
                    f"user-events has got a partition {partition} beside its {self._partitions}: keys now go"
                    " elsewhere than their history. Way out: a fresh VITRINE_NAMESPACE, the events replayed into it"
                )
            buckets = self._buckets(partition)
            self._load(buckets)
            self._positions[partition] = min(self._marks[bucket].events for bucket in buckets)
        return {partition: self._positions[partition] for partition in partitions}

    def revoked(self, partitions: Iterable[int]) -> None:
        """Forgets partitions; what they wrote stands."""
        for partition in partitions:
            self._positions.pop(partition, None)
            for bucket in self._buckets(partition):
                self._marks.pop(bucket, None)

    def batch(self, records: Mapping[int, Sequence[Record]]) -> Outcome:
        """Applies records of owned partitions, each partition's consecutive and in offset order.

        Dead letters are acknowledged before any watermark passes their records. Each touched bucket is written
        whole or not at all; a bucket that another owner wrote meanwhile is reloaded, and its partition read again
        from `Outcome.seek`. Raises ForeignStateError for a state that cannot be read.
        """
        outcome = Outcome()
        shares = self._sort_out(records, outcome)
        if outcome.dead_letters:
            self._failpoint("after-dead-letters")
        states, touched = self._fold(shares)
        encoded = self._encoded(touched)
        writes = [
            BucketWrite(
                bucket,
                self._marks[bucket].token,
                self._log,
                share.end,
                len(share.events),
                [encoded[user_id] for user_id in states.get(bucket, ())],
            )
            for bucket, share in shares.items()
        ]
        ends = {partition: batch[-1].offset + 1 for partition, batch in records.items() if batch}
        self._positions |= ends  # unless a bucket turns out to be behind
        self._failpoint("before-write")
        written = self._write(writes, outcome)
        self._failpoint("after-write")
        for write in written:
            outcome.lists += len(write.users)
            outcome.appended += [kept.timestamp for kept, _ in shares[write.bucket].events]
        outcome.commit = {p: end for p, end in ends.items() if p not in outcome.seek}
        self._failpoint("before-commit")
        return outcome

    def idle(self) -> Outcome:
        """Checks every owned bucket's token, and moves the watermarks of those without news to their partition's
        position, so that a restart does not read far back."""
        outcome = Outcome()
        behind, settled = [], []
        for partition, position in self._positions.items():
            for bucket in self._buckets(partition):
                mark = self._marks[bucket]
                if mark.events < position:
                    behind.append(BucketWrite(bucket, mark.token, self._log, position, 0))
                else:
                    settled.append(bucket)
        for bucket, mark in zip(settled, self._store.read_marks(settled), strict=True):
            if mark.token != self._marks[bucket].token:
                self._reload(bucket, outcome)
        self._write(behind, outcome)
        return outcome

    def _buckets(self, partition: int) -> range:
        return range(partition, placement.BUCKETS, self._partitions)

    def _sort_out(self, records: Mapping[int, Sequence[Record]], outcome: Outcome) -> dict[int, _Share]:
        """The batch by bucket, without what is below the watermarks; dead letters are sent."""
        shares: dict[int, _Share] = {}
        for partition, batch in records.items():
            for each in batch:
                bucket, placed = bucket_of_record(each.key, partition, self._partitions)
                if each.offset < self._marks[bucket].events:
                    continue
                share = shares.get(bucket)
                if share is None:
                    share = shares[bucket] = _Share(partition, batch[-1].offset + 1)
                try:
                    event = parse_event(each.key, each.value)
                    if not placed:
                        raise RecordError(
                            f"key: user {event.user_id} does not belong to partition {partition} of"
                            f" {self._partitions}: producers must partition by murmur2"
                            " (librdkafka: partitioner=murmur2_random)"
                        )
                except RecordError as error:
                    self._dead_letter(partition, each, str(error))
                    outcome.dead_letters += 1
                else:
                    share.events.append((each, event))
        return shares

    def _fold(self, shares: Mapping[int, _Share]) -> tuple[dict[int, list[int]], list[UserState]]:
        """(users of each bucket, their states with the batch's events folded in)."""
        users = {
            bucket: list(dict.fromkeys(event.user_id for _, event in share.events))
            for bucket, share in shares.items()
            if share.events
        }
        stored = self._store.read_states(users) if users else {}
        states: dict[int, UserState] = {}
        for bucket, ids in users.items():
            for user_id in ids:
                held = stored.get(user_id)
                states[user_id] = UserState(user_id) if held is None else _decode(held, bucket, user_id)
            for kept, event in shares[bucket].events:
                fold(states[event.user_id], event, kept.timestamp, kept.offset, self._matcher.table)
        return users, list(states.values())

    def _encoded(self, touched: Sequence[UserState]) -> dict[int, UserWrite]:
        """What is written of each user: the state, and a list made from it; a deleted user's list goes."""
        living = [user for user in touched if not user.is_tombstone]
        lists = self._matcher.lists(living) if living else []
        for user in living:
            user.listed = user.revision
        records = record.encode_many(lists, self._matcher.catalog)
        encoded = {
            user.user_id: (user.user_id, state.encode(user), stored)
            for user, stored in zip(living, records, strict=True)
        }
        return encoded | {u.user_id: (u.user_id, state.encode(u), DROP) for u in touched if u.is_tombstone}

    def _write(self, writes: Sequence[BucketWrite], outcome: Outcome) -> list[BucketWrite]:
        """Those writes that went through; the buckets of the others are reloaded."""
        tokens = self._store.write(writes, lambda: self._failpoint("mid-buckets"))
        written = []
        for write, token in zip(writes, tokens, strict=True):
            if token is None:
                outcome.rejected += 1
                self._reload(write.bucket, outcome)
            else:
                self._marks[write.bucket] = Mark(token, self._log, write.events)
                written.append(write)
        return written

    def _reload(self, bucket: int, outcome: Outcome) -> None:
        """Reads a bucket's watermark again, and its partition from there on where that is behind."""
        self._load([bucket])
        outcome.reloaded += 1
        partition = bucket % self._partitions
        if self._marks[bucket].events < self._positions[partition]:
            self._positions[partition] = outcome.seek[partition] = self._marks[bucket].events

    def _load(self, buckets: Sequence[int]) -> None:
        for bucket, mark in zip(buckets, self._store.read_marks(buckets), strict=True):
            if mark.token and mark.log != self._log:
                raise OtherLogError(
                    f"bucket {bucket} holds offsets of {_named(mark.log)}, which mean nothing in"
                    f" {_named(self._log)}. Way out: a fresh VITRINE_NAMESPACE, and the events replayed into it"
                )
            self._marks[bucket] = mark


def _named(log: str) -> str:
    cluster, _, partitions = log.rpartition("/")
    return f"Kafka cluster {cluster}, user-events of {partitions} partitions"


def _decode(held: bytes, bucket: int, user_id: int) -> UserState:
    try:
        found = state.decode(held)
        if found.user_id != user_id:
            raise RecordError(f"it is of user {found.user_id}")
    except RecordError as error:
        raise ForeignStateError(
            f"the state of user {user_id} in bucket {bucket} cannot be read, and is left as it is: {error}. Way"
            " out: a worker that knows its schema, or delete the bucket's keys, and its events are read again"
        ) from error
    return found
