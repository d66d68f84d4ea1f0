"""Kafka and Redis by URL, and what is said where that fails; no server needed."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2 as kafka_python_murmur2

from vitrine import placement
from vitrine.errors import FieldError, UnavailableError
from vitrine.runtime.kafka import LogLostError, key_of, parse_url, producer
from vitrine.runtime.redis import connect, wait_ready

_ids = st.integers(0, 2**64 - 1)


@given(
    st.sampled_from(["kafka", "memory"]),
    st.lists(st.tuples(st.from_regex(r"[a-z0-9.-]{1,20}", fullmatch=True), st.integers(1, 65535)), min_size=1),
)
def test_every_broker_of_a_url_is_asked(scheme: str, servers: list[tuple[str, int]]) -> None:
    written = [f"{host}:{port}" for host, port in servers]
    config = parse_url(f"{scheme}://{','.join(written)}")
    assert list(config.bootstrap) == written
    assert config.kwargs()["bootstrap_servers"] == written
    assert config.kwargs().get("api_version") == ((2, 3) if scheme == "memory" else None)


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:9092", "http://host:1", "kafka://", "kafka://host", "kafka://host:0", "kafka://host:x"),
        *("kafka://:9", "kafka://host:99999", "kafka://a:1,,b:2"),
    ],
)
def test_what_is_no_kafka_url_is_refused_with_what_would_be(url: str) -> None:
    with pytest.raises(FieldError) as caught:
        parse_url(url)
    assert caught.value.field == "kafka_url"


@given(_ids, st.integers(0, 10))
def test_our_bucket_and_kafka_pythons_partition_agree(id: int, power: int) -> None:
    partitions = list(range(2**power))
    assert kafka_python_murmur2(key_of(id)) & 0xFFFFFFFF == placement.murmur2(key_of(id))
    assert (kafka_python_murmur2(key_of(id)) & 0x7FFFFFFF) % len(partitions) == placement.partition_of_bucket(
        placement.bucket_of(id), len(partitions)
    )


def test_a_broker_that_is_not_there_is_an_unavailable_that_names_the_url() -> None:
    with pytest.raises(UnavailableError, match=re.escape("kafka://127.0.0.1:1")):
        producer("kafka://127.0.0.1:1", bootstrap_timeout_ms=300)


def test_a_lost_log_says_what_was_wanted_what_there_is_and_the_way_out() -> None:
    message = str(LogLostError("user-events", 3, 17, (20, 90)))
    assert "user-events, partition 3: wanted offset 17, but the log has offsets 20 to 90" in message
    assert "VITRINE_NAMESPACE" in message


@pytest.mark.parametrize("url", ["", "127.0.0.1:6379", "http://host", "redis://host:port"])
def test_what_is_no_redis_url_is_refused(url: str) -> None:
    with pytest.raises(FieldError) as caught:
        connect(url)
    assert caught.value.field == "redis_url"


def test_a_redis_password_is_in_no_message() -> None:
    with pytest.raises(FieldError) as refused:
        connect("redis://user:secret@host:port")
    assert "secret" not in str(refused.value)
    with connect("redis://:secret@127.0.0.1:1") as client, pytest.raises(UnavailableError) as away:
        wait_ready(client, timeout_s=0)
    assert "secret" not in str(away.value)
