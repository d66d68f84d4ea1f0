"""GetMatches and Explain around a store that answers, does not, or holds nonsense."""

import threading
from dataclasses import replace

import pytest
from matching_kit import START_MS, small_matcher
from redis.exceptions import InvalidResponse, ResponseError

from services.matching import failpoint
from services.matching.servicer import MatchingServicer, PausedAds, StoreWatch
from vitrine.api.events.v1.events_pb2 import AdUpdate
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.data.replay import user_event
from vitrine.errors import FieldError, NotFoundError, UnavailableError
from vitrine.matching import record, state
from vitrine.matching.events import RecordError
from vitrine.matching.state import UserState, fold

MATCHER = small_matcher()
USER = 42


class FakeStore:
    """One user's bytes, or no answer."""

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.stored: bytes | None = None
        self.away = False
        self.error: Exception = UnavailableError("away")
        self.reads = 0

    def hold(self, items: int = 3) -> record.StoredList:
        user = UserState(USER)
        for offset, item in enumerate(MATCHER.catalog.items[:items].tolist()):
            fold(user, user_event("purchase", USER, START_MS, item, 0, 0), START_MS, offset, MATCHER.table)
        (stored,) = MATCHER.lists([user])
        self.state, self.stored = state.encode(user), record.encode(stored, MATCHER.catalog)
        return stored

    def read_list(self, user_id: int) -> bytes | None:
        self.reads += 1
        if self.away:
            raise self.error
        return self.stored

    def read_user(self, user_id: int) -> tuple[bytes | None, bytes | None]:
        return self.state, self.stored

    def ping(self) -> None:
        if self.away:
            raise self.error


class StillWatch:
    """A watch that says what it is told."""

    lost: str | None = None


class Rematches:
    """A log that takes what it is given, or does not."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float]] = []
        self.away = False

    def append(self, user_id: int, timeout_s: float) -> pb.RematchResponse:
        if self.away:
            raise UnavailableError("away")
        self.asked.append((user_id, timeout_s))
        return pb.RematchResponse(request_id="r1", partition=3, offset=7)


class Context:
    """A call with so much time."""

    def __init__(self, left_s: float | None) -> None:
        self._left_s = left_s

    def time_remaining(self) -> float | None:
        return self._left_s


class Served:
    def __init__(self) -> None:
        self.store, self.paused, self.watch, self.rematches = FakeStore(), PausedAds(), StillWatch(), Rematches()
        self.servicer = MatchingServicer(
            MATCHER, self.store, self.paused, self.watch, self.rematches, clock=lambda: START_MS / 1000 + 5
        )

    def matches(self, k: int = 10, user_id: int = USER) -> pb.GetMatchesResponse:
        return self.servicer.GetMatches(pb.GetMatchesRequest(user_id=user_id, k=k), None)

    def explain(self, *ads: int) -> pb.ExplainResponse:
        return self.servicer.Explain(pb.ExplainRequest(user_id=USER, ad_ids=ads), None)

    def pause(self, ad_id: int, ad_state: AdUpdate.State.ValueType = AdUpdate.STATE_PAUSED) -> None:
        self.paused.apply(0, b"%d" % ad_id, AdUpdate(ad_id=ad_id, state=ad_state).SerializeToString())


def test_a_stored_list_is_answered_with_its_age_version_and_context():
    served = Served()
    stored = served.store.hold()
    answer = served.matches(5)
    assert answer.source == pb.SOURCE_STORED
    ranking = stored.rankings[0]
    assert list(answer.ad_ids) == ranking.ads[:5].tolist()
    assert list(answer.values) == ranking.values[:5].tolist()
    for ad, crowd, bid in zip(answer.ad_ids, answer.crowd_ids, answer.bids, strict=True):
        crowds, bids = MATCHER.catalog.bids_of(ad)
        assert bid == bids[crowds.tolist().index(crowd)]
    assert list(answer.crowd_ids) == ranking.crowds[:5].tolist()
    assert list(answer.context.keys) == stored.keys.tolist()
    assert list(answer.context.weights) == stored.weights.tolist()
    assert (answer.age_ms, answer.revision) == (5_000, 3)
    assert (answer.catalog_version, answer.towers_version) == ("c1", "t1")
    assert served.store.reads == 1


def test_a_paused_ad_is_hidden_and_the_next_moves_up():
    served = Served()
    stored = served.store.hold()
    first, third = int(stored.rankings[0].ads[0]), int(stored.rankings[0].ads[2])
    served.pause(first)
    served.pause(third)
    assert (
        list(served.matches(10).ad_ids)
        == [a for a in stored.rankings[0].ads.tolist() if a not in (first, third)][:10]
    )
    served.pause(first, AdUpdate.STATE_ACTIVE)
    served.paused.apply(0, b"%d" % third, None)  # a tombstone
    assert list(served.matches(10).ad_ids) == stored.rankings[0].ads[:10].tolist()


def test_a_user_without_a_live_ad_gets_the_fallback_which_hides_paused_ads_too():
    served = Served()
    best = served.matches(1)
    assert best.source == pb.SOURCE_FALLBACK_NO_LIST
    served.pause(best.ad_ids[0])
    assert len(served.matches(10).ad_ids) == 10
    assert best.ad_ids[0] not in served.matches(10).ad_ids
    stored = served.store.hold()
    for ad in stored.rankings[0].ads.tolist():
        served.pause(ad)
    answer = served.matches(10)
    assert (answer.source, len(answer.ad_ids), answer.revision) == (pb.SOURCE_FALLBACK_NO_LIST, 10, 0)
    assert list(answer.context.keys) == stored.keys.tolist()


def test_a_store_that_does_not_answer_is_not_asked_again_until_the_watch_says_so():
    served = Served()
    served.store.hold()
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
        ({"placement_group": 4}, "placement_group"),
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


def test_explain_says_how_every_ad_stands():
    served = Served()
    stored = served.store.hold(1)
    catalog, listed = MATCHER.catalog, stored.rankings[0].ads.tolist()
    paused = listed[1]
    served.pause(paused)
    crowds = set(catalog.item_crowds(int(catalog.items[0])).tolist())
    shares = {ad: crowds & set(catalog.bids_of(ad)[0].tolist()) for ad in catalog.ads.tolist()}
    below = next(ad for ad, shared in shares.items() if shared and ad not in listed)
    none = next(ad for ad, shared in shares.items() if not shared)
    answer = served.explain(listed[0], paused, below, none, 999_961)
    assert [e.verdict for e in answer.explanations] == [
        pb.VERDICT_LISTED,
        pb.VERDICT_PAUSED,
        pb.VERDICT_BELOW_FLOOR,
        pb.VERDICT_NO_SHARED_CROWD,
        pb.VERDICT_UNKNOWN_AD,
    ]
    assert [e.rank for e in answer.explanations] == [1, 2, 0, 0, 0]
    assert answer.explanations[0].value == stored.rankings[0].values[0]
    assert answer.explanations[2].value <= answer.floor_value == stored.rankings[0].values[-1]
    assert list(answer.user_crowd_ids) == sorted(crowds)
    assert [set(e.shared_crowd_ids) for e in answer.explanations[:3]] == [
        shares[a] for a in (listed[0], paused, below)
    ]


def test_explain_refuses_what_it_cannot_answer_truly():
    served = Served()
    with pytest.raises(NotFoundError, match="user 42"):
        served.explain(3)
    stored = served.store.hold()
    for ads in ((), range(1, 1_002)):
        with pytest.raises(FieldError, match="ad_ids"):
            served.explain(*ads)
    with pytest.raises(FieldError, match="placement_group"):
        served.servicer.Explain(pb.ExplainRequest(user_id=USER, ad_ids=[3], placement_group=4), None)
    served.store.stored = record.encode(replace(stored, catalog_version="c0"), MATCHER.catalog)
    with pytest.raises(UnavailableError, match="catalog c0"):
        served.explain(3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b""),
        (b"x", b""),
        (b"3", b"\xff"),
        (b"3", AdUpdate(ad_id=4, state=AdUpdate.STATE_PAUSED).SerializeToString()),
        (b"3", AdUpdate(ad_id=3).SerializeToString()),
    ],
)
def test_an_ad_update_that_is_none_changes_nothing(key, value):
    paused = PausedAds()
    with pytest.raises(RecordError):
        paused.apply(0, key, value)
    assert not paused.ids


@pytest.mark.parametrize("text", ["after-write", "after-write:0", "nowhere:1", "after-write:x"])
def test_a_failpoint_that_does_not_exist_is_refused(text):
    with pytest.raises(ValueError, match="NAME:N"):
        failpoint.from_setting(text)
