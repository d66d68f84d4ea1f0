"""The store on a real Redis Cluster of three nodes, and on a replica that lagged when it was promoted."""

import random
import threading
from collections.abc import Iterator

import pytest
from redis_cluster_kit import Nodes, redis_cluster

from tests.waiting import wait_for
from vitrine.errors import UnavailableError
from vitrine.matching.rewind import rewind
from vitrine.matching.store import DROP, BucketWrite, Mark, Store
from vitrine.placement import bucket_of
from vitrine.runtime import redis
from vitrine.runtime.local_servers import Valkey

USERS = range(1, 41)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory) -> Iterator[Nodes]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture
def store(nodes: Nodes, namespace: str) -> Store:
    return Store(redis.connect(nodes.url), namespace)


def listed(word: bytes) -> bytes:
    return b"VMLS\x02\x00" + word


def write(user: int, expected: bytes, events: int, word: bytes = b"a") -> BucketWrite:
    return BucketWrite(bucket_of(user), expected, "k/8", events, 1, [(user, word, listed(word))], events)


def one_a_bucket() -> list[int]:
    return list({bucket_of(user): user for user in USERS}.values())


def test_a_batch_over_buckets_of_all_nodes_is_written_and_read_back(store: Store):
    users = one_a_bucket()
    tokens = store.write([write(user, b"", 5) for user in users])
    assert all(tokens)
    assert store.read_marks([bucket_of(u) for u in users]) == [Mark(t, "k/8", 5, 1, 5) for t in tokens]
    assert store.read_states({bucket_of(u): [u] for u in users}) == dict.fromkeys(users, b"a")
    assert [store.read_list(u) for u in users] == [listed(b"a")] * len(users)
    assert store.read_lists({bucket_of(u): [u, u + 10**6] for u in users}) == dict.fromkeys(users, listed(b"a"))
    assert store.read_user(users[0]) == (b"a", listed(b"a"))
    assert store.read_user(10**6) == (None, None)
    assert list(store.scan(bucket_of(users[0]))) == [[(users[0], b"a", listed(b"a"))]]
    assert store.applied() == len(users)
    assert store.lists() == len(users)


def test_the_fence_holds_a_bucket_on_every_node(store: Store):
    users = one_a_bucket()
    first = store.write([write(user, b"", 5) for user in users])
    assert all(store.write([write(user, token, 6, b"b") for user, token in zip(users, first, strict=True)]))
    assert store.write([write(user, token, 7, b"c") for user, token in zip(users, first, strict=True)]) == [
        None
    ] * len(users)
    assert [store.read_list(u) for u in users] == [listed(b"b")] * len(users)


def test_a_slot_moved_while_it_is_written_and_read_loses_and_doubles_nothing(nodes: Nodes, store: Store):
    user = USERS[0]
    slot = store.client.keyslot(store.key(bucket_of(user), "mark"))
    stop, failures, seen = threading.Event(), [], [0]

    def read() -> None:
        while not stop.is_set():
            held = store.read_list(user)
            if held is not None and int(held[6:]) < seen[0]:
                failures.append(f"{held!r} after {seen[0]}")
            seen[0] = max(seen[0], int(held[6:])) if held else seen[0]

    reader = threading.Thread(target=read)
    (token,) = store.write([write(user, b"", 1, b"1")])
    reader.start()
    mover = threading.Thread(target=lambda: [nodes.move(slot, (nodes.owner_of(slot) + 1) % 3) for _ in range(3)])
    mover.start()
    events = 1
    while mover.is_alive() or events < 50:
        events += 1
        try:
            (fresh,) = store.write([write(user, token, events, b"%d" % events)])
        except UnavailableError:
            fresh = None
        if fresh is None:  # the answer was lost, or the write: the watermark says which
            (mark,) = store.read_marks([bucket_of(user)])
            token, events = mark.token, mark.events
        else:
            token = fresh
    mover.join()
    stop.set()
    reader.join()
    assert failures == []
    (mark,) = store.read_marks([bucket_of(user)])
    assert mark == Mark(token, "k/8", events, events, events)
    assert store.read_user(user) == (b"%d" % events, listed(b"%d" % events))


def test_a_reader_that_only_reads_follows_a_slot_that_moved(nodes: Nodes, namespace: str, store: Store):
    user = USERS[0]
    reader = Store(redis.connect(nodes.url), namespace)
    store.write([write(user, b"", 1, b"1")])
    slot = store.client.keyslot(store.key(bucket_of(user), "mark"))
    for _ in range(2):
        assert reader.read_list(user) == listed(b"1")
        nodes.move(slot, (nodes.owner_of(slot) + 1) % 3)
    assert reader.read_list(user) == listed(b"1")


def test_a_rewound_bucket_of_a_cluster_keeps_its_tombstones_alone(store: Store):
    user = USERS[0]
    bucket = bucket_of(user)
    others = [u for u in range(1, 100_000) if bucket_of(u) == bucket][:3]
    (token,) = store.write([BucketWrite(bucket, b"", "k/8", 5, 4, [(u, b"s", listed(b"s")) for u in others])])
    (token,) = store.write([BucketWrite(bucket, token, "k/8", 6, 1, [(others[0], b"gone", DROP)])])
    (token,) = store.write([BucketWrite(bucket, token, "k/8", 7, 1, [(others[0], b"again", listed(b"again"))])])
    assert rewind(store, bucket, "k/8", 2)
    assert [row for rows in store.scan(bucket) for row in rows] == [(others[0], b"gone", None)]
    (mark,) = store.read_marks([bucket])
    assert (mark.events, mark.applied, mark.token != token) == (2, 0, True)
    assert [store.read_list(u) for u in others] == [None] * 3
    assert list(store.client.scan_iter(match=f"*{store.key(bucket, 'old')}")) == []


def test_a_cluster_that_is_away_is_unavailable():
    away = Store(redis.connect("redis://127.0.0.1:1,127.0.0.1:2?cluster=true"))
    for call in (lambda: away.read_list(1), lambda: away.read_marks([1]), lambda: away.write([write(1, b"", 1)])):
        with pytest.raises(UnavailableError, match="no node of the cluster answers"):
            call()


class Replica(Valkey):
    """A Valkey that follows another."""

    def __init__(self, folder, of: Valkey) -> None:
        super().__init__(folder)
        self._of = of

    def command(self) -> list[str]:
        return [*super().command(), "--replicaof", "127.0.0.1", str(self._of.ports[0])]


def test_what_a_promoted_replica_had_not_got_is_refused_by_the_token_and_applied_again(tmp_path, namespace: str):
    primary = Valkey(tmp_path / "primary")
    replica = Replica(tmp_path / "replica", primary)
    try:
        primary.begin()
        primary.finish()
        replica.begin()
        replica.finish()
        before, after = (Store(redis.connect(server.url), namespace) for server in (primary, replica))
        users = random.Random(3).sample(one_a_bucket(), 10)
        marks = dict(zip(users, before.write([write(user, b"", 5) for user in users]), strict=True))
        wait_for(lambda: before.client.wait(1, 500) == 1, 30)
        after.client.replicaof("NO", "ONE")  # from here on it lags for good
        lost = users[:4]
        for user, token in zip(lost, before.write([write(u, marks[u], 9, b"b") for u in lost]), strict=True):
            marks[user] = token
        primary.kill()
        answers = after.write([write(user, marks[user], 12, b"c") for user in users])
        assert [token is None for token in answers] == [user in lost for user in users]
        assert [mark.events for mark in after.read_marks([bucket_of(u) for u in lost])] == [5] * 4
        assert [after.read_list(u) for u in lost] == [listed(b"a")] * 4, "as of the watermark, both"
    finally:
        replica.kill()
        primary.kill()
