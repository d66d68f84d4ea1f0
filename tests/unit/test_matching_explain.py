"""Explain: every verdict, and what it refuses to say."""

import numpy as np
import pytest
from matching_kit import DAY_MS, START_MS
from matching_served import USER, Served, listed

from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.errors import FieldError, NotFoundError, UnavailableError
from vitrine.matching import record, state
from vitrine.matching.record import Ranking
from vitrine.matching.state import SeenAd, UserState, forget


def test_explain_says_how_every_ad_stands():
    served = Served()
    user = served.user(1)
    stored = served.hold(user)
    catalog, ads = served.catalog, stored.rankings[0].ads.tolist()
    served.update(ads[1], "paused")
    served.gate(ads[2], schedule=True)
    served.gate(ads[3], budget=True)
    crowds = set(user.crowds)
    shares = {ad: crowds & set(catalog.bids_of(ad)[0].tolist()) for ad in catalog.ads.tolist()}
    below = next(ad for ad, shared in shares.items() if shared and ad not in ads)
    none = next(ad for ad, shared in shares.items() if not shared)
    answer = served.explain(*ads[:4], below, none, 999_961)
    assert [pb.Verdict.Name(e.verdict) for e in answer.explanations] == [
        "VERDICT_LISTED",
        "VERDICT_PAUSED",
        "VERDICT_OUT_OF_SCHEDULE",
        "VERDICT_OUT_OF_BUDGET",
        "VERDICT_BELOW_FLOOR",
        "VERDICT_NO_SHARED_CROWD",
        "VERDICT_UNKNOWN_AD",
    ]
    assert [e.rank for e in answer.explanations] == [1, 2, 3, 4, 0, 0, 0]
    assert answer.explanations[0].value == stored.rankings[0].values[0]
    assert answer.explanations[4].value <= answer.floor_value == stored.rankings[0].values[-1]
    assert list(answer.user_crowd_ids) == sorted(crowds)
    assert (answer.catalog_version, answer.towers_version, answer.arm) == ("c1", "t1", "a")
    for each in answer.explanations[:5]:
        assert set(each.shared_crowd_ids) == shares[each.ad_id]


def test_what_excludes_an_ad_from_one_user_is_named():
    served = Served()
    user = served.user()
    crowds = sorted(user.crowds)
    ads = listed(served, user).rankings[0].ads.tolist()
    blocked, negative, capped, rested = ads[:4]
    user.blocked.add(blocked)
    user.ads[capped] = SeenAd(impressions=3, last_ms=START_MS - 1_000)
    user.ads[rested] = SeenAd(impressions=3, last_ms=START_MS - DAY_MS)
    served.hold(user)
    served.update(negative, "", served.definition(negative, negative_crowd_ids=[crowds[0], crowds[1], 999_979]))
    for ad in (capped, rested):
        served.update(ad, "", served.definition(ad, max_impressions=3))
    assert served.verdicts(blocked, negative, capped, rested) == [
        "BLOCKED",
        "NEGATIVE_CROWD",
        "FREQUENCY_CAP",
        "LISTED",
    ]
    assert list(served.explain(negative).explanations[0].negative_crowd_ids) == crowds[:2]


def test_an_ad_of_another_placement_is_named_as_such():
    served = Served()
    ad = int(served.hold().rankings[0].ads[0])
    served.update(ad, "", served.definition(ad, placement_groups=2))
    assert served.verdicts(ad) == ["OTHER_PLACEMENT"]


def test_an_ad_that_should_be_listed_is_owed():
    served = Served()
    user = served.user()
    first = int(served.hold(user).rankings[0].ads[0])
    served.update(100_000, "", served.definition(first, bids=[1_000.0] * len(served.ad(first).crowds)))
    assert served.verdicts(100_000) == ["OWED"]
    explained = served.explain(100_000).explanations[0]
    assert explained.bid == 1_000
    assert explained.value > served.explain(first).floor_value
    served.store.stored = None  # its list is late, as under a debounce
    assert served.verdicts(first) == ["OWED"]


def test_everything_eligible_is_owed_to_a_complete_list():
    served = Served()
    old = served.hold().rankings[0]
    served.hold(rankings=(Ranking(old.ads[1:], old.values[1:], old.crowds[1:], True, 0.0, 0),))
    assert served.verdicts(int(old.ads[0]), int(old.ads[1])) == ["OWED", "LISTED"]


def test_an_advertisers_cap_is_named():
    served = Served()
    old = served.hold().rankings[0]
    served.now.matchers["a"].advertiser_cap = 2
    served.hold(rankings=(Ranking(old.ads[:2], old.values[:2], old.crowds[:2], False, 0.0, 0),))
    assert served.verdicts(*old.ads[:3].tolist()) == ["LISTED", "LISTED", "ADVERTISER_CAP"]


def test_explain_refuses_what_it_cannot_answer_truly():
    served = Served()
    with pytest.raises(NotFoundError, match="user 42"):
        served.explain(3)
    served.hold()
    for ads in ((), range(1, 1_002)):
        with pytest.raises(FieldError, match="ad_ids"):
            served.explain(*ads)
    with pytest.raises(FieldError, match=r"placement_group.*0 \(default\)"):
        served.explain(3, group=1)
    served.hold(catalog_version="c0")
    with pytest.raises(UnavailableError, match="catalog c0"):
        served.explain(3)
    user = UserState(USER)
    forget(user, START_MS, 9)
    served.store.state, served.store.stored = state.encode(user), None
    with pytest.raises(NotFoundError, match="deleted"):
        served.explain(3)


def test_a_state_whose_tower_is_of_other_towers_is_not_explained():
    served = Served()
    user = served.user()
    served.hold(user)
    user.towers_version, user.vec = "t0", np.zeros(4, np.float32)
    served.store.state = state.encode(user)
    with pytest.raises(UnavailableError, match="t0"):
        served.explain(3)
    assert record.decode(served.store.stored, served.catalog).towers_version == "t1"
