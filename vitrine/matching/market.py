"""The market: a catalog and what `ad-updates` has changed of it since, as of one offset (docs/matching-ads.md).

A `Market` is a snapshot and never changes. Its base rows stay where they are, so that what was derived from the
catalog stays valid; ads whose definition is another than the base's are dead there and live in a small catalog of
their own, `extra`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitrine.matching.catalog import ALL_GROUPS, NO_NUMBER, Catalog, build_postings, ordinals

U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Ad:
    """One ad as it is.

    item:       the item advertised, 0 for none
    crowds, bids: (n,) uint64 ascending and float32, currency units a click
    negatives:  (m,) uint64 ascending, crowds whose members never see the ad
    groups:     bit i: may stand in placement group i
    max_impressions: to one user before the ad rests for the user; 0: no bound
    live:       active, within its schedule and its budget
    number:     the permanent number of stored lists, None where `ad-updates` alone knows the ad
    changed:    offset of the last record about it; -1: none since the base was made
    off:        why it is not live: bits of `catalog.OFF`
    start_ms, end_ms: schedule, 0: no bound
    daily_budget: currency units a UTC day, 0: no bound
    """

    ad_id: int
    advertiser: int
    item: int
    crowds: U64
    bids: F32
    negatives: U64
    groups: int
    max_impressions: int
    live: bool
    number: int | None
    changed: int = -1
    off: int = 0
    start_ms: int = 0
    end_ms: int = 0
    daily_budget: float = 0.0

    def defined_as(self, other: "Ad") -> bool:
        """Whether both match the same users at the same bids: all of the definition that a base row holds."""
        return (
            (self.advertiser, self.item, self.groups, self.max_impressions)
            == (other.advertiser, other.item, other.groups, other.max_impressions)
            and np.array_equal(self.crowds, other.crowds)
            and np.array_equal(self.bids, other.bids)
            and np.array_equal(self.negatives, other.negatives)
        )


@dataclass(frozen=True, slots=True)
class Changes:
    """Which ads changed where: offsets ascending, the ad of each, and how many entries there are so far.

    The two sequences only ever grow, so that snapshots share them.
    """

    offsets: Sequence[int] = ()
    ads: Sequence[int] = ()
    count: int = 0

    def since(self, offset: int) -> list[int]:
        """Ids of the ads changed from `offset` on, each once, in order of their first change."""
        start = bisect_left(self.offsets, offset, 0, self.count)
        return list(dict.fromkeys(self.ads[start : self.count]))


@dataclass(frozen=True)
class Market:
    """All ads as of one position.

    catalog:         the base
    catalog_version: of the artifact that it was made from
    position:        next offset of `ad-updates`: everything below it is in here
    dead:            (A,) bool, base rows not to be matched: not live, or defined otherwise by now
    redefined:       (A,) bool, those that are defined otherwise by now
    extra:           the live ads whose definition is not the base's, by their own sorted ids
    overlay:         ad -> as it is, of those that records say something about; None where nothing is known of it
    """

    catalog: Catalog
    catalog_version: str
    position: int
    dead: NDArray[np.bool_]
    redefined: NDArray[np.bool_]
    extra: Catalog
    overlay: Mapping[int, Ad | None] = field(default_factory=dict)
    changes: Changes = field(default_factory=Changes)

    @classmethod
    def of(cls, catalog: Catalog, catalog_version: str = "", position: int = 0) -> Self:
        """The market of a catalog that nothing has changed since."""
        redefined = np.zeros(len(catalog.ads), bool)
        return cls(catalog, catalog_version, position, catalog.ad_off != 0, redefined, small_catalog(catalog, ()))

    def ad(self, ad_id: int) -> Ad | None:
        """An ad as it is; None where neither catalog nor records define it."""
        if ad_id in self.overlay:
            return self.overlay[ad_id]
        return ad_of(self.catalog, ad_id)

    def changed(self, since: int) -> list[int]:
        """Ids of the ads that records in [since, position) are about, each once."""
        return self.changes.since(since)

    def bids(self, ads: ArrayLike, crowds: ArrayLike) -> F32:
        """(n,) bids of pairs (ad id, crowd id), as now defined; nan where there is no such bid.

        A paused ad has its bids; one that was redefined has none while it is not live.
        """
        ads, crowds = np.asarray(ads, np.uint64), np.asarray(crowds, np.uint64)
        bids = self.catalog.pair_bids(ads, crowds)
        rows, known = self.catalog.ad_ordinals(ads)
        here = np.flatnonzero(known)
        bids[here[self.redefined[rows]]] = np.nan
        if len(self.extra.ads):
            more = self.extra.pair_bids(ads, crowds)
            bids = np.where(np.isnan(more), bids, more)
        return bids

    def live(self, ads: ArrayLike) -> NDArray[np.bool_]:
        """(n,) whether each ad is live."""
        ads = np.asarray(ads, np.uint64)
        rows, known = self.catalog.ad_ordinals(ads)
        live = self.extra.ad_ordinals(ads)[1]
        live[np.flatnonzero(known)[~self.dead[rows]]] = True
        return live

    @cached_property
    def live_ads(self) -> int:
        """How many ads are live."""
        return len(self.dead) - int(self.dead.sum()) + len(self.extra.ads)


def ad_of(catalog: Catalog, ad_id: int) -> Ad | None:
    """An ad as a catalog has it."""
    found, _ = catalog.ad_ordinals([ad_id])
    if not len(found):
        return None
    row = int(found[0])
    crowds, bids = catalog.bids_of(ad_id)
    number, off = int(catalog.ad_numbers[row]), int(catalog.ad_off[row])
    return Ad(
        ad_id=ad_id,
        advertiser=int(catalog.ad_advertisers[row]),
        item=int(catalog.ad_items[row]),
        crowds=crowds,
        bids=bids,
        negatives=catalog.negatives_of(row),
        groups=int(catalog.ad_groups[row]),
        max_impressions=int(catalog.ad_caps[row]),
        live=off == 0,
        number=None if number == NO_NUMBER else number,
        off=off,
        start_ms=int(catalog.ad_schedule[row, 0]),
        end_ms=int(catalog.ad_schedule[row, 1]),
        daily_budget=float(catalog.ad_budgets[row]),
    )


def small_catalog(base: Catalog, ads: Iterable[Ad]) -> Catalog:
    """A catalog of some ads by themselves, with the numbers and scalars of `base`, and no items."""
    some = sorted(ads, key=lambda ad: ad.ad_id)
    ids = np.array([ad.ad_id for ad in some], np.uint64)
    bid_crowds = joined([ad.crowds for ad in some], np.uint64)
    neg_ids = joined([ad.negatives for ad in some], np.uint64)
    crowds = np.union1d(bid_crowds, neg_ids)
    indptr, posting_ads, posting_bids = build_postings(
        crowds,
        ids,
        bid_crowds,
        np.repeat(ids, [len(ad.crowds) for ad in some]),
        joined([ad.bids for ad in some], np.float32),
    )
    rows, known = ordinals(base.crowds, crowds)
    crowd_numbers = np.full(len(crowds), NO_NUMBER, np.uint32)
    crowd_numbers[known] = base.crowd_numbers[rows]
    return Catalog(
        crowds=crowds,
        crowd_indptr=indptr,
        posting_ads=posting_ads,
        posting_bids=posting_bids,
        ads=ids,
        ad_advertisers=np.array([ad.advertiser for ad in some], np.uint64),
        ad_items=np.array([ad.item for ad in some], np.uint64),
        items=np.empty(0, np.uint64),
        item_indptr=np.zeros(1, np.int64),
        item_crowd_ordinals=np.empty(0, np.uint32),
        half_life_ms=base.half_life_ms,
        ad_groups=np.array([ad.groups & ALL_GROUPS for ad in some], np.uint8),
        ad_caps=np.array([ad.max_impressions for ad in some], np.uint32),
        ad_off=np.array([ad.off for ad in some], np.uint8),
        ad_schedule=np.array([(ad.start_ms, ad.end_ms) for ad in some], np.int64).reshape(-1, 2),
        ad_budgets=np.array([ad.daily_budget for ad in some], np.float64),
        neg_indptr=np.cumsum([0, *(len(ad.negatives) for ad in some)]).astype(np.int64),
        neg_crowds=np.searchsorted(crowds, neg_ids).astype(np.uint32),
        ad_numbers=np.array([NO_NUMBER if ad.number is None else ad.number for ad in some], np.uint32),
        crowd_numbers=crowd_numbers,
        cap_window_ms=base.cap_window_ms,
        groups=base.groups,
        offset=base.offset,
        next_ad_number=base.next_ad_number,
        next_crowd_number=base.next_crowd_number,
    )


def joined(parts: list[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    """Arrays end to end, also where there is none."""
    return np.concatenate([np.empty(0, dtype), *parts]).astype(dtype, copy=False)
