"""Compacted topics read whole, and the making of topics, against a real broker."""

from collections.abc import Iterator, Mapping

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import NewTopic

from tests.waiting import wait_for
from vitrine.errors import FieldError
from vitrine.placement import qualify
from vitrine.runtime import topics
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.kafka import LogLostError, admin, partition_count, producer
from vitrine.runtime.tail import Tail, one_by_one
from vitrine.runtime.topics import TopicMismatchError


@pytest.fixture(scope="module")
def kafka(kafka_home: str) -> Iterator[EmbeddedStack]:
    """Kafka of this module's own, since a test restarts it."""
    with EmbeddedStack(kafka_home=kafka_home, redis_url="redis://unused:1") as started:
        yield started


@pytest.fixture
def topic(kafka: EmbeddedStack, namespace: str) -> str:
    topics.create(kafka.kafka_url, namespace, 4)
    return qualify(namespace, topics.AD_UPDATES)


class Table:
    """A table that a tail keeps; it refuses the value b"bad"."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.offsets: list[int] = []

    def apply(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        if value == b"bad" or key is None:
            raise ValueError("not an update")
        self.offsets.append(offset)
        if value is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = value


def write(kafka: EmbeddedStack, topic: str, *records: tuple[bytes | None, bytes | None]) -> None:
    out = producer(kafka.kafka_url)
    try:
        for key, value in records:
            out.send(topic, key=key, value=value).get(timeout=60)
    finally:
        out.close()


def tail_of(kafka: EmbeddedStack, topic: str, table: Table, offsets: Mapping[int, int] | None = None) -> Tail:
    return Tail(kafka.kafka_url, topic, one_by_one(topic, table.apply), offsets)


def test_a_tail_reads_what_there_is_says_so_and_goes_on(kafka: EmbeddedStack, topic: str) -> None:
    write(kafka, topic, (b"1", b"a"), (b"2", b"b"), (b"1", b"c"), (b"2", None))
    table = Table()
    tail = tail_of(kafka, topic, table)
    try:
        tail.wait_caught_up(60)
        assert table.rows == {b"1": b"c"}
        assert tail.positions == {0: 4}
        write(kafka, topic, (b"3", b"d"))
        wait_for(lambda: table.rows.get(b"3") == b"d")
        assert tail.positions == {0: 5}
        assert tail.error is None
    finally:
        tail.close()


def test_a_tail_of_an_empty_topic_is_caught_up(kafka: EmbeddedStack, topic: str) -> None:
    tail = tail_of(kafka, topic, Table())
    try:
        tail.wait_caught_up(60)
        assert tail.positions == {0: 0}
    finally:
        tail.close()


def test_a_tail_starts_at_the_offset_it_is_given(kafka: EmbeddedStack, topic: str) -> None:
    write(kafka, topic, (b"1", b"a"), (b"2", b"b"), (b"3", b"c"))
    table = Table()
    tail = tail_of(kafka, topic, table, {0: 2})
    try:
        tail.wait_caught_up(60)
        assert table.offsets == [2]
    finally:
        tail.close()


def test_a_tail_reads_every_partition_and_each_from_its_own_offset(kafka: EmbeddedStack, namespace: str) -> None:
    topics.create(kafka.kafka_url, namespace, 4)
    topic = qualify(namespace, topics.ITEM_UPDATES)
    keys = [b"%d" % number for number in range(40)]
    write(kafka, topic, *[(key, b"a") for key in keys])
    table = Table()
    tail = tail_of(kafka, topic, table)
    try:
        tail.wait_caught_up(60)
        assert table.rows == dict.fromkeys(keys, b"a")
        ends = tail.positions
        assert (len(ends), sum(ends.values())) == (4, 40)
    finally:
        tail.close()
    rest = Table()
    tail = tail_of(kafka, topic, rest, {0: ends[0], 1: ends[1] - 1})
    try:
        tail.wait_caught_up(60)
        assert len(rest.offsets) == 1 + ends[2] + ends[3]
        write(kafka, topic, *[(key, b"b") for key in keys[:2]])
        assert tail.wait_reached(tail.positions, 0)
        wait_for(lambda: sum(tail.positions.values()) == 42)
    finally:
        tail.close()


def test_while_a_tail_is_held_it_applies_nothing(kafka: EmbeddedStack, topic: str) -> None:
    table = Table()
    tail = tail_of(kafka, topic, table)
    try:
        tail.wait_caught_up(60)
        with tail.held() as positions:
            write(kafka, topic, (b"1", b"a"))
            assert not tail.wait_reached({0: 1}, 0.5)
            assert (positions, table.rows) == ({0: 0}, {})
        assert tail.wait_reached({0: 1}, 60)
        assert table.rows == {b"1": b"a"}
    finally:
        tail.close()


def test_a_tail_refuses_the_offset_of_a_partition_that_is_not_there(kafka: EmbeddedStack, topic: str) -> None:
    tail = tail_of(kafka, topic, Table(), {7: 3})
    try:
        with pytest.raises(LogLostError, match="partition 7: wanted offset 3"):
            tail.wait_caught_up(60)
    finally:
        tail.close()


def test_a_record_that_cannot_be_applied_is_counted_and_passed_over(kafka: EmbeddedStack, topic: str) -> None:
    write(kafka, topic, (b"1", b"a"), (b"2", b"bad"), (b"3", b"c"))
    table = Table()
    tail = tail_of(kafka, topic, table)
    try:
        tail.wait_caught_up(60)
        assert table.rows == {b"1": b"a", b"3": b"c"}
        assert tail.skipped == 1
    finally:
        tail.close()


def test_a_tail_whose_offset_the_log_lacks_ends_with_the_reason(kafka: EmbeddedStack, namespace: str) -> None:
    topics.create(kafka.kafka_url, namespace, 1)
    topic = qualify(namespace, topics.USER_EVENTS)  # records of compacted topics cannot be deleted
    write(kafka, topic, (b"1", b"a"), (b"2", b"b"))
    with admin(kafka.kafka_url) as client:
        client.delete_records({TopicPartition(topic, 0): 2})
    for wanted in (1, 3):
        tail = tail_of(kafka, topic, Table(), {0: wanted})
        try:
            with pytest.raises(LogLostError) as caught:
                tail.wait_caught_up(60)
            assert (caught.value.wanted, caught.value.available) == (wanted, (2, 2))
        finally:
            tail.close()


def test_a_tail_outlives_a_restart_of_the_broker(kafka: EmbeddedStack, topic: str) -> None:
    table = Table()
    tail = tail_of(kafka, topic, table)
    try:
        tail.wait_caught_up(60)
        kafka.restart_kafka()
        write(kafka, topic, (b"1", b"a"))
        wait_for(lambda: table.rows == {b"1": b"a"})
        wait_for(lambda: tail.seconds_since_contact < 3)
        assert tail.error is None
    finally:
        tail.close()


def test_a_tail_waits_for_a_topic_that_is_made_after_its_start(
    kafka: EmbeddedStack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def impatient(consumer: KafkaConsumer, topic: str) -> int:
        asked.append(topic)
        return partition_count(consumer, topic, timeout_s=0.1)

    monkeypatch.setattr("vitrine.runtime.tail.partition_count", impatient)
    table = Table()
    tail = tail_of(kafka, qualify(namespace, topics.AD_UPDATES), table)
    try:
        wait_for(lambda: len(asked) > 1)
        assert not tail.caught_up.is_set()
        topics.create(kafka.kafka_url, namespace, 4)
        tail.wait_caught_up(60)
        write(kafka, tail.topic, (b"1", b"a"))
        wait_for(lambda: table.rows == {b"1": b"a"})
    finally:
        tail.close()


def test_topics_are_made_once_as_the_design_says(kafka: EmbeddedStack, namespace: str) -> None:
    names = [f"{namespace}.{name}" for name in ("user-events", "ad-updates", "item-updates", "dead-letters")]
    assert topics.existing(kafka.kafka_url, namespace) == []
    assert topics.create(kafka.kafka_url, namespace, 16).made == names
    again = topics.create(kafka.kafka_url, namespace, 16)
    assert (again.made, again.kept) == ([], names)
    made = topics.existing(kafka.kafka_url, namespace)
    assert [topic.partitions for topic in made] == [16, 1, 16, 1]
    assert [topic.settings["cleanup.policy"] for topic in made] == ["delete", "compact", "compact", "compact"]
    assert {topic.settings["message.timestamp.type"] for topic in made} == {"LogAppendTime"}


def test_topics_that_are_otherwise_are_named_and_none_is_made(kafka: EmbeddedStack, namespace: str) -> None:
    with admin(kafka.kafka_url) as client:
        client.create_topics(
            [NewTopic(f"{namespace}.user-events", 3, 1), NewTopic(f"{namespace}.ad-updates", 1, 1)]
        )
        client.wait_for_topics([f"{namespace}.user-events", f"{namespace}.ad-updates"])
    with pytest.raises(TopicMismatchError) as caught:
        topics.create(kafka.kafka_url, namespace, 4)
    message = str(caught.value)
    assert f"{namespace}.user-events has 3 partitions, not 4" in message
    assert f"{namespace}.ad-updates has cleanup.policy=delete, not compact" in message
    assert "message.timestamp.type=CreateTime, not LogAppendTime" in message
    assert len(topics.existing(kafka.kafka_url, namespace)) == 2


@pytest.mark.parametrize("partitions", [0, 3, -4, 2048])
def test_partition_counts_that_split_buckets_are_refused(partitions: int) -> None:
    with pytest.raises(FieldError, match="power of two from 1 to 1024"):
        topics.create("kafka://127.0.0.1:1", "", partitions)


@pytest.mark.parametrize("namespace", ["a/b", "a.b", "é", "x" * 65, "a\n"])
def test_a_namespace_that_is_no_plain_word_is_refused_before_kafka_is_asked(namespace: str) -> None:
    with pytest.raises(FieldError, match="namespace"):
        topics.create("kafka://127.0.0.1:9", namespace)
