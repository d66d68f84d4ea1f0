"""A small market that moves and users who move in it, and the slow definition that their lists must equal."""

from dataclasses import dataclass, field, replace

import numpy as np
from matching_kit import DAY_MS, START_MS, small_catalog, small_towers

from vitrine import native
from vitrine.api.events.v1.events_pb2 import AdBlock, AdDefinition, AdGate, AdUpdate, UserEvent
from vitrine.data.replay import user_event
from vitrine.features import UserTowers
from vitrine.matching import lists
from vitrine.matching.catalog import Catalog
from vitrine.matching.lists import Before, Work
from vitrine.matching.market import Ad, Market
from vitrine.matching.match import Matcher
from vitrine.matching.record import Ranking, StoredList
from vitrine.matching.state import UserState, capped, fold
from vitrine.matching.updates import Updates, ad_key, gate_key

ADS, CROWDS = 60, 8
BIDS = (0.5, 1.0, 1.5, 2.0, 4.0)
USERS = (1, 2, 3)
NEW_ADS = (1, 100, 2**63 + 5)


def varied_catalog(seed: int = 3) -> Catalog:
    """Two placement groups, frequency caps, negative crowds, three advertisers, few different bids."""
    rng = np.random.default_rng(seed)
    catalog = small_catalog(seed, crowds=CROWDS, ads=ADS, items=20, bids=160)
    counts = rng.choice([0, 0, 0, 1, 2], ADS)
    return replace(
        catalog,
        posting_bids=rng.choice(BIDS, len(catalog.posting_bids)).astype(np.float32),
        ad_advertisers=rng.integers(1, 4, ADS).astype(np.uint64),
        ad_groups=rng.choice([1, 2, 3, 15], ADS).astype(np.uint8),
        ad_caps=rng.choice([0, 0, 1, 2], ADS).astype(np.uint32),
        neg_indptr=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        neg_crowds=np.concatenate(
            [np.sort(rng.choice(CROWDS, n, replace=False)) for n in counts] or [np.empty(0)]
        ).astype(np.uint32),
        groups=("first", "second"),
    )


def tied_towers(catalog: Catalog) -> UserTowers:
    """As `small_towers`, but half of the ads are unknown to the model, so that many values are equal."""
    towers = small_towers(catalog)
    return UserTowers(
        towers.user_keys, towers.user_w, towers.user_v, -2.0,
        np.append(towers.ads[::2], np.uint64(NEW_ADS[1])) if NEW_ADS[1] > towers.ads[-1] else towers.ads[::2],
        towers.ad_bias[::2], towers.ad_vecs[::2],
    )  # fmt: skip


CATALOG = varied_catalog()
TOWERS = tied_towers(CATALOG)


def brute_force(matcher: Matcher, towers: UserTowers, user: UserState, group: int) -> list[tuple[int, float, int]]:
    """(ad, value, crowd) of all eligible ads, best first, by the definition, one ad of the market at a time."""
    ads, bias, vecs = ads_of(matcher.market, towers)
    pctrs = native.tower_pctr(user.bias, user.vec, np.arange(len(ads), dtype=np.uint32), bias, vecs)
    found = []
    for ad, pctr in zip(ads, pctrs, strict=True):
        if not ad.live or not ad.groups >> group & 1 or ad.ad_id in user.blocked:
            continue
        if any(crowd in user.crowds for crowd in ad.negatives.tolist()):
            continue
        seen = user.ads.get(ad.ad_id)
        if seen and capped(seen, ad.max_impressions, user.clock_ms, matcher.table.cap_window_ms):
            continue
        pairs = zip(ad.bids.tolist(), ad.crowds.tolist(), strict=True)
        shared = [(-bid, crowd) for bid, crowd in pairs if crowd in user.crowds]
        if shared:
            bid, crowd = min(shared)
            found.append((ad.ad_id, float(np.float32(-bid) * pctr), crowd, ad.advertiser))
    found.sort(key=lambda entry: (-entry[1], entry[0]))
    ranked, counts = [], dict.fromkeys((entry[3] for entry in found), 0)
    for ad_id, value, crowd, advertiser in found:
        counts[advertiser] += 1
        if not matcher.advertiser_cap or counts[advertiser] <= matcher.advertiser_cap:
            ranked.append((ad_id, value, crowd))
    return ranked


def ads_of(market: Market, towers: UserTowers) -> tuple[list[Ad], np.ndarray, np.ndarray]:
    """(every ad of the market, their biases, their vectors); looked up once a market."""
    if _ADS and _ADS[0][0] is market:
        return _ADS[0][1]
    known = {int(ad): row for row, ad in enumerate(towers.ads)}
    every = (market.ad(ad_id) for ad_id in sorted({*market.catalog.ads.tolist(), *market.overlay}))
    ads = [ad for ad in every if ad is not None]
    bias, vecs = np.zeros(len(ads), np.float32), np.zeros((len(ads), towers.dim), np.float32)
    for at, ad in enumerate(ads):
        if ad.ad_id in known:
            bias[at], vecs[at] = towers.ad_bias[known[ad.ad_id]], towers.ad_vecs[known[ad.ad_id]]
    _ADS[:] = [(market, (ads, bias, vecs))]
    return ads, bias, vecs


_ADS: list[tuple[Market, tuple[list[Ad], np.ndarray, np.ndarray]]] = []


def entries(ranking: Ranking) -> list[tuple[int, float, int]]:
    return list(zip(ranking.ads.tolist(), ranking.values.tolist(), ranking.crowds.tolist(), strict=True))


def contents(stored: StoredList) -> list[list[tuple[int, float, int]]]:
    return [entries(ranking) for ranking in stored.rankings]


def assert_exact(matcher: Matcher, towers: UserTowers, user: UserState, stored: StoredList) -> None:
    """All eligible ads at or above the floor, no other, and enough of them."""
    assert (stored.position, stored.revision) == (matcher.market.position, user.revision)
    for group, ranking in enumerate(stored.rankings):
        expected = brute_force(matcher, towers, user, group)
        if not ranking.complete:
            floor = (-ranking.floor_value, ranking.floor_ad)
            expected = [entry for entry in expected if (-entry[1], entry[0]) <= floor]
            assert len(ranking.ads) >= matcher.served
        assert entries(ranking) == expected
        assert len(ranking.ads) <= matcher.stored


@dataclass
class World:
    """Users, their lists as last made, and the market; `counters` of all calls of `lists.update`."""

    stored: int = 8
    served: int = 4
    advertiser_cap: int = 0
    kernel: str | None = None
    counters: list[lists.Counters] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.updates = Updates(CATALOG, "c1", 0)
        self.offset = 0
        self.clock = START_MS
        self.towers = TOWERS
        self.matcher = Matcher(
            Market.of(CATALOG, "c1"), TOWERS, towers_version="t1", stored=self.stored, served=self.served,
            advertiser_cap=self.advertiser_cap,
        )  # fmt: skip
        self.users = {user_id: UserState(user_id) for user_id in USERS}
        self.lists: dict[int, StoredList] = {}
        self.before: dict[int, Before | None] = dict.fromkeys(USERS)
        for user in self.users.values():
            self.matcher.refresh(user)
            for crowd in (10, 20, 30):
                self._fold(user.user_id, user_event("join", user.user_id, self.clock, 0, crowd, 0))
        self.bring(USERS)

    def event(self, user_id: int, kind: str, target: int) -> None:
        """A user's event; the list is owed until `bring`."""
        user = self.users[user_id]
        if kind == "refresh":
            self.matcher.refresh(user)
            self.before[user_id] = None
        elif kind == "wait":
            self.clock += DAY_MS // 2
        elif kind in ("block", "unblock"):
            self._fold(user_id, block(self.ad(target), self.clock, kind == "unblock", user_id))
        else:
            item, crowd = 7 * (1 + target % 20), 10 * (1 + target % CROWDS)
            self._fold(user_id, user_event(kind, user_id, self.clock, item, crowd, self.ad(target)))

    def ad(self, target: int) -> int:
        """Any ad, or more often one that a user has in the list, has blocked or has seen."""
        some: set[int] = set()
        for user in self.users.values():
            some |= user.blocked | user.ads.keys()
            if user.user_id in self.lists:
                some.update(ad for r in self.lists[user.user_id].rankings for ad in r.ads[:6].tolist())
        every = sorted(some) if some and target % 4 else [*NEW_ADS, *CATALOG.ads.tolist()]
        return every[target // 4 % len(every)]

    def change(self, kind: str, target: int, detail: int) -> int:
        """A record of ad-updates: the ad that it is about."""
        ad_id = self.ad(target)
        if kind == "fold":
            self.updates.fold()
        elif kind == "gate":
            gate = AdGate(ad_id=ad_id, out_of_budget=bool(detail & 1), out_of_schedule=bool(detail & 2))
            self._apply(gate_key(ad_id), gate.SerializeToString())
        elif kind == "tombstone":
            self._apply(ad_key(ad_id), None)
        else:
            update = AdUpdate(ad_id=ad_id, state=1 if kind == "define" else 1 + detail % 3)
            ad = self.updates.market().ad(ad_id)
            if kind == "define" or (ad is not None and detail & 4):
                update.definition.CopyFrom(definition(detail))
            self._apply(ad_key(ad_id), update.SerializeToString())
        self.matcher = self.matcher.moved(self.updates.market())
        return ad_id

    def pause(self, ad_id: int) -> None:
        self._apply(ad_key(ad_id), AdUpdate(ad_id=ad_id, state=2).SerializeToString())
        self.matcher = self.matcher.moved(self.updates.market())

    def bring(self, users=USERS) -> list[StoredList]:
        """Brings users' lists to their states and the market, and checks them."""
        works = [Work(self.users[id], self.before[id], self.lists.get(id)) for id in users]
        made, counters = lists.update(self.matcher, works)
        self.counters.append(counters)
        for user_id, stored in zip(users, made, strict=True):
            assert_exact(self.matcher, self.towers, self.users[user_id], stored)
            self.lists[user_id] = stored
            self.before[user_id] = Before.of(self.users[user_id])
        return made

    def _fold(self, user_id: int, event: UserEvent) -> None:
        user = self.users[user_id]
        fold(user, event, event.time_ms, user.offset, self.matcher.table)

    def _apply(self, key: bytes, value: bytes | None) -> None:
        self.updates.apply(self.offset, 0, key, value)
        self.offset += 1


def block(ad_id: int, time_ms: int, unblocked: bool, user_id: int = 1) -> UserEvent:
    """A user blocks an ad, or lets it in again."""
    event = UserEvent(user_id=user_id, time_ms=time_ms)
    event.block.CopyFrom(AdBlock(ad_id=ad_id, unblocked=unblocked))
    return event


def definition(detail: int) -> AdDefinition:
    """A definition drawn by the digits of a number."""
    rng = np.random.default_rng(detail)
    crowds = rng.choice(CROWDS + 1, rng.integers(0, 5), replace=False)
    return AdDefinition(
        advertiser_id=int(rng.integers(1, 4)),
        crowd_ids=[10 * (1 + int(crowd)) for crowd in crowds],
        bids=rng.choice(BIDS, len(crowds)).tolist(),
        negative_crowd_ids=[10 * (1 + int(c)) for c in rng.choice(CROWDS, rng.choice([0, 0, 1]), replace=False)],
        placement_groups=int(rng.choice([0, 1, 2, 3])),
        max_impressions=int(rng.choice([0, 0, 1, 2])),
    )
