"""The bucket script on a real Valkey: what it writes, what it refuses, and what it does after a restart."""

import time
from collections.abc import Iterator

import pytest
import redis as redis_py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matching_kit import MemoryStore

from vitrine.errors import UnavailableError
from vitrine.matching import store as store_module
from vitrine.matching.store import BucketWrite, Mark, Store
from vitrine.placement import bucket_of
from vitrine.runtime import redis
from vitrine.runtime.embedded import EmbeddedStack

USER = 42
BUCKET = bucket_of(USER)


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedStack]:
    """A Valkey of this module's own, for it is killed; no Kafka."""
    with EmbeddedStack(kafka_url="kafka://127.0.0.1:1") as started:
        yield started


@pytest.fixture
def store(valkey: EmbeddedStack, namespace: str) -> Store:
    return Store(redis.connect(valkey.redis_url), namespace)


def listed(state: bytes = b"state") -> bytes:
    """What begins as a list does."""
    return b"VMLS\x02\x00list of " + state


def write(expected: bytes = b"", events: int = 5, applied: int = 2, state: bytes = b"state") -> BucketWrite:
    return BucketWrite(BUCKET, expected, "cluster", events, applied, [(USER, state, listed(state))])


def test_a_batch_is_written_whole_and_read_back(store: Store):
    (token,) = store.write([write()])
    assert store.read_marks([BUCKET]) == [Mark(token, "cluster", 5, 2)]
    assert store.read_states({BUCKET: [USER, USER + 1]}) == {USER: b"state"}
    assert store.read_list(USER) == listed()
    assert store.read_user(USER) == (b"state", listed())
    assert (store.applied(), store.lists()) == (2, 1)


def test_a_write_behind_another_token_leaves_everything_as_it_was(store: Store):
    (first,) = store.write([write()])
    (second,) = store.write([write(first, events=7, state=b"newer")])
    assert second != first
    for stale in (b"", first, b"x" * 16):
        assert store.write([write(stale, events=9, state=b"stale")]) == [None]
    assert store.read_marks([BUCKET]) == [Mark(second, "cluster", 7, 4)]
    assert store.read_user(USER) == (b"newer", listed(b"newer"))


def test_a_bucket_that_is_refused_does_not_hold_up_the_others(store: Store):
    others = [BucketWrite(bucket, b"", "cluster", 1, 0) for bucket in range(100) if bucket != BUCKET]
    store.write([write()])
    passes = []
    tokens = store.write([*others[:50], write(), *others[50:]], lambda: passes.append(1))
    assert [i for i, token in enumerate(tokens) if token is None] == [50]
    assert len({token for token in tokens if token}) == len(others)
    assert len(passes) == 3  # between four pipelines of 32


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 9)), max_size=12))
def test_the_script_does_what_the_tests_store_in_memory_does(store: Store, steps):
    """Tokens differ, both being random, so each store is driven by those that it handed out."""
    store._client.flushdb()
    memory = MemoryStore()
    tokens: dict[tuple[int, int], list[bytes]] = {}
    for bucket, age, events in steps:
        outcomes = []
        for number, each in enumerate((store, memory)):
            handed = tokens.setdefault((number, bucket), [b""])
            (token,) = each.write([BucketWrite(bucket, handed[-1 - min(age, len(handed) - 1)], "k", events, 1)])
            handed += [token] if token else []
            outcomes.append(token is not None)
        assert outcomes[0] == outcomes[1]
    for real, model in zip(store.read_marks(range(3)), memory.read_marks(range(3)), strict=True):
        assert (real.events, real.applied, real.log) == (model.events, model.applied, model.log)


def test_a_redis_that_forgot_the_script_is_told_it_again(store: Store):
    (token,) = store.write([write()])
    store._client.script_flush()
    assert store.write([write(token)])[0]


def test_a_redis_that_is_away_is_unavailable_and_keeps_what_it_acknowledged(valkey: EmbeddedStack, store: Store):
    (token,) = store.write([write()])
    valkey.kill_redis()
    try:
        for call in (
            lambda: store.write([write(token)]),
            lambda: store.read_marks([BUCKET]),
            lambda: store.read_states({BUCKET: [USER]}),
            lambda: store.read_list(USER),
            lambda: store.read_user(USER),
            store.ping,
        ):
            with pytest.raises(UnavailableError, match="Redis does not answer"):
                call()
    finally:
        valkey.start_redis()
    assert store.read_marks([BUCKET])[0].token == token
    assert store.write([write(token)])[0]


def test_a_key_of_another_type_is_an_error_and_not_waited_for(store: Store):
    store._client.set(store._key(BUCKET, "states"), b"someone else's")
    with pytest.raises(redis_py.ResponseError, match="WRONGTYPE"):
        store.write([write()])


def test_a_connection_that_redis_closed_is_opened_anew(valkey: EmbeddedStack, store: Store):
    store.write([write()])
    assert store.read_list(USER) == listed()
    redis.connect(valkey.redis_url).client_kill_filter(_type="normal", skipme=True)
    assert store.read_list(USER) == listed()
    assert store.read_list(USER + 1) is None


def test_an_answer_that_came_too_late_is_not_taken_for_the_next_one(valkey: EmbeddedStack, namespace: str):
    hurried = Store(redis.connect(valkey.redis_url, timeout_s=0.05), namespace)
    hurried.write([write()])
    assert hurried.read_list(USER) == listed()
    redis.connect(valkey.redis_url).client_pause(300)
    with pytest.raises(UnavailableError):
        hurried.read_list(USER)
    time.sleep(0.4)
    assert hurried.read_list(USER + 1) is None, "this was the other user's list"
    assert hurried.read_list(USER) == listed()


def test_namespaces_do_not_meet_and_a_buckets_keys_share_a_slot(valkey: EmbeddedStack):
    client = redis.connect(valkey.redis_url)
    one, other = Store(client, "one"), Store(client, "other")
    one.write([write()])
    assert other.read_list(USER) is None
    keys = list(client.scan_iter(match="*one.m:*"))
    assert {key.split(b"}")[0] for key in keys} == {f"{{one.m:{BUCKET}".encode()}
    assert len(keys) == 3
    assert store_module.BUCKETS_A_PIPELINE == 32
