"""GetMatches and Rematch around a store that answers, does not, or holds nonsense, and a market that moves."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from matching_kit import small_catalog, small_towers
from matching_served import USER, Context, FakeStore, Served, advertised
from redis.exceptions import InvalidResponse, ResponseError

from services.matching import failpoint
from services.matching.artifacts import LoadedTowers
from services.matching.watch import StoreWatch
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.errors import FieldError, UnavailableError
from vitrine.matching.record import Ranking
from vitrine.matching.updates import Active
from vitrine.placement import arm_of

GROUPS = ("home", "search")


def grouped() -> Served:
    """Two placement groups: every second ad stands in the second alone."""
    catalog = small_catalog()
    masks = np.where(np.arange(len(catalog.ads)) % 2, 2, 3).astype(np.uint8)
    return Served(replace(catalog, ad_groups=masks, groups=GROUPS))


def test_a_stored_list_is_answered_with_its_age_version_and_context():
    served = Served()
    stored = served.hold()
    answer = served.matches(5)
    assert answer.source == pb.SOURCE_STORED
    ranking = stored.rankings[0]
    assert list(answer.ad_ids) == ranking.ads[:5].tolist()
    assert list(answer.values) == ranking.values[:5].tolist()
    assert list(answer.crowd_ids) == ranking.crowds[:5].tolist()
    assert list(answer.bids) == served.market.bids(ranking.ads[:5], ranking.crowds[:5]).tolist()
    assert list(answer.context.keys) == stored.keys.tolist()
    assert list(answer.context.weights) == stored.weights.tolist()
    assert (answer.age_ms, answer.revision, answer.arm) == (5_000, 3, "a")
    assert (answer.catalog_version, answer.towers_version) == ("c1", "t1")
    assert served.store.reads == 1


@pytest.mark.parametrize("off", ["paused", "ended", "schedule", "budget", "bid", "group"])
def test_an_ad_that_may_not_be_shown_is_hidden_and_the_next_moves_up(off):
    served = grouped()
    listed = served.hold().rankings[0]
    shown = [a for a in listed.ads.tolist() if served.ad(a).groups & 1]
    assert list(served.matches(10).ad_ids) == shown[:10]
    first, third = shown[0], shown[2]
    won = int(listed.crowds[listed.ads.tolist().index(first)])
    if off in ("paused", "ended"):
        served.update(first, off)
    elif off in ("schedule", "budget"):
        served.gate(first, **{off: True})
    elif off == "bid":
        ad = served.ad(first)
        rest = [(c, b) for c, b in zip(ad.crowds.tolist(), ad.bids.tolist(), strict=True) if c != won]
        served.update(
            first, "", served.definition(first, crowd_ids=[c for c, _ in rest], bids=[b for _, b in rest])
        )
    else:
        served.update(first, "", served.definition(first, placement_groups=2))
    served.update(third, "paused")
    assert list(served.matches(10).ad_ids) == [a for a in shown if a not in (first, third)][:10]
    served.forget(first)
    served.gate(first)
    served.forget(third)
    assert list(served.matches(10).ad_ids) == shown[:10]


def test_a_bid_that_has_moved_is_answered_as_it_is_now():
    served = Served()
    listed = served.hold().rankings[0]
    first, won = int(listed.ads[0]), int(listed.crowds[0])
    ad = served.ad(first)
    bids = [7.5 if crowd == won else bid for crowd, bid in zip(ad.crowds.tolist(), ad.bids.tolist(), strict=True)]
    served.update(first, "", served.definition(first, bids=bids))
    answer = served.matches(10)
    assert (answer.ad_ids[0], answer.bids[0]) == (first, 7.5)
    assert list(answer.values) == listed.values[:10].tolist()


def test_an_ad_that_updates_alone_know_is_shown_by_its_id_while_it_is_live():
    served = Served()
    stored = served.hold()
    old = stored.rankings[0]
    ads, crowds = np.append(old.ads[:4], np.uint64(100_000)), old.crowds[:5]
    ranking = Ranking(ads, old.values[:5], crowds, True, 0.0, 0)
    served.hold(rankings=(ranking,))
    assert list(served.matches(10).ad_ids) == ads[:4].tolist(), "nothing is known of it yet"
    served.update(100_000, "", served.definition(int(ads[0]), crowd_ids=[int(crowds[4])], bids=[2.5]))
    assert list(served.matches(10).ad_ids) == ads.tolist()
    assert list(served.matches(10).bids)[4] == 2.5
    served.update(100_000, "paused")
    assert list(served.matches(10).ad_ids) == ads[:4].tolist()


def test_numbers_that_the_catalog_does_not_know_are_left_out():
    served = Served()
    later = small_catalog(ads=200)
    stored = served.hold()
    old = stored.rankings[0]
    newer = np.append(later.ads[-1:], old.ads[:4])
    ranking = Ranking(newer, old.values[:5], np.append(old.crowds[:1], old.crowds[:4]), True, 0.0, 0)
    numbers = Served(later)
    numbers.hold(rankings=(ranking,), catalog_version="c2")
    served.store.stored = numbers.store.stored
    answer = served.matches(10)
    assert list(answer.ad_ids) == old.ads[:4].tolist()
    assert answer.catalog_version == "c2"


def test_what_the_caller_excludes_is_left_out():
    served = Served(advertised(small_catalog()))
    listed = served.hold().rankings[0].ads.tolist()
    without = [a for a in listed if a not in listed[:3] and served.ad(a).advertiser != 2]
    answer = served.matches(10, excluded_ad_ids=listed[:3], excluded_advertiser_ids=[2])
    assert answer.source == pb.SOURCE_STORED
    assert list(answer.ad_ids) == without[:10]
    served.update(without[0], "", served.definition(without[0], advertiser_id=2))
    assert list(served.matches(10, excluded_ad_ids=listed[:3], excluded_advertiser_ids=[2]).ad_ids) == without[1:11]


def test_a_fallback_leaves_out_what_the_caller_excludes_however_much_it_is():
    served = Served(advertised(small_catalog()))
    excluded = served.matches(10).ad_ids
    answer = served.matches(10, excluded_ad_ids=excluded, excluded_advertiser_ids=[1, 2, 3])
    assert len(answer.ad_ids) == 10
    assert not set(answer.ad_ids) & set(excluded)
    assert {served.ad(ad).advertiser for ad in answer.ad_ids} == {4, 5}


def test_each_placement_group_has_a_ranking_of_its_own():
    served = grouped()
    stored = served.hold()
    one = stored.rankings[0]
    keep = [[bool(served.ad(ad).groups >> group & 1) for ad in one.ads.tolist()] for group in range(2)]
    rankings = tuple(Ranking(one.ads[rows], one.values[rows], one.crowds[rows], True, 0.0, 0) for rows in keep)
    served.hold(rankings=rankings)
    for group in range(2):
        assert list(served.matches(10, placement_group=group).ad_ids) == rankings[group].ads[:10].tolist()
    served.hold(rankings=rankings[:1])
    answer = served.matches(10, placement_group=1)
    assert answer.source == pb.SOURCE_FALLBACK_NO_LIST, "the list is from before the group"
    assert all(served.ad(ad).groups & 2 for ad in answer.ad_ids)


def test_a_list_older_than_the_caller_allows_is_not_served():
    served = Served()
    stored = served.hold()
    assert served.matches(10, max_age_ms=5_000).source == pb.SOURCE_STORED
    answer = served.matches(10, max_age_ms=4_999)
    assert (answer.source, answer.revision, answer.age_ms) == (pb.SOURCE_FALLBACK_TOO_OLD, 0, 0)
    assert list(answer.context.keys) == stored.keys.tolist()
    crowds = set(stored.rankings[0].crowds[:10].tolist())
    assert set(answer.crowd_ids) <= crowds, "the crowds that won in the list come first"


def test_a_user_without_a_live_ad_gets_the_fallback_which_hides_them_too():
    served = Served()
    best = served.matches(1)
    assert best.source == pb.SOURCE_FALLBACK_NO_LIST
    served.update(best.ad_ids[0], "paused")
    assert len(served.matches(10).ad_ids) == 10
    assert best.ad_ids[0] not in served.matches(10).ad_ids
    stored = served.hold()
    for ad in stored.rankings[0].ads.tolist():
        served.update(ad, "paused")
    answer = served.matches(10)
    assert (answer.source, len(answer.ad_ids), answer.revision) == (pb.SOURCE_FALLBACK_NO_LIST, 10, 0)
    assert list(answer.context.keys) == stored.keys.tolist()


def test_a_fallback_takes_ads_of_the_callers_crowds_first_and_is_never_short():
    served = Served()
    crowd = int(served.catalog.crowds[3])
    bidders = {ad for ad in served.catalog.ads.tolist() if crowd in served.catalog.bids_of(ad)[0]}
    answer = served.matches(10, crowd_ids=[crowd, 999_979])
    assert set(answer.ad_ids) <= bidders
    assert set(answer.crowd_ids) == {crowd}
    assert list(answer.values) == sorted(answer.values, reverse=True)
    for ad in sorted(bidders)[:-2]:
        served.update(ad, "paused")
    answer = served.matches(10, crowd_ids=[crowd])
    assert set(answer.ad_ids[:2]) == set(sorted(bidders)[-2:])
    assert len(set(answer.ad_ids)) == 10


def test_a_fallback_has_every_ad_that_is_left():
    served = Served()
    for ad in served.catalog.ads[:-3].tolist():
        served.update(ad, "paused")
    left = [ad for ad in served.catalog.ads[-3:].tolist() if len(served.catalog.bids_of(ad)[0])]
    assert sorted(served.matches(10).ad_ids) == left


def test_an_answer_names_the_users_arm():
    catalog = small_catalog()
    towers = {arm: LoadedTowers(small_towers(catalog, seed), f"t{arm}") for arm, seed in (("a", 2), ("b", 3))}
    served = Served(catalog, Active(0, 5, "c1", "ta", "tb", 500), towers)
    answers = {user_id: served.matches(5, user_id) for user_id in range(1, 60)}
    assert {user_id: answer.arm for user_id, answer in answers.items()} == {
        user_id: arm_of(user_id, 500) for user_id in range(1, 60)
    }
    assert {answer.arm: answer.towers_version for answer in answers.values()} == {"a": "ta", "b": "tb"}
    stored = served.hold(arm="b")
    assert (served.matches(5).arm, served.matches(5).towers_version) == ("b", "tb")
    assert list(served.matches(5).ad_ids) == stored.rankings[0].ads[:5].tolist()


def test_a_store_that_does_not_answer_is_not_asked_again_until_the_watch_says_so():
    served = Served()
    served.hold()
    served.store.away = True
    assert served.matches().source == pb.SOURCE_FALLBACK_STORE_LOST
    assert served.watch.lost
    assert len(served.matches(10).ad_ids) == 10
    assert served.store.reads == 1
    served.store.away, served.watch.lost = False, None
    assert served.matches().source == pb.SOURCE_STORED


@pytest.mark.parametrize("error", [UnavailableError("away"), InvalidResponse("HTTP/1.1 400")])
def test_the_watch_sees_redis_go_and_come_back(error):
    seen = threading.Event()
    store = FakeStore()
    store.error = error

    def ping() -> None:
        seen.set()
        store.ping()

    watch = StoreWatch(ping, interval_s=0.001)
    for away in (True, False):
        store.away = away
        for _ in range(2):  # the second question was asked after the change
            seen.clear()
            assert seen.wait(10)
        seen.clear()
        assert seen.wait(10)
        assert (watch.lost is not None) == away
    watch.close()


def test_a_record_that_someone_else_wrote_is_no_list():
    served = Served()
    served.store.stored = b"someone else's"
    assert served.matches().source == pb.SOURCE_FALLBACK_NO_LIST
    served.store.away, served.store.error = True, ResponseError("WRONGTYPE")
    assert served.matches().source == pb.SOURCE_FALLBACK_NO_LIST
    assert served.watch.lost is None, "it is one user's list that is spoilt"


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": 100_000}, "k"),
        ({"user_id": 0}, "user_id"),
        ({"placement_group": 1}, "placement_group"),
        ({"excluded_ad_ids": range(1, 1_002)}, "excluded_ad_ids"),
        ({"excluded_advertiser_ids": range(1, 102)}, "excluded_advertiser_ids"),
        ({"crowd_ids": range(1, 66)}, "crowd_ids"),
    ],
)
def test_a_bad_request_names_its_field(wrong, field):
    with pytest.raises(FieldError) as refused:
        Served().servicer.GetMatches(pb.GetMatchesRequest(**({"user_id": USER, "k": 1} | wrong)), None)
    assert refused.value.field == field


@pytest.mark.parametrize(("left_s", "waits_s"), [(0.5, 0.5), (None, 5.0), (900.0, 5.0)])
def test_rematch_appends_to_the_log_within_the_calls_time(left_s, waits_s):
    served = Served()
    answer = served.servicer.Rematch(pb.RematchRequest(user_id=USER), Context(left_s))
    assert (answer.request_id, answer.partition, answer.offset) == ("r1", 3, 7)
    assert served.rematches.asked == [(USER, waits_s)]


def test_rematch_refuses_nobody_and_is_unavailable_without_the_log():
    served = Served()
    with pytest.raises(FieldError, match="user_id"):
        served.servicer.Rematch(pb.RematchRequest(), Context(1.0))
    served.rematches.away = True
    with pytest.raises(UnavailableError):
        served.servicer.Rematch(pb.RematchRequest(user_id=USER), Context(1.0))


@pytest.mark.parametrize("text", ["after-write", "after-write:0", "nowhere:1", "after-write:x"])
def test_a_failpoint_that_does_not_exist_is_refused(text):
    with pytest.raises(ValueError, match="NAME:N"):
        failpoint.from_setting(text)
