"""The bucket script on a real Valkey: what it writes, what it refuses, and what it does after a restart."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import redis as redis_py
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matching_kit import MemoryStore

from tests.waiting import wait_for
from vitrine.errors import UnavailableError
from vitrine.matching import rewind as rewind_module
from vitrine.matching import store as store_module
from vitrine.matching.rewind import rewind
from vitrine.matching.store import DROP, KEEP, RENEW, BucketWrite, ForeignListError, Mark, Store
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


SEVERAL = [u for u in range(1, 400_000) if bucket_of(u) in (0, 1, 2)][:9]
of_user = st.tuples(
    st.sampled_from(SEVERAL),
    st.sampled_from((KEEP, b"s1", b"s2")),
    st.sampled_from((KEEP, RENEW, DROP, b"l1", b"l2")),
)
store_steps = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 9), st.lists(of_user, max_size=4))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(store_steps | st.integers(0, 2), max_size=12))
def test_the_script_does_what_the_tests_store_in_memory_does(store: Store, steps):
    """Tokens are random, so each store is driven by those that it handed out. A number is a rewind."""
    store.client.flushdb()
    memory = MemoryStore()
    tokens: dict[tuple[int, int], list[bytes]] = {}
    for step in steps:
        if isinstance(step, int):
            assert rewind(store, step, "k", 3)
            memory.rewind(step, "k", 3)
            for number, each in enumerate((store, memory)):
                tokens.setdefault((number, step), [b""]).append(each.read_marks([step])[0].token)
            continue
        bucket, age, events, some = step
        users = [
            (user_id, b"tombstone" if stored == DROP else state, listed(stored) if stored[:1] == b"l" else stored)
            for user_id, state, stored in some
            if bucket_of(user_id) == bucket
        ]
        outcomes = []
        for number, each in enumerate((store, memory)):
            handed = tokens.setdefault((number, bucket), [b""])
            expected = handed[-1 - min(age, len(handed) - 1)]
            (token,) = each.write([BucketWrite(bucket, expected, "k", events, 1, users, events)])
            handed += [token] if token else []
            outcomes.append(token is not None)
        assert outcomes[0] == outcomes[1]
    for real, model in zip(store.read_marks(range(3)), memory.read_marks(range(3)), strict=True):
        assert replace(real, token=b"") == replace(model, token=b"")
    for bucket in range(3):
        rows = [row for chunk in store.scan(bucket) for row in chunk]
        assert sorted(rows) == sorted(row for chunk in memory.scan(bucket) for row in chunk)
    assert [store.read_list(u) for u in SEVERAL] == [memory.lists.get(u) for u in SEVERAL]


def test_a_redis_that_forgot_the_script_is_told_it_again(store: Store):
    (token,) = store.write([write()])
    store.client.script_flush()
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
    store.client.set(store.key(BUCKET, "states"), b"someone else's")
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


def of(user_id: int, state: bytes, stored: bytes, token: bytes, events: int = 6) -> BucketWrite:
    return BucketWrite(BUCKET, token, "cluster", events, 1, [(user_id, state, stored)], ads=3)


def test_a_state_is_written_without_a_list_and_a_list_without_a_state(store: Store):
    (token,) = store.write([of(USER, b"s1", KEEP, b"")])
    assert store.read_user(USER) == (b"s1", None)
    (token,) = store.write([of(USER, b"s2", listed(b"l2"), token)])
    (token,) = store.write([of(USER, b"s3", KEEP, token)])
    assert store.read_user(USER) == (b"s3", listed(b"l2"))
    (token,) = store.write([of(USER, KEEP, listed(b"l4"), token)])
    assert store.read_user(USER) == (b"s3", listed(b"l4"))
    assert store.read_marks([BUCKET]) == [Mark(token, "cluster", 6, 4, 3)]


def test_a_list_expires_unless_it_is_written_or_renewed_and_its_state_outlives_it(
    valkey: EmbeddedStack, namespace: str
):
    store = Store(redis.connect(valkey.redis_url), namespace, list_expiry_ms=60_000)
    key = store.list_key(BUCKET, USER)
    (token,) = store.write([of(USER, b"s", listed(), b"")])
    assert 50_000 < store.client.pttl(key) <= 60_000
    store.client.pexpire(key, 5_000)
    (token,) = store.write([of(USER, b"s", KEEP, token)])
    assert store.client.pttl(key) <= 5_000
    (token,) = store.write([of(USER, b"s", RENEW, token)])
    assert store.client.pttl(key) > 50_000
    store.client.pexpire(key, 1)
    wait_for(lambda: store.read_list(USER) is None, 5)
    assert store.read_user(USER) == (b"s", None)
    assert store.write([of(USER, b"s", RENEW, token)])[0], "there is nothing to renew, and no harm"


def test_a_list_without_an_expiry_stays_for_good(store: Store):
    (token,) = store.write([of(USER, b"s", listed(), b"")])
    store.write([of(USER, b"s", RENEW, token)])
    assert store.client.pttl(store.list_key(BUCKET, USER)) == -1


@pytest.mark.parametrize("held", [b"someone else's", b"VMLS\x03\x00newer", b"V"])
def test_a_list_that_is_not_ours_or_newer_is_never_overwritten(store: Store, held: bytes):
    (token,) = store.write([of(USER + 1024, b"s", KEEP, b"")])
    store.client.set(store.list_key(BUCKET, USER), held)
    for stored in (listed(), DROP):
        with pytest.raises(ForeignListError, match=f"list:{USER} cannot be read"):
            store.write([of(USER, b"s", stored, token)])
    assert store.read_user(USER) == (None, held)
    assert store.read_marks([BUCKET])[0].token == token


def test_a_list_of_the_schema_before_is_overwritten(store: Store):
    store.client.set(store.list_key(BUCKET, USER), b"VMLS\x01\x00older")
    assert store.write([of(USER, b"s", listed(), b"")])[0]
    assert store.read_list(USER) == listed()


def test_a_deletion_takes_the_list_and_is_kept_beside_the_states(store: Store):
    (token,) = store.write([of(USER, b"s", listed(), b"")])
    (token,) = store.write([of(USER, b"tombstone", DROP, token)])
    assert store.read_user(USER) == (b"tombstone", None)
    (token,) = store.write([of(USER, b"again", listed(b"again"), token)])
    assert store.read_deleted({BUCKET: [USER, USER + 1]}) == {USER: b"tombstone"}


def test_a_rewound_bucket_is_read_again_by_an_owner_that_held_it(store: Store):
    (token,) = store.write([of(USER, b"s", listed(), b"", events=9)])
    assert rewind(store, BUCKET, "cluster", 4)
    assert store.write([of(USER, b"stale", listed(b"stale"), token)]) == [None]
    (mark,) = store.read_marks([BUCKET])
    assert (mark.events, mark.applied, mark.log, mark.ads) == (4, 0, "cluster", 3)
    assert store.read_user(USER) == (None, None)


def test_a_bucket_of_another_log_is_not_rewound(store: Store):
    (token,) = store.write([of(USER, b"s", listed(), b"")])
    assert not rewind(store, BUCKET, "another", 0)
    assert store.read_marks([BUCKET])[0].token == token
    assert store.read_user(USER) == (b"s", listed())


def test_a_bucket_never_written_begins_where_it_is_sent(store: Store):
    assert rewind(store, BUCKET, "cluster", 7)
    assert store.read_marks([BUCKET])[0].events == 7


def test_a_rewind_that_was_killed_is_finished_by_the_next_without_lists_made_since(store: Store):
    """The kill comes between the script and the sweep; the owner has folded one of two users again since."""
    users = [u for u in range(1, 100_000) if bucket_of(u) == BUCKET][:2]
    store.write([BucketWrite(BUCKET, b"", "cluster", 9, 2, [(u, b"s", listed()) for u in users])])
    keys = [store.key(BUCKET, what) for what in ("mark", "states", "deleted", "old")]
    store.client.eval(rewind_module._REWIND, 4, *keys, b"t", "cluster", 2)
    (token,) = store.write([of(users[0], b"refolded", listed(b"refolded"), b"t", events=3)])
    rewind_module._sweep(store, BUCKET)
    assert store.read_user(users[0]) == (b"refolded", listed(b"refolded"))
    assert store.read_user(users[1]) == (None, None)
    assert not store.client.exists(store.key(BUCKET, "old"))
    assert store.read_marks([BUCKET])[0].token == token


def test_workers_are_paused_and_resumed_with_the_reason(valkey: EmbeddedStack, namespace: str, store: Store):
    assert store.paused() == ""
    store.pause("moving Redis")
    assert Store(redis.connect(valkey.redis_url), namespace).paused() == "moving Redis"
    assert Store(redis.connect(valkey.redis_url), namespace + "x").paused() == ""
    store.resume()
    assert store.paused() == ""


def test_a_bucket_is_scanned_whole_in_chunks(store: Store):
    users = [u for u in range(1, 3_000_000) if u % 7 == 0][:2_000]
    store.write([BucketWrite(BUCKET, b"", "cluster", 9, 2, [(u, b"s%d" % u, listed(b"%d" % u)) for u in users])])
    store.client.delete(store.list_key(BUCKET, users[5]))
    chunks = list(store.scan(BUCKET, chunk=100))
    assert len(chunks) > 5
    found = {user_id: (state, stored) for chunk in chunks for user_id, state, stored in chunk}
    expected = {u: (b"s%d" % u, listed(b"%d" % u)) for u in users}
    assert found == expected | {users[5]: (b"s%d" % users[5], None)}
