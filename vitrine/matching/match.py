"""A list is a function of (state, market, towers): the top K over all eligible pairs, by placement group."""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.features import UserTowers
from vitrine.matching.catalog import ordinals
from vitrine.matching.events import RecordError
from vitrine.matching.market import Ad, Market
from vitrine.matching.record import Ranking, StoredList
from vitrine.matching.side import Best, Side, Users, within_cap
from vitrine.matching.state import EventTable, SeenAd, UserState, capped, features, take_tower

STORED = 200
SERVED = 100

U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Reason:
    """What an ad is worth to a user, and why.

    known:   whether the market knows the ad
    crowds, bids: (n,) uint64 ascending and float32, the ad's bids on crowds that the user is in
    crowd, bid: the bid that wins, the lower crowd among equals; 0 where none is shared
    pctr, value: click probability, and bid x pctr, float32 as stored lists hold them
    """

    ad: int
    known: bool
    crowds: U64
    bids: F32
    crowd: int
    bid: float
    pctr: float
    value: float


class Matcher:
    """Matches users against one market under one model's towers; both stay as they are for the matcher's life.

    Eligible to a user, in a placement group: a live ad of the group with a bid on one of the user's crowds, none of
    whose negative crowds the user is in, which the user has not blocked and not seen as often as it allows. With an
    advertiser cap, at most so many ads of one advertiser stand in a ranking, the most valuable ones.

    epoch:  offset of the activation that names catalog and towers, -1 for none
    stored, served: K and S, docs/matching.md
    table:  what events mean, by the catalog artifact (its own base where a market was folded)
    """

    def __init__(
        self,
        market: Market,
        towers: UserTowers,
        *,
        towers_version: str,
        epoch: int = -1,
        stored: int = STORED,
        served: int = SERVED,
        advertiser_cap: int = 0,
        threads: int = 1,
        table: EventTable | None = None,
    ) -> None:
        if not 0 < served <= stored:
            raise ValueError(f"served: {served}, must be in 1..{stored}, the entries stored")
        self.towers_version = towers_version
        self.epoch = epoch
        self.stored = stored
        self.served = served
        self.advertiser_cap = advertiser_cap
        self.table = table or EventTable(market.catalog)
        self.towers = towers
        self._threads = threads
        self._base_caps: dict[int, int] = {}
        self._set(market, Side(market.catalog, towers, threads), Side(market.extra, towers))

    def moved(self, market: Market) -> "Matcher":
        """The same under another market; over the same base it shares the index."""
        other = copy.copy(self)
        base = self.base
        if market.catalog is not base.catalog:
            base = Side(market.catalog, self.towers, self._threads)
            other._base_caps = {}
        extra = self.extra if market.extra is self.extra.catalog else Side(market.extra, self.towers)
        other._set(market, base, extra)
        return other

    def _set(self, market: Market, base: Side, extra: Side) -> None:
        self.market, self.base, self.extra = market, base, extra
        self.catalog, self.catalog_version = market.catalog, market.catalog_version
        self.groups = len(market.catalog.groups)
        self.sides = (base, extra) if len(extra.catalog.ads) else (base,)
        bits = [np.uint8(1 << group) for group in range(self.groups)]
        # By side, (A,) uint8: bit g where the ad may be matched in placement group g.
        self.allowed = (np.where(market.dead, np.uint8(0), base.catalog.ad_groups), extra.catalog.ad_groups)
        self._masks = [[(allowed & bit != 0).view(np.uint8) for bit in bits] for allowed in self.allowed]
        self._base_capped = bool(base.catalog.ad_caps.any())
        self._any_capped = self._base_capped or bool(extra.catalog.ad_caps.any())
        self.any_negatives = base.has_negatives or extra.has_negatives

    def refresh(self, state: UserState) -> None:
        """Computes the user's tower anew from the state's features, in place."""
        bias, vec = self.towers.user(*features(state))
        take_tower(state, float(bias), vec, self.towers_version, self.epoch)

    def lists(self, states: Sequence[UserState]) -> list[StoredList]:
        """Refreshes each user's tower, in place, and matches: one list a state, in order."""
        for state in states:
            self.refresh(state)
        return self.full(states)

    def full(self, states: Sequence[UserState], arm: str = "a") -> list[StoredList]:
        """A list of each state, in order, from all eligible pairs and the tower that lies in the state.

        arm: of the users, as their lists say it
        """
        if not states:
            return []
        users = users_of(states)
        excluded = self._exclusions(
            users, [self.excluded(each.blocked, each.ads, each.clock_ms) for each in states]
        )
        by_group = [self._rankings(users, group, excluded) for group in range(self.groups)]
        return [
            self.stored_list(state, tuple(rankings[row] for rankings in by_group), arm)
            for row, state in enumerate(states)
        ]

    def stored_list(self, state: UserState, rankings: tuple[Ranking, ...], arm: str = "a") -> StoredList:
        """A state's list, of these rankings."""
        keys, weights = features(state)
        return StoredList(
            user_id=state.user_id,
            rankings=rankings,
            keys=keys,
            weights=weights,
            served=self.served,
            catalog_version=self.catalog_version,
            towers_version=self.towers_version,
            arm=arm,
            position=self.market.position,
            epoch=self.epoch,
            revision=state.revision,
            offset=state.offset,
            append_ms=state.append_ms,
        )

    def fallback(self, k: int, crowds: Sequence[int] | None = None) -> StoredList:
        """The k most valuable ads over all crowds, or these, to a user of whom nothing is known; revision 0."""
        nobody = UserState(0)
        self.refresh(nobody)
        if crowds is None:
            everywhere = np.union1d(self.catalog.crowds, self.extra.catalog.crowds)
        else:
            everywhere = np.unique(np.array(crowds, np.uint64))
        users = Users(
            np.array([nobody.bias], np.float32), nobody.vec[None], np.array([0, len(everywhere)]), everywhere
        )
        nothing = [(np.zeros(2, np.int64), np.empty(0, np.uint32))] * 2
        return self.stored_list(
            nobody, tuple(self._rankings(users, group, nothing, k)[0] for group in range(self.groups))
        )

    def explain(self, state: UserState, ad_ids: Sequence[int], group: int = 0) -> list[Reason]:
        """Why each ad is worth what it is worth to the user, by the arithmetic and to the bits of lists.

        Raises RecordError where the state's tower belongs to other towers than this matcher's.
        """
        if state.towers_version != self.towers_version:
            raise RecordError(
                f"the tower of user {state.user_id} is of towers {state.towers_version}, and this process holds"
                f" {self.towers_version}"
            )
        bias, vecs = self.ad_towers(np.array(ad_ids, np.uint64))
        pctrs = native.tower_pctr(state.bias, state.vec, np.arange(len(ad_ids), dtype=np.uint32), bias, vecs)
        reasons = []
        for ad_id, pctr in zip(ad_ids, pctrs, strict=True):
            ad = self.market.ad(ad_id)
            if ad is None:
                reasons.append(Reason(ad_id, False, _NO_IDS, _NO_BIDS, 0, 0.0, 0.0, 0.0))
                continue
            shared = np.fromiter((c in state.crowds for c in ad.crowds.tolist()), bool, len(ad.crowds))
            crowds, bids = ad.crowds[shared], ad.bids[shared]
            best = int(np.argmax(bids)) if len(bids) else -1  # the first of equals, so the lower crowd
            bid = bids[best] if len(bids) else np.float32(0)
            crowd = int(crowds[best]) if len(bids) else 0
            reasons.append(Reason(ad_id, True, crowds, bids, crowd, float(bid), float(pctr), float(bid * pctr)))
        return reasons

    def ad_towers(self, ad_ids: U64) -> tuple[F32, F32]:
        """(n,) biases and (n, d) vectors of ads; those of an ad without features where the towers lack it."""
        rows, known = ordinals(self.towers.ads, ad_ids)
        bias = np.zeros(len(ad_ids), np.float32)
        vecs = np.zeros((len(ad_ids), self.towers.dim), np.float32)
        bias[known], vecs[known] = self.towers.ad_bias[rows], self.towers.ad_vecs[rows]
        return bias, vecs

    def excluded(self, blocked: Collection[int], seen: Mapping[int, SeenAd], clock_ms: int) -> set[int]:
        """Ads that a user blocked, and those seen as often as they allow, by the user's clock."""
        out = set(blocked)
        if self._any_capped:
            window = self.table.cap_window_ms
            out.update(
                ad
                for ad, each in seen.items()
                if each.impressions and capped(each, self._max_impressions(ad), clock_ms, window)
            )
        return out

    def _max_impressions(self, ad_id: int) -> int:
        """The ad's own frequency cap; 0 for none."""
        overlay = self.market.overlay
        if ad_id in overlay:
            ad = overlay[ad_id]
            return ad.max_impressions if ad is not None else 0
        if not self._base_capped:
            return 0
        cap = self._base_caps.get(ad_id)
        if cap is None:
            rows = self.catalog.ad_ordinals([ad_id])[0]
            cap = int(self.catalog.ad_caps[rows[0]]) if len(rows) else 0
            if len(self._base_caps) >= _REMEMBERED:
                self._base_caps.clear()
            self._base_caps[ad_id] = cap
        return cap

    def _exclusions(
        self, users: Users, excluded: Sequence[set[int]]
    ) -> list[tuple[NDArray[np.int64], NDArray[np.uint32]]]:
        """By side: CSR of each user's excluded ads, ordinals ascending."""
        counts = [len(each) for each in excluded]
        ids = np.fromiter(chain.from_iterable(excluded), np.uint64, sum(counts))
        owner = np.repeat(np.arange(len(excluded)), counts)
        out = []
        for side in self.sides:
            ads, known = side.catalog.ad_ordinals(ids)
            rows = owner[known]
            if side.has_negatives:
                more_rows, more_ads = side.negative_ads(*users.crowds_in(side.catalog))
                rows, ads = np.concatenate([rows, more_rows]), np.concatenate([ads, more_ads])
            pairs = np.unique(rows.astype(np.uint64) << np.uint64(32) | ads.astype(np.uint64))
            indptr = np.searchsorted(pairs, np.arange(len(excluded) + 1, dtype=np.uint64) << np.uint64(32))
            out.append((indptr.astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32)))
        return out

    def _rankings(
        self,
        users: Users,
        group: int,
        excluded: Sequence[tuple[NDArray[np.int64], NDArray[np.uint32]]],
        k: int | None = None,
    ) -> list[Ranking]:
        """One ranking a user: both sides' best, merged."""
        k = k or self.stored
        found = [
            side.match(users, k, masks[group], *out, self.advertiser_cap)
            for side, masks, out in zip(self.sides, self._masks, excluded, strict=False)
        ]
        rankings = []
        for row in range(len(users)):
            ads, values, crowds = self._ids(found[0], self.sides[0], row)
            whole = len(ads) < k
            if len(found) > 1 and found[1].counts[row]:
                more_ads, more_values, more_crowds = self._ids(found[1], self.sides[-1], row)
                whole = whole and len(more_ads) < k
                ads, values = np.concatenate([ads, more_ads]), np.concatenate([values, more_values])
                crowds = np.concatenate([crowds, more_crowds])
                order = np.lexsort((ads, -values))
                if self.advertiser_cap:
                    order = order[within_cap(self.advertisers(ads[order]), self.advertiser_cap)]
                whole = whole and len(order) < k
                ads, values, crowds = ads[order[:k]], values[order[:k]], crowds[order[:k]]
            rankings.append(ranking_of(ads, values, crowds, whole))
        return rankings

    def advertisers(self, ads: U64) -> U64:
        """(n,) who pays for each ad that may be matched; 0 for the others."""
        out = np.zeros(len(ads), np.uint64)
        for side in self.sides:  # the extra's last: what it defines, the base does not
            rows, known = side.catalog.ad_ordinals(ads)
            out[known] = side.catalog.ad_advertisers[rows]
        return out

    def _ids(self, best: Best, side: Side, row: int) -> tuple[U64, F32, U64]:
        n = int(best.counts[row])
        return side.catalog.ads[best.ads[row, :n]], best.values[row, :n], side.catalog.crowds[best.crowds[row, :n]]


def ranking_of(ads: U64, values: F32, crowds: U64, complete: bool) -> Ranking:
    """A ranking whose floor is its last entry, unless it is complete."""
    if complete:
        return Ranking(ads, values, crowds, True, 0.0, 0)
    return Ranking(ads, values, crowds, False, float(values[-1]), int(ads[-1]))


def users_of(states: Sequence[UserState]) -> Users:
    """The states as columns, by their towers and crowds."""
    indptr = np.zeros(len(states) + 1, np.int64)
    np.cumsum([len(state.crowds) for state in states], out=indptr[1:])
    return Users(
        np.array([state.bias for state in states], np.float32),
        np.stack([state.vec for state in states]),
        indptr,
        np.fromiter(chain.from_iterable(sorted(state.crowds) for state in states), np.uint64, int(indptr[-1])),
    )


def best_of(ad: Ad, crowds: Collection[int]) -> tuple[np.float32, int]:
    """(the ad's greatest bid on these crowds, the lower crowd of equals); (0, 0) where there is none."""
    shared = np.fromiter((c in crowds for c in ad.crowds.tolist()), bool, len(ad.crowds))
    if not shared.any():
        return np.float32(0), 0
    bids = ad.bids[shared]
    best = int(np.argmax(bids))
    return bids[best], int(ad.crowds[shared][best])


_REMEMBERED = 1 << 20
_NO_IDS: U64 = np.empty(0, np.uint64)
_NO_BIDS: F32 = np.empty(0, np.float32)
