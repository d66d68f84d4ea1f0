"""The owner of buckets against a simple model: random interleavings of owners, zombies, kills and failovers."""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matching_kit import START_MS, LogRecord, MemoryStore, random_event, replay, small_matcher

from vitrine.matching.match import Matcher
from vitrine.matching.owner import ForeignStateError, OtherLogError, Owner, PartitionsError, Record
from vitrine.matching.store import BucketWrite
from vitrine.placement import bucket_of, murmur2

PARTITIONS = 2
FAILPOINTS = ("after-dead-letters", "before-write", "mid-buckets", "after-write", "before-commit")
USERS = tuple(range(1, 9))
POISON = (b"", b"\xff\xff", None, b"\x08\x05")

matcher = cache(small_matcher)


class KilledError(BaseException):
    """Stands for SIGKILL at a failpoint."""


@dataclass(frozen=True)
class Step:
    """What happens next. kind: "send", "take", "batch", "idle", "copy" or "failover".

    who:    the owner, or for "send" the user
    count:  records read, or sent; for "send" of 0 a poison message
    other:  the partition taken; for "batch" another owner, who acts between this one's read and its write, or none
    killed: the failpoint at which the owner dies, "" for none
    """

    kind: str
    who: int = 0
    count: int = 1
    other: int = 0
    killed: str = ""


steps = st.one_of(
    st.builds(Step, st.just("send"), st.sampled_from(USERS), st.integers(0, 4)),
    st.builds(Step, st.just("take"), st.integers(0, 2), other=st.integers(0, PARTITIONS - 1)),
    st.builds(
        Step,
        st.just("batch"),
        st.integers(0, 2),
        st.integers(1, 6),
        st.integers(0, 3),
        st.sampled_from(("", "", *FAILPOINTS)),
    ),
    st.builds(Step, st.just("idle"), st.integers(0, 2)),
    st.builds(Step, st.sampled_from(("copy", "failover"))),
)


@dataclass
class World:
    """A log, a store, the dead letters, and three processes that each believe what they last heard."""

    store: MemoryStore
    matcher: Matcher
    logs: list[list[LogRecord]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    letters: set[tuple[int, int]] = field(default_factory=set)
    valid: int = 0
    poisoned: set[tuple[int, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.processes = [Process(self) for _ in range(3)]
        self.copied = self.store.copy()

    def send(self, user_id: int, count: int) -> None:
        key = b"%d" % user_id
        partition = bucket_of(user_id) % PARTITIONS
        log = self.logs[partition]
        append_ms = START_MS + sum(map(len, self.logs)) * 1_000
        if count == 0:
            self.poisoned.add((partition, len(log)))
            log.append(LogRecord(len(log), append_ms, key, POISON[len(log) % len(POISON)]))
        for i in range(count):
            event = random_event(self.rng, self.matcher.catalog, user_id, append_ms - 500 * i)
            log.append(LogRecord(len(log), append_ms + i, key, event.SerializeToString()))
            self.valid += 1

    def run(self, step: Step) -> None:
        if step.kind == "send":
            self.send(step.who, step.count)
        elif step.kind == "copy":
            self.copied = self.store.copy()
        elif step.kind == "failover":
            self.store.restore(self.copied)
        elif step.kind == "take":
            self.processes[step.who].take(step.other)
        elif step.kind == "idle":
            self.processes[step.who].follow(self.processes[step.who].owner.idle().seek)
        else:
            self.processes[step.who].batch(step)

    def finish(self) -> None:
        """A last process takes everything over and reads to the end."""
        last = Process(self)
        for partition in range(PARTITIONS):
            last.take(partition)
        while any(last.positions[p] < len(self.logs[p]) for p in range(PARTITIONS)):
            last.batch(Step("batch", count=5))
        last.follow(last.owner.idle().seek)

    def check(self) -> None:
        """Bytes equal to the oracle's, nothing counted twice or lost, every poison message a dead letter."""
        expected = replay(self.logs, self.matcher)
        assert {user: (self.store.states[user], self.store.lists[user]) for user in self.store.states} == expected
        assert sum(mark.applied for mark in self.store.marks.values()) == self.valid
        assert self.letters == self.poisoned


class Process:
    """An owner and the consumer's positions, as the loop keeps them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.at_failpoint = lambda name: None
        self.start()

    def start(self) -> None:
        self.positions: dict[int, int] = {}
        self.owner = Owner(
            self.world.store,
            self.world.matcher,
            self.dead_letter,
            cluster="k1",
            partitions=PARTITIONS,
            failpoint=lambda name: self.at_failpoint(name),
        )

    def dead_letter(self, partition: int, record: Record, reason: str) -> None:
        assert reason
        self.world.letters.add((partition, record.offset))

    def take(self, partition: int) -> None:
        self.positions |= self.owner.assigned([partition])

    def follow(self, seek: dict[int, int]) -> None:
        self.positions |= seek

    def batch(self, step: Step) -> None:
        def at_failpoint(name: str) -> None:
            if name == "before-write" and step.other < 3 and self.world.processes[step.other] is not self:
                self.world.processes[step.other].batch(Step("batch", count=step.count, other=3))
            if name == step.killed:
                raise KilledError

        records = {p: self.world.logs[p][at : at + step.count] for p, at in self.positions.items()}
        records = {p: batch for p, batch in records.items() if batch}
        if not records:
            return
        self.at_failpoint = at_failpoint
        try:
            outcome = self.owner.batch(records)
        except KilledError:
            self.start()
            return
        finally:
            self.at_failpoint = lambda name: None
        self.positions |= {p: batch[-1].offset + 1 for p, batch in records.items()}
        self.follow(outcome.seek)
        for partition, offset in outcome.commit.items():
            assert self.positions[partition] == offset


def consistent(script: list[Step], *, fenced: bool = True) -> None:
    world = World(MemoryStore(fenced=fenced), matcher())
    for step in script:
        world.run(step)
    world.finish()
    world.check()


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=40))
def test_any_interleaving_of_owners_kills_and_failovers_ends_as_one_undisturbed_pass(script):
    consistent(script)


ZOMBIE = [
    Step("send", 1, 2),
    Step("take", 0, other=bucket_of(1) % PARTITIONS),
    Step("take", 1, other=bucket_of(1) % PARTITIONS),
    Step("batch", 0, 1, other=3),
    Step("batch", 1, 2, other=0),  # owner 0 writes between owner 1's read and its write
]


def test_a_zombies_write_is_rejected_and_its_bucket_reloaded():
    consistent(ZOMBIE)


def test_without_the_fence_the_model_sees_the_zombie():
    with pytest.raises(AssertionError):
        consistent(ZOMBIE, fenced=False)


def owned(store: MemoryStore, **changes) -> Owner:
    owner = Owner(
        store, matcher(), lambda partition, record, reason: None, **({"cluster": "k1", "partitions": 2} | changes)
    )
    owner.assigned(range(owner._partitions))
    return owner


def sent(user_id: int, count: int = 1) -> tuple[dict[int, list[LogRecord]], int]:
    world = World(MemoryStore(), matcher())
    world.send(user_id, count)
    partition = bucket_of(user_id) % PARTITIONS
    return {partition: world.logs[partition]}, partition


def test_idle_buckets_follow_their_partition_so_that_a_restart_reads_little():
    store = MemoryStore()
    owner = owned(store)
    records, partition = sent(1, 4)
    owner.batch(records)
    assert owned(store).assigned([partition]) == {partition: 0}
    owner.idle()
    assert owned(store).assigned([partition]) == {partition: 4}


def test_an_idle_owner_notices_that_another_wrote_its_bucket():
    store = MemoryStore()
    first, second = owned(store), owned(store)
    records, _ = sent(1, 4)
    second.batch(records)
    outcome = first.idle()
    assert (outcome.reloaded, outcome.seek) == (1, {})  # the other is ahead: nothing to read again


def test_an_idle_owner_reads_again_what_a_failover_lost():
    store = MemoryStore()
    owner = owned(store)
    records, partition = sent(1, 4)
    owner.batch({partition: records[partition][:2]})
    before = store.copy()
    owner.batch({partition: records[partition][2:]})
    store.restore(before)
    assert owner.idle().seek == {partition: 2}


@pytest.mark.parametrize("other", [{"cluster": "k2"}, {"partitions": 4}], ids=["cluster", "partitions"])
def test_watermarks_of_another_log_are_refused_with_the_way_out(other):
    store = MemoryStore()
    owned(store, cluster="k1").batch(sent(1)[0])
    with pytest.raises(OtherLogError, match="fresh VITRINE_NAMESPACE"):
        owned(store, **other)


@pytest.mark.parametrize("partitions", [0, 3, 2048])
def test_partitions_that_would_split_buckets_are_refused_with_the_way_out(partitions):
    with pytest.raises(PartitionsError, match="fresh VITRINE_NAMESPACE"):
        owned(MemoryStore(), partitions=partitions)


def test_a_partition_added_to_a_running_topic_is_refused_before_it_shares_buckets():
    owner = owned(MemoryStore())
    with pytest.raises(PartitionsError, match=f"got a partition {PARTITIONS} "):
        owner.assigned([PARTITIONS])
    assert owner.partitions == list(range(PARTITIONS))


def test_a_state_of_a_newer_schema_is_never_overwritten():
    store = MemoryStore()
    owner = owned(store)
    records, _ = sent(1, 2)
    owner.batch(records)
    newer = store.states[1][:4] + b"\x63\x00" + store.states[1][6:]
    store.states[1] = newer
    later = {p: [LogRecord(r.offset + 2, r.timestamp, r.key, r.value) for r in rs] for p, rs in records.items()}
    with pytest.raises(ForeignStateError, match="schema 99"):
        owner.batch(later)
    assert store.states[1] == newer


def test_a_record_in_a_partition_that_does_not_own_its_user_is_a_dead_letter():
    reasons = []
    store = MemoryStore()
    owner = Owner(
        store, matcher(), lambda p, record, reason: reasons.append(reason), cluster="k1", partitions=PARTITIONS
    )
    owner.assigned([0, 1])
    records, partition = sent(1)
    outcome = owner.batch({1 - partition: records[partition]})
    assert outcome.dead_letters == 1
    assert "murmur2_random" in reasons[0]
    assert not store.states
    assert store.marks[1 - partition].events == 1  # counted under the partition's first bucket


def test_a_dead_letter_that_is_not_acknowledged_keeps_the_watermark_where_it_is():
    def refuse(partition: int, record: Record, reason: str) -> None:
        raise ConnectionError

    store = MemoryStore()
    owner = Owner(store, matcher(), refuse, cluster="k1", partitions=1)
    owner.assigned([0])
    with pytest.raises(ConnectionError):
        owner.batch({0: [LogRecord(0, START_MS, b"1", b"\xff")]})
    assert not store.marks


def test_a_buckets_share_of_a_batch_is_written_by_one_call():
    writes: list[BucketWrite] = []

    class Recording(MemoryStore):
        def write(self, batch, between=lambda: None):
            writes.extend(batch)
            return super().write(batch, between)

    owner = owned(Recording(), partitions=1)
    key = b"1"
    records, partition = sent(1, 3)
    owner.batch({0: records[partition]})
    assert [(w.bucket, w.applied, len(w.users)) for w in writes] == [((murmur2(key) & 0x7FFFFFFF) % 1024, 3, 1)]


def test_many_buckets_in_one_batch_end_as_the_offline_pass():
    rng = np.random.default_rng(3)
    log = []
    for offset in range(600):
        user_id = int(rng.integers(1, 200))
        event = random_event(rng, matcher().catalog, user_id, START_MS + offset * 1_000)
        log.append(LogRecord(offset, START_MS + offset * 1_001, b"%d" % user_id, event.SerializeToString()))
    store = MemoryStore()
    owner = owned(store, partitions=1)
    outcomes = [owner.batch({0: log[start : start + 150]}) for start in range(0, len(log), 150)]
    assert {user: (store.states[user], store.lists[user]) for user in store.states} == replay([log], matcher())
    lists = defaultdict(int)
    for outcome in outcomes:
        lists["written"] += outcome.lists
        lists["applied"] += len(outcome.appended)
    assert lists["applied"] == 600
    assert lists["written"] < 600  # a user's events inside a batch are merged
