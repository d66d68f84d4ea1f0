"""The Kafka loop against a real broker: what is delivered through rebalances, restarts, pauses and losses."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from tests.waiting import wait_for
from vitrine.api.events.v1 import events_pb2
from vitrine.errors import NotFoundError, UnavailableError
from vitrine.placement import bucket_of, partition_of_bucket, qualify
from vitrine.runtime import topics
from vitrine.runtime.consume import ConsumerLoop, MemberTakenError, Record
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.kafka import DeadLetters, LogLostError, admin, cluster_id, key_of, parse_url, producer
from vitrine.runtime.process import spawn

_PARTITIONS = 4


@pytest.fixture(scope="module")
def kafka(kafka_home: str) -> Iterator[EmbeddedStack]:
    """Kafka of this module's own, since its tests kill it; nothing here needs Redis."""
    with EmbeddedStack(kafka_home=kafka_home, redis_url="redis://unused:1") as started:
        yield started


@pytest.fixture
def topic(kafka: EmbeddedStack, namespace: str) -> str:
    topics.create(kafka.kafka_url, namespace, _PARTITIONS)
    return qualify(namespace, topics.USER_EVENTS)


class Watermarks:
    """What Redis is to the worker: where each partition has got to, and every record applied, in order."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.next: dict[int, int] = {}
        self.applied: dict[int, list[bytes]] = {}

    def count(self) -> int:
        with self.lock:
            return sum(map(len, self.applied.values()))

    def values(self) -> list[bytes]:
        with self.lock:
            return sorted(value for values in self.applied.values() for value in values)


class Worker:
    """Applies each record once, as the fence would have it: the one at the watermark counts, a replayed one not."""

    def __init__(self, marks: Watermarks) -> None:
        self.marks = marks
        self.available = True
        self.calls: list[tuple[str, list[int]]] = []
        self.idles = 0
        self.gaps: list[str] = []
        self.loop: ConsumerLoop

    def assigned(self, partitions: list[int]) -> Mapping[int, int]:
        self._require()
        self.calls.append(("assigned", partitions))
        with self.marks.lock:
            return {p: self.marks.next.get(p, 0) for p in partitions}

    def revoked(self, partitions: list[int]) -> None:
        self.calls.append(("revoked", partitions))

    def batch(self, records: Mapping[int, Sequence[Record]]) -> None:
        self._require()
        with self.marks.lock:
            for partition, some in records.items():
                for record in some:
                    at = self.marks.next.get(partition, 0)
                    if record.offset > at:
                        self.gaps.append(f"{partition}: {record.offset} after {at}")
                    if record.offset == at:
                        self.marks.applied.setdefault(partition, []).append(record.value or b"")
                        self.marks.next[partition] = record.offset + 1
        self.loop.commit({partition: some[-1].offset + 1 for partition, some in records.items()})

    def idle(self) -> None:
        self._require()
        self.idles += 1

    def _require(self) -> None:
        if not self.available:
            raise UnavailableError("the store is away")


class Running:
    """A loop in a thread; `error` is what ended it."""

    def __init__(self, kafka: EmbeddedStack, topic: str, worker: Worker, **options: object) -> None:
        self.worker = worker
        self.loop = worker.loop = ConsumerLoop(kafka.kafka_url, topic, f"group-{topic}", worker, **options)  # type: ignore[arg-type]
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.loop.stop()
        self.thread.join()


@contextlib.contextmanager
def running(kafka: EmbeddedStack, topic: str, worker: Worker, **options: object) -> Iterator[Running]:
    one = Running(kafka, topic, worker, **options)
    try:
        yield one
    finally:
        one.stop()


def send(url: str, topic: str, values: Sequence[int]) -> None:
    out = producer(url)
    try:
        futures = [out.send(topic, key=key_of(value), value=b"%d" % value) for value in values]
        for future in futures:
            future.get(timeout=60)
    finally:
        out.close()


def expected(values: Sequence[int]) -> list[bytes]:
    return sorted(b"%d" % value for value in values)


def test_every_record_arrives_once_in_the_partition_of_its_bucket(kafka: EmbeddedStack, topic: str) -> None:
    worker = Worker(Watermarks())
    send(kafka.kafka_url, topic, range(1, 301))
    with running(kafka, topic, worker, member="a") as one:
        wait_for(lambda: worker.marks.count() == 300)
        assert one.loop.partitions == list(range(_PARTITIONS))
        wait_for(lambda: one.loop.backlog.records() == dict.fromkeys(range(_PARTITIONS), 0))
        assert one.loop.seconds_since_contact < 60
    assert worker.marks.values() == expected(range(1, 301))
    for partition, values in worker.marks.applied.items():
        assert [partition_of_bucket(bucket_of(int(v)), _PARTITIONS) for v in values] == [partition] * len(values)
    assert one.error is None


def test_records_carry_the_brokers_append_time(kafka: EmbeddedStack, topic: str) -> None:
    out = producer(kafka.kafka_url)
    sent = out.send(topic, key=b"1", value=b"x", timestamp_ms=1).get(timeout=60)
    out.close()
    consumer = KafkaConsumer(**parse_url(kafka.kafka_url).kwargs(), auto_offset_reset="none")
    try:
        place = TopicPartition(topic, sent.partition)
        consumer.assign([place])
        consumer.seek(place, sent.offset)
        records = []
        wait_for(lambda: records.extend(consumer.poll(timeout_ms=100).get(place, ())) or records)
        assert abs(records[0].timestamp / 1000 - time.time()) < 3600
    finally:
        consumer.close()


def test_reading_starts_where_the_handler_says(kafka: EmbeddedStack, topic: str) -> None:
    send(kafka.kafka_url, topic, range(1, 201))
    first = Worker(Watermarks())
    with running(kafka, topic, first):
        wait_for(lambda: first.marks.count() == 200)
    second = Worker(Watermarks())
    second.marks.next = {p: at - 3 for p, at in first.marks.next.items()}
    with running(kafka, topic, second):
        wait_for(lambda: second.marks.next == first.marks.next)
    assert second.marks.applied == {p: values[-3:] for p, values in first.marks.applied.items()}


def test_seek_from_within_a_batch_repeats_records(kafka: EmbeddedStack, topic: str) -> None:
    seen: list[int] = []

    class Again(Worker):
        def batch(self, records: Mapping[int, Sequence[Record]]) -> None:
            for partition, some in records.items():
                seen.extend(record.offset for record in some)
                if len(seen) == 1:
                    self.loop.seek(partition, some[0].offset)

    worker = Again(Watermarks())
    with running(kafka, topic, worker) as one:
        wait_for(lambda: one.loop.partitions)
        send(kafka.kafka_url, topic, [7])
        wait_for(lambda: len(seen) == 2)
    assert seen == [0, 0]


def test_a_broker_killed_in_mid_stream_costs_nothing(kafka: EmbeddedStack, topic: str) -> None:
    worker = Worker(Watermarks())
    before = cluster_id(kafka.kafka_url)
    with running(kafka, topic, worker, member="a") as one:
        send(kafka.kafka_url, topic, range(1, 101))
        wait_for(lambda: worker.marks.count() > 0)
        out = producer(kafka.kafka_url)
        futures = [out.send(topic, key=key_of(v), value=b"%d" % v) for v in range(101, 201)]
        kafka.kill_kafka()
        futures += [out.send(topic, key=key_of(v), value=b"%d" % v) for v in range(201, 301)]
        wait_for(lambda: one.loop.seconds_since_contact > 3)
        kafka.start_kafka()
        for future in futures:
            future.get(timeout=60)
        out.close()
        wait_for(lambda: worker.marks.count() == 300)
        wait_for(lambda: one.loop.seconds_since_contact < 3)
    assert worker.marks.values() == expected(range(1, 301))
    assert worker.gaps == []
    assert one.error is None
    assert cluster_id(kafka.kafka_url) == before


def test_a_static_member_killed_and_restarted_gets_its_partitions_and_nobody_else_does(
    kafka: EmbeddedStack, topic: str
) -> None:
    other = Worker(Watermarks())
    command = [sys.executable, str(Path(__file__).with_name("kafka_member.py")), kafka.kafka_url, topic]
    command += [f"group-{topic}", "killed"]

    def start() -> tuple["subprocess.Popen[bytes]", list[dict[str, list[int]]]]:
        child = spawn(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE)
        lines: list[dict[str, list[int]]] = []

        def read() -> None:
            assert child.stdout is not None
            for line in child.stdout:
                with contextlib.suppress(ValueError):  # log lines
                    lines.append(json.loads(line))

        threading.Thread(target=read, daemon=True).start()
        return child, lines

    def of(lines: list[dict[str, list[int]]]) -> list[int]:
        held: set[int] = set()
        for line in list(lines):
            held |= set(line.get("assigned", ()))
            held -= set(line.get("revoked", ()))
        return sorted(held)

    child, lines = start()
    try:
        wait_for(lambda: of(lines) == list(range(_PARTITIONS)))
        with running(kafka, topic, other, member="other") as one:
            wait_for(lambda: len(of(lines)) == 2 and len(one.loop.partitions) == 2)
            held, calls = of(lines), list(other.calls)
            child.kill()
            child.wait()
            child, lines = start()
            wait_for(lambda: of(lines) == held)
            wait_for(lambda: other.idles > 3)
            assert other.calls == calls
            assert one.loop.partitions == [p for p in range(_PARTITIONS) if p not in held]
    finally:
        child.kill()
        child.wait()


def test_a_static_member_that_stops_in_order_leaves_its_partitions_to_the_others_at_once(
    kafka: EmbeddedStack, topic: str
) -> None:
    stays, goes = Worker(Watermarks()), Worker(Watermarks())
    session = {"session_timeout_ms": 60_000}  # what the others would wait for a member that says nothing
    with running(kafka, topic, stays, member="stays", **session) as one:
        with running(kafka, topic, goes, member="goes", **session) as two:
            wait_for(lambda: _shared(one, two))
        wait_for(lambda: len(one.loop.partitions) == _PARTITIONS, timeout_s=20)
        assert two.error is None
        assert one.error is None


def test_a_second_process_of_the_same_member_name_ends_the_first(kafka: EmbeddedStack, topic: str) -> None:
    first, second = Worker(Watermarks()), Worker(Watermarks())
    with running(kafka, topic, first, member="twin") as one:
        wait_for(lambda: one.loop.partitions)
        with running(kafka, topic, second, member="twin") as two:
            wait_for(lambda: len(two.loop.partitions) == _PARTITIONS)
            wait_for(lambda: one.error is not None)
            assert isinstance(one.error, MemberTakenError)
            assert two.error is None


def test_members_that_join_and_leave_lose_no_record_and_no_partition(kafka: EmbeddedStack, topic: str) -> None:
    marks = Watermarks()
    total = 3_000
    sender = threading.Thread(target=_send_slowly, args=(kafka.kafka_url, topic, total))
    workers = [Worker(marks) for _ in range(5)]
    with running(kafka, topic, workers[0]) as stays:
        wait_for(lambda: len(stays.loop.partitions) == _PARTITIONS)
        sender.start()
        for worker in workers[1:4]:
            with running(kafka, topic, worker) as guest:
                wait_for(lambda: _shared(stays, guest))
            wait_for(lambda: len(stays.loop.partitions) == _PARTITIONS)
        with running(kafka, topic, workers[4]) as heir:
            wait_for(lambda: _shared(stays, heir))
            stays.stop()
            wait_for(lambda: len(heir.loop.partitions) == _PARTITIONS)
            sender.join()
            wait_for(lambda: marks.count() == total)
            assert heir.error is None
    assert marks.values() == expected(range(1, total + 1))
    assert [worker.gaps for worker in workers] == [[]] * 5


def test_a_partition_is_revoked_before_another_member_is_assigned_it(kafka: EmbeddedStack, topic: str) -> None:
    marks = Watermarks()
    first, second = Worker(marks), Worker(marks)
    order: list[tuple[str, str, list[int]]] = []
    for name, worker in (("first", first), ("second", second)):
        worker.calls = _Journal(name, order)
    with running(kafka, topic, first) as one:
        wait_for(lambda: len(one.loop.partitions) == _PARTITIONS)
        with running(kafka, topic, second) as two:
            wait_for(lambda: _shared(one, two))
    owner: dict[int, str] = {}
    for name, kind, partitions in order:
        for partition in partitions:
            if kind == "assigned":
                assert owner.setdefault(partition, name) == name
            else:
                assert owner.pop(partition) == name


def test_nothing_is_read_while_paused_and_membership_is_kept(kafka: EmbeddedStack, topic: str) -> None:
    worker = Worker(Watermarks())
    with running(kafka, topic, worker, session_timeout_ms=1_000, heartbeat_interval_ms=200) as one:
        wait_for(lambda: one.loop.partitions)
        one.loop.pause()
        idles = worker.idles
        wait_for(lambda: worker.idles > idles)  # the poll in flight is over
        send(kafka.kafka_url, topic, range(1, 51))
        wait_for(lambda: worker.idles > idles + 4)  # longer than the session
        assert one.loop.paused
        assert worker.marks.count() == 0
        assert worker.calls == [("assigned", list(range(_PARTITIONS)))]
        one.loop.resume()
        wait_for(lambda: worker.marks.count() == 50)
    assert [kind for kind, _ in worker.calls] == ["assigned", "revoked"]


def test_a_handler_that_is_unavailable_is_asked_again_and_goes_on_from_its_watermarks(
    kafka: EmbeddedStack, topic: str
) -> None:
    worker = Worker(Watermarks())
    worker.available = False
    send(kafka.kafka_url, topic, range(1, 101))
    with running(kafka, topic, worker) as one:
        wait_for(lambda: one.loop.paused)
        assert one.loop.partitions == []
        worker.available = True
        wait_for(lambda: worker.marks.count() == 100)
        worker.available = False
        send(kafka.kafka_url, topic, range(101, 201))
        wait_for(lambda: one.loop.paused)
        assert worker.marks.count() == 100
        worker.available = True
        wait_for(lambda: worker.marks.count() == 200)
        assert not one.loop.paused
    assert worker.gaps == []
    assert one.error is None


def test_a_handler_hears_of_partitions_that_leave_while_it_is_unavailable(kafka: EmbeddedStack, topic: str) -> None:
    first, second = Worker(Watermarks()), Worker(Watermarks())
    with running(kafka, topic, first) as one:
        wait_for(lambda: len(one.loop.partitions) == _PARTITIONS)
        first.available = False
        wait_for(lambda: one.loop.paused)
        with running(kafka, topic, second) as two:
            wait_for(lambda: len(two.loop.partitions) == 2)
            assert first.calls[1:] == [("revoked", two.loop.partitions)]
            first.available = True
            wait_for(lambda: _shared(one, two))


@pytest.mark.parametrize("wanted", ["deleted", "never written"])
def test_a_lost_log_ends_the_loop_loudly(kafka: EmbeddedStack, topic: str, wanted: str) -> None:
    send(kafka.kafka_url, topic, range(1, 101))
    read = Worker(Watermarks())
    with running(kafka, topic, read):
        wait_for(lambda: read.marks.count() == 100)
    end = read.marks.next[2]
    if wanted == "deleted":
        with admin(kafka.kafka_url) as client:
            client.delete_records({TopicPartition(topic, 2): end - 1})
    worker = Worker(Watermarks())
    worker.marks.next = dict(read.marks.next) | {2: 3 if wanted == "deleted" else end + 5}
    one = Running(kafka, topic, worker)
    one.thread.join(60)
    assert isinstance(one.error, LogLostError)
    assert (one.error.topic, one.error.partition) == (topic, 2)
    if wanted == "deleted":
        assert (one.error.wanted, one.error.available) == (3, (end - 1, end))
    else:
        assert (one.error.wanted, one.error.available) == (end + 5, (0, end))
    assert "VITRINE_NAMESPACE" in str(one.error)


def test_a_missing_topic_is_named_with_the_command_that_makes_it(kafka: EmbeddedStack) -> None:
    loop = ConsumerLoop(kafka.kafka_url, "nowhere", "g", Worker(Watermarks()))
    with pytest.raises(NotFoundError, match=r"topic nowhere .*vitrine topics create"):
        loop.run()


def test_a_dead_letter_says_where_it_came_from_and_is_one_key(kafka: EmbeddedStack, namespace: str) -> None:
    topics.create(kafka.kafka_url, namespace, _PARTITIONS)
    name = qualify(namespace, topics.DEAD_LETTERS)
    out = producer(kafka.kafka_url)
    letters = DeadLetters(out, name)
    for _ in range(2):
        letters.send(
            "user-events", 3, 17, 1_700_000_000_000, b"4" * 3_000_000, b"\xff" * 100_000, "not a UserEvent"
        )
    out.close()
    consumer = KafkaConsumer(**parse_url(kafka.kafka_url).kwargs(), auto_offset_reset="none")
    try:
        place = TopicPartition(name, 0)
        consumer.assign([place])
        consumer.seek(place, 0)
        records: list[Record] = []
        wait_for(lambda: records.extend(consumer.poll(timeout_ms=100).get(place, ())) or len(records) == 2)
    finally:
        consumer.close()
    assert {record.key for record in records} == {b"user-events/3/17"}
    letter = events_pb2.DeadLetter.FromString(records[0].value or b"")
    assert (letter.topic, letter.partition, letter.offset) == ("user-events", 3, 17)
    assert (letter.key, letter.value, letter.reason) == (b"4" * 65_536, b"\xff" * 65_536, "not a UserEvent")
    assert letter.append_time_ms == 1_700_000_000_000


class _Journal(list[tuple[str, list[int]]]):
    """A worker's calls that also go into one list of all workers' calls."""

    def __init__(self, name: str, order: list[tuple[str, str, list[int]]]) -> None:
        super().__init__()
        self._name, self._order = name, order

    def append(self, call: tuple[str, list[int]]) -> None:
        self._order.append((self._name, *call))
        super().append(call)


def _shared(*members: Running) -> bool:
    """Whether every partition is placed at exactly one member, and every member has one."""
    held = [member.loop.partitions for member in members]
    return all(held) and sorted(p for some in held for p in some) == list(range(_PARTITIONS))


def _send_slowly(url: str, topic: str, total: int) -> None:
    out = producer(url)
    for value in range(1, total + 1):
        out.send(topic, key=key_of(value), value=b"%d" % value)
        time.sleep(0.002)
    out.flush(timeout=60)
    out.close()
