"""Lists brought up to date by increments against all eligible pairs, whatever users and the market do meanwhile."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_increments import USERS, World, block, contents
from matching_kit import DAY_MS

from vitrine.data.replay import user_event
from vitrine.matching import lists
from vitrine.matching.lists import Before, Work

EVENTS = ("join", "leave", "view", "click", "impression", "block", "unblock", "wait", "refresh")
CHANGES = ("define", "define", "state", "gate", "tombstone", "fold")

numbers = st.integers(0, 200)
steps = st.one_of(
    st.tuples(st.just("event"), st.sampled_from(USERS), st.sampled_from(EVENTS), numbers),
    st.tuples(st.just("change"), st.sampled_from(CHANGES), numbers, numbers),
    st.tuples(st.just("bring"), st.lists(st.sampled_from(USERS), unique=True, min_size=1)),
)


def run(world: World, todo) -> World:
    for kind, *step in todo:
        getattr(world, kind)(*step)
    world.bring()
    return world


anything = st.lists(steps, max_size=25), st.sampled_from([(8, 4), (3, 1), (100, 4)]), st.sampled_from([0, 0, 1, 2])


@given(*anything)
@settings(max_examples=80, deadline=None)
def test_a_list_holds_all_that_is_at_or_above_its_floor_after_any_changes(todo, sizes, advertiser_cap):
    run(World(*sizes, advertiser_cap=advertiser_cap), todo)


@pytest.mark.slow
@given(*anything)
@settings(max_examples=4_000, deadline=None)
def test_the_same_over_thousands_of_sequences(todo, sizes, advertiser_cap):
    run(World(*sizes, advertiser_cap=advertiser_cap), todo)


def top(world: World, user_id: int = 1) -> int:
    return int(world.lists[user_id].rankings[0].ads[0])


def without_increments(world: World) -> int:
    return sum(each.full for each in world.counters[1:])


def seen_out(world: World, ad: int) -> None:
    """Impressions of an ad, one by one, until user 1's list lacks it."""
    for _ in range(3):
        world._fold(1, world_event(world, "impression", ad))
        world.bring()
        if ad not in world.lists[1].rankings[0].ads:
            return
    raise AssertionError(f"ad {ad} has no cap")


def world_event(world: World, kind: str, ad: int):
    return user_event(kind, 1, world.clock, 0, 0, ad)


def test_a_blocked_ad_leaves_the_list_and_comes_back_without_a_full_match():
    world = World(100, 4)
    ad, before = top(world), contents(world.lists[1])
    world._fold(1, block(ad, world.clock, False))
    world.bring()
    assert top(world) != ad
    world._fold(1, block(ad, world.clock, True))
    world.bring()
    assert contents(world.lists[1]) == before
    assert without_increments(world) == 0


def test_a_capped_ad_comes_back_when_the_users_clock_is_a_window_past_its_last_impression():
    world = World(100, 4)
    before = contents(world.lists[1])
    capped = [ad for ad in world.lists[1].rankings[0].ads.tolist() if world.matcher.market.ad(ad).max_impressions]
    seen_out(world, capped[0])
    world.clock += DAY_MS
    world._fold(1, world_event(world, "impression", 2**40))
    world.bring()
    assert contents(world.lists[1]) == before
    assert without_increments(world) == 0


def test_a_list_does_not_depend_on_who_else_is_in_the_call():
    world = World(8, 4, advertiser_cap=1)
    for user_id in USERS:
        for kind, target in (("join", 4), ("leave", 0), ("block", 1)):
            world.event(user_id, kind, target + user_id)
    for detail in range(20):
        world.change("define", 7 * detail, detail)
    works = [Work(world.users[id], world.before[id], world.lists[id]) for id in USERS]
    together, _ = lists.update(world.matcher, works)
    for work, stored in zip(works, together, strict=True):
        ((alone,), _) = lists.update(world.matcher, [work])
        assert contents(alone) == contents(stored)
        assert [r.floor_ad for r in alone.rankings] == [r.floor_ad for r in stored.rankings]


def test_a_list_that_nothing_touches_keeps_its_very_rankings():
    world = World()
    held = world.lists[1].rankings
    world.event(1, "impression", 4 * 63)  # of an ad that nobody has
    assert world.bring([1])[0].rankings is held
    assert world.counters[-1].unchanged == 1


def test_a_list_of_other_towers_another_epoch_or_another_market_is_matched_anew():
    world = World()
    work = Work(world.users[1], Before.of(world.users[1]), world.lists[1])
    others = {"epoch": 5, "towers_version": "t0", "catalog_version": "c0", "served": 3}
    for field, value in others.items():
        other = Work(work.state, work.before, replace(work.stored, **{field: value}))
        assert lists.update(world.matcher, [other])[1].full == 1, field
    assert lists.update(world.matcher, [Work(work.state, None, work.stored)])[1].full == 1
    assert lists.update(world.matcher, [Work(work.state, work.before, None)])[1].full == 1
    assert lists.update(world.matcher, [work])[1].full == 0


def test_a_market_behind_the_list_is_refused():
    world = World()
    with pytest.raises(ValueError, match="up to 9, the market those up to 0"):
        lists.update(world.matcher, [Work(world.users[1], Before.of(world.users[1]), world.lists[1], position=9)])


def test_changes_that_the_watermark_covers_are_not_tested_again():
    world = World()
    world.change("state", 4 * 5, 1)
    before = Before.of(world.users[1])
    stored, _ = lists.update(world.matcher, [Work(world.users[1], before, world.lists[1], position=1)])
    assert stored[0].rankings is world.lists[1].rankings
    assert stored[0].position == 1
