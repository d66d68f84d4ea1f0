"""Lists against the slow definition, and explanations against lists."""

import numpy as np
import pytest
from matching_kit import START_MS, random_event, small_catalog, small_matcher, small_towers

from vitrine import native
from vitrine.data.replay import user_event
from vitrine.matching import record
from vitrine.matching.events import RecordError
from vitrine.matching.market import Market
from vitrine.matching.match import Matcher
from vitrine.matching.state import UserState, features, fold


def users(matcher: Matcher, count: int = 30, events: int = 12) -> list[UserState]:
    rng = np.random.default_rng(11)
    states = []
    for user_id in range(1, count + 1):
        user = UserState(user_id)
        for offset in range(int(rng.integers(0, events))):
            event = random_event(rng, matcher.catalog, user_id, START_MS + offset * 10**8)
            fold(user, event, START_MS + 10**12, offset, matcher.table)
        states.append(user)
    return states


def slow_list(matcher: Matcher, towers, user: UserState, k: int) -> list[tuple[int, float, int, float]]:
    """(ad, value, crowd, bid) best first, by the definition: every eligible pair, one ad at a time."""
    catalog = matcher.catalog
    bias, vec = towers.user(*features(user))
    pctrs = {}
    for ordinal, ad in enumerate(catalog.ads.tolist()):
        row = np.flatnonzero(towers.ads == ad)
        ad_bias = towers.ad_bias[row] if len(row) else np.zeros(1, np.float32)
        ad_vec = towers.ad_vecs[row] if len(row) else np.zeros((1, towers.dim), np.float32)
        pctrs[ordinal] = native.tower_pctr(float(bias), vec, np.zeros(1, np.uint32), ad_bias, ad_vec)[0]
    best: dict[int, tuple[float, float, int]] = {}
    for crowd in sorted(user.crowds):
        for ordinal, bid in zip(*catalog.postings(crowd), strict=True):
            value = np.float32(bid) * pctrs[int(ordinal)]
            if int(ordinal) not in best or bid > best[int(ordinal)][1]:
                best[int(ordinal)] = (float(value), float(bid), crowd)
    rows = sorted(best, key=lambda o: (-best[o][0], o))[:k]
    return [(int(catalog.ads[o]), best[o][0], best[o][2], best[o][1]) for o in rows]


def test_lists_are_the_top_of_all_eligible_pairs_to_the_bit():
    matcher = small_matcher()
    towers = small_towers(matcher.catalog)
    states = users(matcher)
    for user, stored in zip(states, matcher.lists(states), strict=True):
        expected = slow_list(matcher, towers, user, matcher.stored)
        (ranking,) = stored.rankings
        bids = matcher.market.bids(ranking.ads, ranking.crowds)
        got = zip(*(a.tolist() for a in (ranking.ads, ranking.values, ranking.crowds, bids)), strict=True)
        assert list(got) == expected
        assert ranking.complete == (len(ranking.ads) < matcher.stored)
        if not ranking.complete:
            assert (ranking.floor_value, ranking.floor_ad) == (expected[-1][1], expected[-1][0])


def test_a_list_does_not_depend_on_who_else_is_in_the_batch():
    matcher = small_matcher()
    together = record.encode_many(matcher.lists(users(matcher)), matcher.catalog)
    alone = [record.encode(matcher.lists([user])[0], matcher.catalog) for user in users(matcher)]
    assert together == alone


def test_explanations_have_the_lists_bits_and_say_why_others_are_absent():
    matcher = small_matcher()
    for user, stored in zip(states := users(matcher), matcher.lists(states), strict=True):
        (ranking,) = stored.rankings
        reasons = {r.ad: r for r in matcher.explain(user, [*matcher.catalog.ads.tolist(), 999_961])}
        for rank, ad in enumerate(ranking.ads.tolist()):
            reason = reasons[ad]
            assert (reason.value, reason.crowd) == (float(ranking.values[rank]), int(ranking.crowds[rank]))
        assert not reasons[999_961].known
        listed = set(ranking.ads.tolist())
        for ad, reason in reasons.items():
            if ad not in listed and len(reason.crowds):
                assert (reason.value, -ad) < (ranking.floor_value, -ranking.floor_ad)
            if not len(reason.crowds):
                assert (reason.crowd, reason.bid, reason.value) == (0, 0.0, 0.0)


def test_a_tower_of_another_model_is_not_explained():
    matcher = small_matcher()
    (user,) = users(matcher, 1)
    matcher.lists([user])
    catalog = small_catalog()
    newer = Matcher(Market.of(catalog), small_towers(catalog), towers_version="t2")
    with pytest.raises(RecordError, match="towers t1, and this process holds t2"):
        newer.explain(user, [3])


def test_a_user_in_no_crowd_has_an_empty_complete_list():
    matcher = small_matcher()
    stranger, unknown = UserState(1), UserState(2)
    fold(unknown, user_event("join", 2, START_MS, 0, 999_979, 0), START_MS, 0, matcher.table)
    for stored in matcher.lists([stranger, unknown]):
        (ranking,) = stored.rankings
        assert (len(ranking.ads), ranking.complete, ranking.floor_value) == (0, True, 0.0)


def test_the_fallback_holds_every_ad_once_by_its_best_bid():
    matcher = small_matcher()
    fallback = matcher.fallback(1_000).rankings[0]
    bidding = {ad for ad in matcher.catalog.ads.tolist() if len(matcher.catalog.bids_of(ad)[0])}
    assert set(fallback.ads.tolist()) == bidding
    assert np.all(np.diff(fallback.values) <= 0)
    assert fallback.ads[:5].tolist() == matcher.fallback(5).rankings[0].ads.tolist()
