"""A matching servicer for tests without processes: one user's bytes in a store, ad updates applied by hand."""

from dataclasses import dataclass, field

import numpy as np
from matching_kit import START_MS, small_catalog, small_towers

from services.matching.artifacts import LoadedTowers, make_matcher
from services.matching.servicer import MatchingServicer
from services.matching.serving import Now
from services.matching.settings import ServerSettings
from vitrine.api.events.v1.events_pb2 import AdDefinition, AdGate, AdUpdate
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.data.replay import user_event
from vitrine.errors import UnavailableError
from vitrine.matching import record, state
from vitrine.matching.catalog import Catalog
from vitrine.matching.fallback import Fallback
from vitrine.matching.market import Ad
from vitrine.matching.showing import Showing
from vitrine.matching.state import EventTable, UserState, fold
from vitrine.matching.updates import Active, Updates, ad_key, gate_key

USER = 42
SETTINGS = ServerSettings(
    store="memory", kafka_url="kafka://nobody:1", redis_url="redis://nobody:1", stored=20, served=10
)


class FakeStore:
    """One user's bytes, or no answer."""

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.stored: bytes | None = None
        self.away = False
        self.error: Exception = UnavailableError("away")
        self.reads = 0

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


@dataclass(frozen=True)
class Context:
    """A call with so much time."""

    left_s: float | None

    def time_remaining(self) -> float | None:
        return self.left_s


@dataclass
class Served:
    """A servicer over a market; `hold` stores what a worker would have made of the market before any update."""

    catalog: Catalog = field(default_factory=small_catalog)
    active: Active | None = None
    towers: dict[str, LoadedTowers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.towers:
            self.towers = {"a": LoadedTowers(small_towers(self.catalog), "t1")}
        self.store, self.watch, self.rematches = FakeStore(), StillWatch(), Rematches()
        self.updates = Updates(self.catalog, "c1", 0)
        self.market = self.updates.market()
        self.table = EventTable(self.catalog)
        self._offset = 0
        self._made()
        self.servicer = MatchingServicer(
            lambda: self.now, self.store, self.watch, self.rematches, clock=lambda: START_MS / 1000 + 5
        )

    def user(self, items: int = 3) -> UserState:
        """Who bought the first items of the catalog."""
        user = UserState(USER)
        for offset, item in enumerate(self.catalog.items[:items].tolist()):
            fold(user, user_event("purchase", USER, START_MS, item, 0, 0), START_MS, offset, self.table)
        return user

    def hold(self, user: UserState | None = None, arm: str = "a", **changes: object) -> record.StoredList:
        """Stores a user's state and list; `changes` are of the list."""
        user = self.user() if user is None else user
        stored = listed(self, user, arm, **changes)
        user.listed = user.revision
        self.store.state, self.store.stored = state.encode(user), record.encode(stored, self.catalog)
        return stored

    def matches(self, k: int = 10, user_id: int = USER, **fields: object) -> pb.GetMatchesResponse:
        return self.servicer.GetMatches(pb.GetMatchesRequest(user_id=user_id, k=k, **fields), None)

    def explain(self, *ads: int, group: int = 0) -> pb.ExplainResponse:
        return self.servicer.Explain(pb.ExplainRequest(user_id=USER, ad_ids=ads, placement_group=group), None)

    def verdicts(self, *ads: int, group: int = 0) -> list[str]:
        found = self.explain(*ads, group=group).explanations
        return [pb.Verdict.Name(each.verdict).removeprefix("VERDICT_") for each in found]

    def update(self, ad_id: int, off: str = "", definition: AdDefinition | None = None) -> None:
        """A record of ad-updates, shown at once."""
        states = {"": AdUpdate.STATE_ACTIVE, "paused": AdUpdate.STATE_PAUSED, "ended": AdUpdate.STATE_ENDED}
        value = AdUpdate(ad_id=ad_id, state=states[off], definition=definition).SerializeToString()
        self._apply(ad_key(ad_id), value)

    def gate(self, ad_id: int, *, schedule: bool = False, budget: bool = False) -> None:
        value = AdGate(ad_id=ad_id, out_of_schedule=schedule, out_of_budget=budget)
        self._apply(gate_key(ad_id), value.SerializeToString())

    def forget(self, ad_id: int) -> None:
        """A tombstone."""
        self._apply(ad_key(ad_id), None)

    def ad(self, ad_id: int) -> Ad:
        found = self.updates.market().ad(ad_id)
        assert found is not None
        return found

    def definition(self, ad_id: int, **changes: object) -> AdDefinition:
        """An ad's definition as it is, with changes."""
        ad = self.ad(ad_id)
        fields = {
            "advertiser_id": ad.advertiser,
            "item_id": ad.item,
            "crowd_ids": ad.crowds.tolist(),
            "bids": ad.bids.tolist(),
            "negative_crowd_ids": ad.negatives.tolist(),
            "placement_groups": ad.groups,
            "max_impressions": ad.max_impressions,
        }
        return AdDefinition(**(fields | changes))

    def _apply(self, key: bytes, value: bytes | None) -> None:
        self.updates.apply(self._offset, START_MS, key, value)
        self._offset += 1
        self.market = self.updates.market()
        showing = Showing(self.market, self.now.showing.base)
        fallbacks = {arm: each.moved(showing) for arm, each in self.now.fallbacks.items()}
        self.now = Now(self.active, showing, self.now.matchers, fallbacks)

    def _made(self) -> None:
        showing = Showing(self.market)
        matchers = {arm: make_matcher(self.market, each, SETTINGS) for arm, each in self.towers.items()}
        fallbacks = {arm: Fallback(matcher, showing) for arm, matcher in matchers.items()}
        self.now = Now(self.active, showing, matchers, fallbacks)


def listed(served: Served, user: UserState, arm: str = "a", **changes: object) -> record.StoredList:
    """A user's list as the matcher of an arm makes it."""
    (stored,) = served.now.matchers[arm].lists([user])
    fields = {name: getattr(stored, name) for name in stored.__slots__}
    return record.StoredList(**(fields | {"arm": arm} | changes))


def advertised(catalog: Catalog) -> Catalog:
    """The catalog with five advertisers, who take turns."""
    fields = {name: getattr(catalog, name) for name in catalog.__dataclass_fields__}
    payers = (np.arange(len(catalog.ads)) % 5 + 1).astype(np.uint64)
    return Catalog(**(fields | {"ad_advertisers": payers}))
