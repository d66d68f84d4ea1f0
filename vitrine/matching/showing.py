"""What of a list may be shown now, and at which bids: one market, as tables by what stored lists hold.

An entry is shown where its ad is live, stands in the placement group, and still bids on the crowd that won; so an
ad that was paused, ran out of budget or schedule, or took the bid back is hidden before any worker rewrites a list.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.matching.catalog import NO_NUMBER, Catalog
from vitrine.matching.market import Market

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SHOWN, HIDDEN, ELSEWHERE = 0, 1, 2
"""In `Showing.closed`: the base says of an ad that it may be shown, that it may not, or nothing: `extra` does."""

# Of the answer's fields that a list gives: ids of ads, values, bids, ids of crowds.
_FIELDS = ("ad_ids", "values", "bids", "crowd_ids")


class Base:
    """Tables of one catalog, while it is a market's base; the last row of each stands for what is unknown."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.ad_at = _places(catalog.ad_numbers)
        self.crowd_at = _places(catalog.crowd_numbers)
        self.ads: U64 = np.append(catalog.ads, np.uint64(0))
        self.crowds: U64 = np.append(catalog.crowds, np.uint64(0))

    @cached_property
    def reader(self) -> native.ListReader:
        """Reads rankings by these tables."""
        indptr, bid_crowds, bids = self.catalog.ad_postings
        fields = pb.GetMatchesResponse.DESCRIPTOR.fields_by_name
        return native.ListReader(
            self.ad_at,
            self.crowd_at,
            self.ads,
            self.crowds,
            np.ascontiguousarray(indptr),
            np.ascontiguousarray(bid_crowds),
            np.ascontiguousarray(bids),
            bytes(fields[name].number << 3 | 2 for name in _FIELDS),
        )

    @cached_property
    def advertisers(self) -> U64:
        """(A+1,) by position."""
        return np.append(self.catalog.ad_advertisers, np.uint64(0))

    def bids(self, ads: I64, crowds: I64) -> F32:
        """Bids of pairs of positions; 0 where there is no such pair, as of an ad or a crowd that is unknown."""
        indptr, bid_crowds, bids = self.catalog.ad_postings
        found = np.zeros(len(ads), np.float32)
        known = np.flatnonzero(ads < len(self.catalog.ads))
        starts = indptr[ads[known]]
        counts = indptr[ads[known] + 1] - starts
        # All of the ads' bids side by side, compared with the crowds wanted: an ad has few bids.
        rows = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        pair = np.repeat(known, counts)
        hits = np.flatnonzero(bid_crowds[rows] == crowds[pair])
        found[pair[hits]] = bids[rows[hits]]
        return found


class Showing:
    """One market's word on entries of lists."""

    def __init__(self, market: Market, base: Base | None = None) -> None:
        """base: of the market's catalog, where one is there already."""
        self.market = market
        self.base = base if base is not None and base.catalog is market.catalog else Base(market.catalog)
        self._closed: dict[int, U8] = {}

    def warm(self) -> "Showing":
        """Makes what the first answer would have to wait for: milliseconds a million ads."""
        _ = self.base.reader, self.extra
        for group in range(len(self.market.catalog.groups)):
            self.closed(group)
        return self

    def closed(self, group: int) -> U8:
        """(A+1,) by position: SHOWN, HIDDEN or ELSEWHERE, in this group."""
        closed = self._closed.get(group)
        if closed is None:
            outside = self.market.catalog.ad_groups >> np.uint8(group) & np.uint8(1) == 0
            closed = np.append(self.market.dead | outside, False).astype(np.uint8)
            closed[:-1][self.market.redefined] = ELSEWHERE
            closed[-1] = ELSEWHERE
            self._closed[group] = closed
        return closed

    @cached_property
    def extra(self) -> native.ListExtra:
        """The live ads that the base does not define."""
        extra = self.market.extra
        indptr, crowds, bids = extra.ad_postings
        return native.ListExtra(
            extra.ads,
            extra.ad_groups,
            np.ascontiguousarray(indptr),
            extra.crowds[crowds],
            np.ascontiguousarray(bids),
        )

    def rows(self, ads: U64, crowds: U64, group: int) -> F32:
        """(n,) the bid of each entry; 0 of those that may not be shown."""
        catalog = self.market.catalog
        at, on = _positions(catalog.ads, ads), _positions(catalog.crowds, crowds)
        closed = self.closed(group)[at]
        bids = self.base.bids(at, on)
        bids[closed != SHOWN] = 0
        for row in np.flatnonzero(closed == ELSEWHERE).tolist():
            bids[row] = self._elsewhere(int(ads[row]), int(crowds[row]), group)
        return bids

    def advertisers(self, ads: U64) -> U64:
        """(n,) who pays for each ad; 0 where nobody is known."""
        at = _positions(self.market.catalog.ads, ads)
        found = self.base.advertisers[at]
        for row in np.flatnonzero(np.append(self.market.redefined, True)[at]).tolist():
            ad = self.market.ad(int(ads[row]))
            found[row] = 0 if ad is None else ad.advertiser
        return found

    def _elsewhere(self, ad_id: int, crowd: int, group: int) -> float:
        """The bid of an ad that the base does not show: it may have been defined anew."""
        ad = self.market.ad(ad_id) if ad_id else None
        if ad is None or not ad.live or not ad.groups >> group & 1:
            return 0.0
        row = int(np.searchsorted(ad.crowds, np.uint64(crowd)))
        return float(ad.bids[row]) if row < len(ad.crowds) and ad.crowds[row] == crowd else 0.0


class Excluded:
    """Ads and advertisers that a caller does not want, by ascending ids."""

    def __init__(self, ads: Sequence[int] = (), advertisers: Sequence[int] = ()) -> None:
        self.ads: U64 = np.sort(np.array(ads, np.uint64))
        self.advertisers: U64 = np.array(advertisers, np.uint64)

    def mask(self, showing: Showing, ads: U64) -> Mask:
        """(n,) which of the ads are excluded."""
        mask = np.isin(ads, self.ads)
        if len(self.advertisers):
            mask |= np.isin(showing.advertisers(ads), self.advertisers)
        return mask


NOTHING = Excluded()


def _places(numbers: U32) -> I64:
    """(n+1,) number -> position of what has it; the count of positions where nothing does, and in the last row."""
    given = numbers != NO_NUMBER
    table = np.full(int(numbers[given].max(initial=0)) + 2, len(numbers), np.int64)
    table[numbers[given]] = np.flatnonzero(given)
    return table


def _positions(sorted_ids: U64, ids: U64) -> I64:
    """(n,) positions of the ids; the count of positions for those that are not there."""
    at = np.searchsorted(sorted_ids, ids)
    if len(sorted_ids):
        at[sorted_ids[np.minimum(at, len(sorted_ids) - 1)] != ids] = len(sorted_ids)
    return at
