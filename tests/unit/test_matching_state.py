"""The user state: what events leave behind, to the byte, and what stays the same as time passes."""

import hashlib
import math
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matching_kit import DAY_MS, START_MS, random_event, small_catalog

from vitrine.api.events.v1.events_pb2 import AdBlock, CrowdChange, ItemAction, UserEvent
from vitrine.data.replay import user_event
from vitrine.matching import decay, state
from vitrine.matching.events import MAX_VALUE_BYTES, RecordError, parse_event
from vitrine.matching.state import EventTable, UserState, fold

CATALOG = small_catalog()
TABLE = EventTable(CATALOG)
HALF_LIFE_MS = CATALOG.half_life_ms
ITEM = int(CATALOG.items[0])
USER = 77


def event(kind: str, time_ms: int = START_MS, *, item: int = ITEM, crowd: int = 10, ad: int = 3) -> UserEvent:
    return user_event(kind, USER, time_ms, item, crowd, ad)


def folded(events: list[UserEvent], append_ms: int = START_MS + 10_000 * DAY_MS) -> UserState:
    user = UserState(USER)
    for offset, each in enumerate(events):
        fold(user, each, append_ms, offset, TABLE)
    return user


@st.composite
def histories(draw):
    """Events over some years, as they arrive: mostly in order, now and then years late."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    times = START_MS + np.cumsum(rng.exponential(draw(st.sampled_from((1e3, 1e8, 1e11))), draw(st.integers(1, 60))))
    late = rng.random(len(times)) < 0.1
    times[late] -= rng.exponential(1e11, late.sum())
    return [random_event(rng, CATALOG, USER, max(0, int(t))) for t in times]


@settings(deadline=None)
@given(histories(), st.data())
def test_a_state_written_and_read_between_any_two_events_ends_in_the_same_bytes(events, data):
    whole, parts = UserState(USER), UserState(USER)
    for offset, each in enumerate(events):
        fold(whole, each, START_MS, offset, TABLE)
        fold(parts, each, START_MS, offset, TABLE)
        if data.draw(st.booleans()):
            parts = state.decode(state.encode(parts))
    assert state.encode(parts) == state.encode(whole)


def slow_weights(events: list[UserEvent], now_ms: int) -> dict[int, float]:
    """Items' weights as of now by the definition: each event's base, halved once a half-life."""
    weights: dict[int, float] = {}
    for each in events:
        if each.WhichOneof("kind") == "item":
            base, item = 1.0 if each.item.action == ItemAction.ACTION_PURCHASE else 0.2, each.item.item_id
        elif each.WhichOneof("kind") == "click":
            base, item = 0.5, TABLE.item_of(each.click.ad_id)
        else:
            continue
        if item:
            weights[item] = weights.get(item, 0.0) + base * 2.0 ** ((each.time_ms - now_ms) / HALF_LIFE_MS)
    return weights


@settings(deadline=None)
@given(histories())
def test_weights_are_the_decayed_sums_of_the_definition(events):
    user = folded(events, append_ms=10**15)
    if not user.items:
        return
    expected = slow_weights(events, user.clock_ms)
    age = 2.0 ** ((user.landmark_ms - user.clock_ms) / HALF_LIFE_MS)
    for item, weight in user.items.items():
        assert weight * age == pytest.approx(expected[item], rel=1e-5, abs=1e-300)


@settings(deadline=None)
@given(histories(), st.randoms())
def test_late_events_commute(events, random):
    items = [each for each in events if each.WhichOneof("kind") in ("item", "click")]
    shuffled = list(items)
    random.shuffle(shuffled)
    a, b = folded(items, append_ms=10**15), folded(shuffled, append_ms=10**15)
    if not a.items or not b.items:
        return
    move = 2.0 ** ((b.landmark_ms - a.landmark_ms) / HALF_LIFE_MS)
    if not 1e-250 < move < 1e250:
        return
    for item in a.items.keys() & b.items.keys():
        assert a.items[item] == pytest.approx(b.items[item] * move, rel=1e-5, abs=1e-250)


@settings(deadline=None)
@given(histories(), st.integers(1, 40))
def test_features_do_not_change_when_the_landmark_moves(events, half_lives):
    user = folded(events)
    before = state.features(user)
    least = min([*user.items.values(), *user.crowds.values()], default=1.0)
    state._rescale(user, math.ldexp(1.0, -half_lives))
    after = state.features(user)
    if math.ldexp(least, -half_lives) >= decay.LEAST_WEIGHT:  # nothing was so small as to vanish
        assert [a.tobytes() for a in before] == [a.tobytes() for a in after]


@settings(deadline=None)
@given(st.integers(-60_000, 60_000), st.integers(1, 2**45))
def test_powers_of_two_are_close_to_the_librarys(halves, denominator):
    numerator = halves * denominator // 64
    assert decay.exp2(numerator, denominator) == pytest.approx(2.0 ** (numerator / denominator), rel=1e-6)


def test_the_same_events_give_the_bytes_that_they_gave_on_the_first_machine():
    kinds = ("view", "purchase", "join", "leave", "impression", "click", "view")
    events = [
        event(
            kinds[i % 7],
            START_MS + (i * 7_919 % 1_000) * DAY_MS,
            item=7 * (1 + i % 60),
            crowd=10 * (1 + i % 13),
            ad=3 * (1 + i % 60),
        )
        for i in range(500)
    ]
    assert hashlib.sha256(state.encode(folded(events))).hexdigest()[:16] == GOLDEN


GOLDEN = "6149e653c7cb1f33"


def test_an_events_time_is_capped_by_the_brokers():
    user = folded([event("purchase", START_MS + DAY_MS)], append_ms=START_MS)
    assert user.clock_ms == START_MS == user.landmark_ms


def test_every_event_counts_as_one_revision():
    kinds = ("view", "purchase", "join", "leave", "impression", "click")
    assert folded([event(kind) for kind in kinds]).revision == len(kinds)


def test_an_item_brings_its_crowds_and_an_unknown_one_only_itself():
    assert set(folded([event("view")]).crowds) == set(CATALOG.item_crowds(ITEM).tolist())
    unknown = folded([event("view", item=999_983)])
    assert (set(unknown.items), unknown.crowds) == ({999_983}, {})


def test_leaving_takes_a_crowd_away_until_an_item_brings_it_back():
    crowd = int(CATALOG.item_crowds(ITEM)[0])
    gone = folded([event("purchase"), event("leave", crowd=crowd)])
    assert crowd not in gone.crowds
    assert ITEM in gone.items
    assert crowd in folded([event("purchase"), event("leave", crowd=crowd), event("view")]).crowds


def test_a_joined_crowd_stays_whatever_the_decay_and_an_items_crowd_vanishes():
    later = START_MS + 3_000 * HALF_LIFE_MS
    user = folded([event("purchase"), event("join", crowd=999_979), event("view", later, item=999_983)], later)
    assert set(user.crowds) == {999_979}
    assert user.crowds[999_979] > 0
    assert set(user.items) == {999_983}


def test_an_event_so_late_that_nothing_is_left_of_it_adds_no_member():
    user = folded([event("purchase", START_MS), event("view", START_MS - 1_100 * HALF_LIFE_MS, item=999_983)])
    assert 999_983 not in user.items
    assert user.revision == 2


def test_the_smallest_weights_go_first_and_higher_ids_among_equals():
    user = folded([event("view", item=1_000_000 + i) for i in range(state.MAX_ITEMS + 2)])
    assert set(user.items) == {1_000_000 + i for i in range(state.MAX_ITEMS)}
    user = folded([event("view", item=1_000_000), *(event("purchase", item=2_000_000 + i) for i in range(50))])
    assert 1_000_000 not in user.items


def test_joined_crowds_have_a_bound_of_their_own():
    joins = [event("join", START_MS - 400 * HALF_LIFE_MS, crowd=1_000_000 + i) for i in range(state.MAX_JOINED)]
    user = folded([*joins, event("purchase")])
    assert user.joined == {1_000_000 + i for i in range(state.MAX_JOINED)}
    assert set(user.crowds) - user.joined == set(CATALOG.item_crowds(ITEM).tolist())
    assert len(folded([*joins, event("join", crowd=5)]).joined) == state.MAX_JOINED


def test_seen_and_clicked_ads_are_counted_and_the_oldest_forgotten():
    shown = [event("impression", START_MS + 1_000 * i, ad=1_000 + i) for i in range(state.MAX_ADS + 1)]
    user = folded([*shown, event("click", START_MS + 90_000, ad=1_050)])
    assert set(user.ads) == {1_001 + i for i in range(state.MAX_ADS)}
    assert user.ads[1_050] == state.SeenAd(1, 1, START_MS + 50_000)


def test_a_click_counts_half_a_purchase_of_the_ads_item():
    ad = int(CATALOG.ads[0])
    user = folded([event("click", ad=ad)])
    item = CATALOG.item_of(ad)
    assert user.items == {item: 0.5}
    assert user.crowds == dict.fromkeys(CATALOG.item_crowds(item).tolist(), 0.5)


def block(ad: int, *, unblocked: bool = False) -> UserEvent:
    return UserEvent(user_id=USER, time_ms=START_MS, block=AdBlock(ad_id=ad, unblocked=unblocked))


def other(kind: str) -> UserEvent:
    return UserEvent(user_id=USER, time_ms=START_MS, **{kind: {}})


def applied(user: UserState, each: UserEvent, append_ms: int = START_MS, offset: int = 1_000) -> state.Folded:
    return fold(user, each, append_ms, offset, TABLE)


def test_a_blocked_ad_is_kept_until_it_is_unblocked():
    user = UserState(USER)
    assert applied(user, block(3)).exclusions
    assert not applied(user, block(3)).exclusions
    applied(user, block(6))
    assert state.decode(state.encode(user)).blocked == {3, 6} == user.blocked
    assert applied(user, block(3, unblocked=True)).exclusions
    assert not applied(user, block(3, unblocked=True)).exclusions
    assert user.blocked == {6}
    user = folded([block(1 + i) for i in range(state.MAX_BLOCKED + 2)])
    assert user.blocked == set(range(3, state.MAX_BLOCKED + 3))


def test_a_rematch_changes_nothing_but_the_revision():
    user = folded([event("purchase"), event("impression")])
    take(user)
    before = state.encode(user)
    outcome = applied(user, other("rematch"), offset=1)
    assert outcome == state.Folded(rematch=True)
    user.revision -= 1
    user.append_ms = state.decode(before).append_ms
    user.clock_ms = state.decode(before).clock_ms
    assert state.encode(user) == before


def test_a_deletion_leaves_a_tombstone_that_does_not_tell_what_was_there():
    one = folded([event("purchase"), event("join", crowd=5), block(3), event("impression")])
    two = UserState(USER)
    for user in (one, two):
        outcome = applied(user, other("deletion"), START_MS + 5, 40)
        assert outcome.deleted
        assert user.is_tombstone
        assert (user.deleted_ms, user.deleted_offset, user.offset) == (START_MS + 5, 40, 41)
    assert state.encode(one) == state.encode(two)
    assert state.decode(state.encode(one)).is_tombstone


def test_what_was_appended_before_a_deletion_stays_forgotten_when_it_is_read_again():
    user = folded([event("purchase")])
    applied(user, other("deletion"), START_MS, 40)
    tombstone = state.encode(user)
    for offset in (0, 39, 40):
        assert applied(user, event("purchase"), START_MS, offset) == state.Folded(applied=False)
    assert state.encode(user) == tombstone
    later = applied(user, event("purchase"), START_MS, 41)
    assert later.applied
    assert not user.is_tombstone
    assert (user.revision, user.deleted_offset) == (1, 40)
    assert state.decode(state.encode(user)).deleted_offset == 40
    # Refolded from the tombstone on, the same bytes.
    again = state.decode(tombstone)
    for offset, each in ((3, event("view")), (40, other("deletion")), (41, event("purchase"))):
        applied(again, each, START_MS, offset)
    assert state.encode(again) == state.encode(user)


def test_a_counter_of_impressions_begins_anew_a_window_after_the_last():
    window = TABLE.cap_window_ms
    user = folded([event("impression", START_MS), event("impression", START_MS + window - 1_000)])
    seen = user.ads[3]
    assert (seen.impressions, state.capped(seen, 2, user.clock_ms, window)) == (2, True)
    assert not state.capped(seen, 0, user.clock_ms, window), "0 is no bound"
    assert not state.capped(seen, 3, user.clock_ms, window)
    assert not state.capped(seen, 2, seen.last_ms + window, window)
    applied(user, event("impression", START_MS + 2 * window), START_MS + 2 * window)
    assert user.ads[3].impressions == 1


def test_a_late_impression_neither_moves_the_window_back_nor_is_lost():
    user = folded([event("impression", START_MS + 9_000), event("impression", START_MS)])
    assert user.ads[3] == state.SeenAd(2, 0, START_MS + 9_000)


def take(user: UserState) -> None:
    state.take_tower(user, 0.5, np.ones(2, np.float32), "t1", 9)


def test_the_tower_is_due_often_at_first_then_every_eighth_change():
    user, due = UserState(USER), []
    for i in range(60):
        if applied(user, event("view", item=1_000 + i), offset=i).due:
            due.append(i + 1)
            take(user)
    assert due == [1, 2, 3, 5, 7, 10, 14, 19, 26, 34, 42, 50, 58]


def test_a_tower_that_misses_a_change_is_due_once_the_users_clock_is_a_day_past_it():
    user = folded([event("view", item=1_000 + i) for i in range(40)])
    take(user)
    assert not applied(user, event("view")).due
    assert not applied(user, event("impression", START_MS + state.DAY_MS - 1), START_MS + 10 * DAY_MS).due
    assert applied(user, event("impression", START_MS + state.DAY_MS), START_MS + 10 * DAY_MS).due
    take(user)
    assert not applied(user, event("impression", START_MS + 9 * DAY_MS), START_MS + 10 * DAY_MS).due, "it has all"


def test_a_users_first_event_makes_a_tower_due_whatever_it_is():
    assert applied(UserState(USER), event("impression")).due


def test_the_outcome_says_whether_the_user_entered_or_left_a_crowd():
    user = UserState(USER)
    assert applied(user, event("purchase")).crowds
    again = applied(user, event("purchase"))
    assert (again.features, again.crowds) == (True, False)
    assert applied(user, event("join", crowd=999_979)).crowds
    assert not applied(user, event("join", crowd=999_979)).crowds
    assert applied(user, event("leave", crowd=999_979)).crowds
    gone = applied(user, event("leave", crowd=999_979))
    assert (gone.features, gone.crowds) == (False, False)
    later = START_MS + 3_000 * HALF_LIFE_MS
    assert applied(user, event("view", later, item=999_983), later).crowds, "the old ones have vanished"


@settings(deadline=None)
@given(histories())
def test_the_outcome_is_true_of_every_event(events):
    user = UserState(USER)
    for offset, each in enumerate(events):
        members, weights = set(user.crowds), (dict(user.items), dict(user.crowds))
        outcome = fold(user, each, 10**15, offset, TABLE)
        if set(user.crowds) != members:
            assert outcome.crowds
        if (user.items, user.crowds) != weights:
            assert outcome.features or outcome.crowds


def test_a_state_of_50_crowds_and_50_seen_ads_takes_at_most_1000_bytes():
    rng = np.random.default_rng(4)
    user = UserState(2**40, 10**6, 2**40, START_MS, START_MS, START_MS - 10**10, HALF_LIFE_MS)
    crowds, ads = rng.choice(2**24, 50, replace=False), rng.choice(2**23, 50, replace=False)
    user.crowds = {int(c): float(np.float32(rng.random() + 0.2)) for c in crowds}
    times = START_MS - 1_000 * rng.integers(0, 30 * 86_400, 50)
    user.ads = {int(a): state.SeenAd(int(rng.integers(1, 9)), 0, int(t)) for a, t in zip(ads, times, strict=True)}
    state.take_tower(user, 0.5, rng.normal(size=16).astype(np.float32), "20261124-180000-abcdef0123")
    assert len(state.encode(user)) <= 1_000
    assert state.decode(state.encode(user)).ads == user.ads


def test_a_state_of_schema_1_is_read_with_its_weights_rounded():
    body = struct.pack("<4sHHQQQqqqqHHHHHf", b"VMST", 1, 0, 77, 5, 9, 30, 2_000_000, 10, 1_000, 1, 2, 1, 2, 2, 0.5)
    body += struct.pack("<Qd", 7, 0.1) + struct.pack("<2Q2d2B", 10, 20, 0.3, 1e-300, 0, 1)
    body += struct.pack("<QqII", 3, 1_234_567, 4, 1) + np.ones(2, np.float32).tobytes() + b"t1"
    user = state.decode(body + struct.pack("<I", zlib.crc32(body)))
    assert (user.user_id, user.revision, user.offset, user.listed) == (77, 5, 9, 5)
    assert user.items == {7: float(np.float32(0.1))}
    assert user.crowds == {10: float(np.float32(0.3)), 20: decay.LEAST_WEIGHT}
    assert (user.joined, user.ads) == ({20}, {3: state.SeenAd(4, 1, 1_234_000)})
    assert (user.towers_version, user.vec.tolist(), user.epoch, user.blocked) == ("t1", [1.0, 1.0], -1, set())
    assert state.encode(state.decode(state.encode(user))) == state.encode(user)
    with pytest.raises(RecordError, match="damaged"):
        state.decode(body + b"\0\0\0\0")


def test_another_half_life_takes_over_at_the_users_clock():
    user = folded([event("purchase", START_MS), event("impression", START_MS + HALF_LIFE_MS)])
    shorter = EventTable(small_catalog())
    shorter.half_life_ms = DAY_MS
    fold(user, event("view", START_MS + HALF_LIFE_MS, item=999_983), START_MS + HALF_LIFE_MS, 2, shorter)
    assert user.items[999_983] / user.items[ITEM] == pytest.approx(0.2 / 0.5)


@settings(deadline=None)
@given(histories(), st.data())
def test_a_state_cut_short_or_altered_is_refused_not_misread(events, data):
    encoded = state.encode(folded(events))
    with pytest.raises(RecordError):
        state.decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    at = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises(RecordError):
        state.decode(encoded[:at] + bytes([encoded[at] ^ 1]) + encoded[at + 1 :])


def test_a_state_of_a_newer_schema_is_refused():
    encoded = state.encode(folded([event("view")]))
    with pytest.raises(RecordError, match="schema 3; this reader knows 2"):
        state.decode(encoded[:4] + b"\x03\x00" + encoded[6:])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_random_bytes_are_parsed_or_refused_and_nothing_else(value):
    try:
        parsed = parse_event(b"77", value)
    except RecordError:
        return
    assert parsed.user_id == 77


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"77", None, "tombstone"),
        (b"77", b"\xff\xff", "no UserEvent"),
        (b"77", b"", "user_id: 0"),
        (b"78", event("view"), "key: b'78'"),
        (b"077", event("view"), "decimal ASCII"),
        (None, event("view"), "key: absent"),
        (b"77", UserEvent(user_id=USER, time_ms=1), "kind: unset"),
        (b"77", event("view", -1), "time_ms: -1"),
        (b"77", UserEvent(user_id=USER, item=ItemAction(item_id=1)), "item.action: 0"),
        (b"77", UserEvent(user_id=USER, item=ItemAction(item_id=1, action=9)), "item.action: 9"),
        (b"77", UserEvent(user_id=USER, crowd=CrowdChange(crowd_id=1)), "crowd.change: 0"),
        (b"77", event("view", item=0), "item.item_id: 0"),
        (b"77", event("join", crowd=0), "crowd.crowd_id: 0"),
        (b"77", event("impression", ad=0), "impression.ad_id: 0"),
        (b"77", event("click", ad=0), "click.ad_id: 0"),
        (b"77", block(0), "block.ad_id: 0"),
        (b"77", b"x" * (MAX_VALUE_BYTES + 1), "65537 bytes"),
    ],
)
def test_what_is_wrong_with_a_record_is_said(key, value, reason):
    with pytest.raises(RecordError, match=reason):
        parse_event(key, value.SerializeToString() if isinstance(value, UserEvent) else value)
