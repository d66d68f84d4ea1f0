"""The owner's memory against the lists themselves: whom an ad's change touches, exactly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_increments import USERS, World, contents

from vitrine import native
from vitrine.matching import lists
from vitrine.matching.lists import Before, Work
from vitrine.matching.members import Members

numbers = st.integers(0, 200)
events = st.tuples(
    st.sampled_from(USERS),
    st.sampled_from(["join", "leave", "view", "impression", "block", "unblock", "wait", "refresh"]),
    numbers,
)
changes = st.tuples(st.sampled_from(["define", "define", "state", "gate", "tombstone", "fold"]), numbers, numbers)


def of(world: World) -> Members:
    members = Members(world.towers.dim, world.matcher.groups, advertiser_cap=world.advertiser_cap)
    put(world, members, USERS)
    return members


def put(world: World, members: Members, users) -> None:
    states = [world.users[id] for id in users]
    excluded = [world.matcher.excluded(each.blocked, each.ads, each.clock_ms) for each in states]
    members.put(states, [world.lists[id] for id in users], excluded)


def affected(world: World, members: Members, old, ad_id: int) -> set[int]:
    (bias,), (vec,) = world.matcher.ad_towers(np.array([ad_id], np.uint64))
    new = world.matcher.market.ad(ad_id)
    if old is None and new is None:
        return set()
    named = members.affected(old, new, float(bias), vec).tolist()
    assert len(named) == len(set(named))
    return set(named)


@given(st.lists(st.tuples(st.lists(events, max_size=5), changes), max_size=12), st.sampled_from([0, 0, 1]))
@settings(max_examples=60, deadline=None)
def test_those_named_are_those_whose_list_changes(rounds, advertiser_cap):
    world = World(advertiser_cap=advertiser_cap)
    members = of(world)
    for moved, change in rounds:
        touched = set()
        for user_id, kind, target in moved:
            world.event(user_id, kind, target)
            touched.add(user_id)
        world.bring(sorted(touched))
        put(world, members, sorted(touched))
        held = {id: contents(stored) for id, stored in world.lists.items()}
        market = world.matcher.market
        ad_id = world.change(*change)
        old, new = market.ad(ad_id), world.matcher.market.ad(ad_id)
        named = affected(world, members, old, ad_id)
        world.bring()
        differing = {id for id, stored in world.lists.items() if contents(stored) != held[id]}
        assert differing <= named
        exact = not advertiser_cap and (old is None or new is None or old.max_impressions == new.max_impressions)
        assert not exact or named == differing
        put(world, members, USERS)


def test_a_scan_goes_by_recency_in_chunks_and_passes_over_who_moved_meanwhile():
    world = World()
    for user_id, later in ((1, 5_000), (2, 9_000), (3, 7_000)):
        world.users[user_id].clock_ms += later
    members = of(world)
    assert [chunk.tolist() for chunk in members.recent(2)] == [[2, 3], [1]]
    ad = world.matcher.market.ad(int(world.lists[1].rankings[0].ads[0]))
    assert all(ad.ad_id in stored.rankings[0].ads for stored in world.lists.values())
    (bias,), (vec,) = world.matcher.ad_towers(np.array([ad.ad_id], np.uint64))
    scan = members.scan(ad, None, float(bias), vec)
    assert (scan.left, scan.next(1).tolist(), scan.left, scan.checked) == (3, [2], 2, 1)
    put(world, members, [3])
    members.drop([1])
    assert (scan.next(5).tolist(), scan.left) == ([], 0)
    assert members.affected(ad, None, float(bias), vec).tolist() == [2, 3]
    assert len(members) == 2


@pytest.mark.parametrize("kernel", native.supported_kernels())
def test_every_instruction_set_names_the_same_users(kernel):
    rng = np.random.default_rng(5)
    n, dim, crowds = 5_000, 11, 40
    members = native.Members(dim, 2)
    bias, vecs = rng.normal(-2, 1, n).astype(np.float32), rng.normal(0, 0.5, (n, dim)).astype(np.float32)
    of_user = [rng.choice(crowds, rng.integers(0, 6), replace=False).astype(np.uint64) for _ in range(n)]
    indptr = np.concatenate(([0], np.cumsum([len(c) for c in of_user])))
    floors = rng.lognormal(-2, 1, (n, 2)).astype(np.float32)
    nothing = np.zeros(n + 1, np.int64), np.empty(0, np.uint64)
    users = np.arange(1, n + 1, dtype=np.uint64) * 7
    members.put(
        users, bias, vecs, indptr, np.concatenate(of_user), floors, np.full((n, 2), 9, np.uint64), *nothing,
        np.arange(n) * 1_000,
    )  # fmt: skip
    old = np.array([3, 5], np.uint64), np.array([1, 2], np.float32), np.array([7], np.uint64), 1
    new = np.array([3, 9], np.uint64), np.array([2, 1], np.float32), np.array([8], np.uint64), 3
    vec = rng.normal(0, 0.5, dim).astype(np.float32)
    found = members.scan(9, old, new, 0.25, vec).next(n, kernel=kernel)
    expected = []
    for row in reversed(range(n)):
        pctr = native.tower_pctr(
            float(bias[row]), vecs[row], np.zeros(1, np.uint32), np.array([0.25], np.float32), vec[None],
            kernel="portable",
        )[0]  # fmt: skip
        lies = []
        for crowd_ids, bids, negatives, groups in (old, new):
            shared = [
                (bid, -c) for c, bid in zip(crowd_ids.tolist(), bids.tolist(), strict=True) if c in of_user[row]
            ]
            barred = bool(set(negatives.tolist()) & set(of_user[row].tolist()))
            bid, crowd = max(shared) if shared and not barred else (0.0, 0)
            value = np.float32(bid) * pctr
            lies.append([
                (float(value), crowd) if bid and groups >> g & 1 and value >= floors[row, g] else None
                for g in range(2)
            ])  # fmt: skip
        if lies[0] != lies[1]:
            expected.append(int(users[row]))
    assert found.tolist() == expected
    assert 100 < len(expected) < n


@given(st.lists(st.tuples(st.integers(0, 9), st.sets(st.integers(0, 5)), st.booleans()), max_size=60))
@settings(max_examples=100, deadline=None)
def test_a_crowd_holds_who_joined_and_did_not_leave(steps):
    members, model = native.Members(0, 1), {}
    none = np.zeros(2, np.int64), np.empty(0, np.uint64)
    for user, crowds, drop in steps:
        id_ = np.array([user + 1], np.uint64)
        if drop:
            assert members.drop(id_) == (model.pop(user, None) is not None)
            continue
        model[user] = crowds
        members.put(
            id_, np.zeros(1, np.float32), np.zeros((1, 0), np.float32), np.array([0, len(crowds)]),
            np.array(list(crowds), np.uint64), np.full((1, 1), -1, np.float32), np.zeros((1, 1), np.uint64), *none,
            np.zeros(1, np.int64),
        )  # fmt: skip
    assert len(members) == len(model)
    for crowd in range(6):
        ad = np.array([crowd], np.uint64), np.ones(1, np.float32), np.empty(0, np.uint64), 1
        nothing = np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.uint64), 0
        found = members.scan(1, nothing, ad, 0.0, np.empty(0, np.float32)).next(100)
        assert sorted(found.tolist()) == sorted(user + 1 for user, crowds in model.items() if crowd in crowds)


def test_memory_is_given_back_by_users_who_go():
    members = native.Members(16, 1)
    n = 2_000
    users = np.arange(1, n + 1, dtype=np.uint64)
    empty = members.nbytes
    members.put(
        users, np.zeros(n, np.float32), np.zeros((n, 16), np.float32), np.arange(n + 1) * 20,
        np.tile(np.arange(20, dtype=np.uint64), n), np.zeros((n, 1), np.float32), np.zeros((n, 1), np.uint64),
        np.zeros(n + 1, np.int64), np.empty(0, np.uint64), np.zeros(n, np.int64),
    )  # fmt: skip
    full = members.nbytes
    assert (full - empty) / n < 700
    members.drop(users)
    assert members.nbytes < 0.7 * full


def test_wrong_columns_are_refused_by_name():
    members = native.Members(4, 1)
    none = np.zeros(2, np.int64), np.empty(0, np.uint64)
    with pytest.raises(ValueError, match="vecs: expected shape"):
        members.put(
            np.ones(1, np.uint64), np.zeros(1, np.float32), np.zeros((1, 3), np.float32), *none,
            np.zeros((1, 1), np.float32), np.zeros((1, 1), np.uint64), *none, np.zeros(1, np.int64),
        )  # fmt: skip
    with pytest.raises(ValueError, match="old, new"):
        Members(4).scan(None, None, 0.0, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="test_ads: must ascend within user row 0"):
        native.update_rankings(
            np.array([0, 0]), np.empty(0, np.uint64), np.empty(0, np.float32), np.empty(0, np.uint64),
            np.zeros(1, np.float32), np.zeros(1, np.uint64), np.ones(1, bool), np.array([0, 2]),
            np.array([5, 5], np.uint64), np.ones(2, np.float32), np.ones(2, np.uint64), np.ones(2, np.uint8), 3,
        )  # fmt: skip


def test_a_paused_ad_leaves_the_lists_of_those_named_alone():
    world = World(30, 4)
    members = of(world)
    ad_id = int(world.lists[1].rankings[0].ads[2])
    old = world.matcher.market.ad(ad_id)
    world.pause(ad_id)
    named = affected(world, members, old, ad_id)
    assert named == {id for id, stored in world.lists.items() if any(ad_id in r.ads for r in stored.rankings)}
    works = [Work(world.users[id], Before.of(world.users[id]), world.lists[id]) for id in sorted(named)]
    made, counters = lists.update(world.matcher, works)
    assert (counters.full, counters.unchanged) == (0, 0)
    assert all(ad_id not in ranking.ads for stored in made for ranking in stored.rankings)
