"""One catalog under one model's towers, by ordinals: what a matcher asks of the base, and of the extra."""

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.features import UserTowers
from vitrine.matching.catalog import Catalog, ordinals

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

_HIGH = np.uint64(32)


class Users:
    """Users of one call: bias (U,), vecs (U, d), and as CSR their crowds' ids, ascending for each."""

    def __init__(self, bias: F32, vecs: F32, indptr: I64, crowds: U64) -> None:
        self.bias, self.vecs, self.indptr, self.crowds = bias, vecs, indptr, crowds
        self._known: dict[int, tuple[I64, U32]] = {}

    def __len__(self) -> int:
        return len(self.bias)

    def crowds_in(self, catalog: Catalog) -> tuple[I64, U32]:
        """Those of the crowds that a catalog knows, by ordinal: (indptr, crowds). Looked up once."""
        held = self._known.get(id(catalog))
        if held is None:
            crowds, known = catalog.crowd_ordinals(self.crowds)
            before = np.zeros(len(known) + 1, np.int64)
            np.cumsum(known, out=before[1:])
            held = self._known[id(catalog)] = before[self.indptr], crowds
        return held


class Best(NamedTuple):
    """The most valuable ads: counts (U,), and (U, k) ordinals, values, crowds' ordinals; zero beyond a count."""

    counts: NDArray[np.int32]
    ads: U32
    values: F32
    crowds: U32


class Side:
    """A catalog's postings and the ads' towers. An ad that the towers lack has bias 0 and a zero vector."""

    def __init__(self, catalog: Catalog, towers: UserTowers, threads: int = 1) -> None:
        self.catalog = catalog
        ad_bias = np.zeros(len(catalog.ads), np.float32)
        ad_vecs = np.zeros((len(catalog.ads), towers.dim), np.float32)
        rows, known = catalog.ad_ordinals(towers.ads)
        ad_bias[rows] = towers.ad_bias[known]
        ad_vecs[rows] = towers.ad_vecs[known]
        self._index = native.MatchIndex(
            np.ascontiguousarray(catalog.crowd_indptr),
            np.ascontiguousarray(catalog.posting_ads),
            np.ascontiguousarray(catalog.posting_bids),
            ad_bias,
            ad_vecs,
            threads=threads,
        )

    def match(self, users: Users, k: int, mask: U8, exclude_indptr: I64, exclude: U32, advertiser_cap: int) -> Best:
        """The k best of each user among ads that the mask lets in, without the user's excluded ones (ascending)."""
        counts, ads, values, crowds, *_ = self._index.match(
            users.bias,
            users.vecs,
            *users.crowds_in(self.catalog),
            k,
            masks=mask,
            exclude_indptr=exclude_indptr,
            exclude_ads=exclude,
            advertisers=self._advertisers if advertiser_cap else None,
            advertiser_cap=advertiser_cap,
        )
        return Best(counts, ads, values, crowds)

    def above(self, users: Users, floor_values: F32, floor_ads: U64, mask: U8) -> tuple[I64, U32]:
        """(user's row, ad) of every pair in the users' crowds at or above the user's floor (value, ad id)."""
        # The last ordinal that is at or below the floor's ad; without any, a value a touch higher is what counts.
        last = np.searchsorted(self.catalog.ads, floor_ads, side="right") - 1
        none = last < 0
        floors = np.where(none, np.nextafter(floor_values, np.float32(np.inf)), floor_values)
        indptr, ads, *_ = self._index.above(
            users.bias,
            users.vecs,
            *users.crowds_in(self.catalog),
            floors.astype(np.float32),
            np.where(none, 0xFFFFFFFF, last).astype(np.uint32),
            masks=mask,
        )
        return np.repeat(np.arange(len(users)), np.diff(indptr)), ads

    def best(self, users: Users, rows: I64, ads: U32) -> tuple[F32, U32]:
        """(n,) value and winning crowd of pairs (user's row, ad); value -1 where no crowd is shared."""
        values, crowds, _ = self._index.best(
            users.bias, users.vecs, rows.astype(np.uint32), ads, *users.crowds_in(self.catalog)
        )
        return values, crowds

    def bars(self, users: Users, rows: I64, ads: U32) -> NDArray[np.bool_]:
        """(n,) of pairs (user's row, ad): whether the user is in one of the ad's negative crowds."""
        out = np.zeros(len(ads), bool)
        indptr = self.catalog.neg_indptr
        places, pair = spread(indptr[ads], np.diff(indptr)[ads])
        if len(places):
            user_indptr, crowds = users.crowds_in(self.catalog)
            owner = np.repeat(np.arange(len(users), dtype=np.uint64), np.diff(user_indptr))
            wanted = rows.astype(np.uint64)[pair] << _HIGH | self.catalog.neg_crowds[places].astype(np.uint64)
            out[pair[ordinals(owner << _HIGH | crowds.astype(np.uint64), wanted)[1]]] = True
        return out

    @cached_property
    def _advertisers(self) -> U32:
        return np.unique(self.catalog.ad_advertisers, return_inverse=True)[1].astype(np.uint32)

    @cached_property
    def has_negatives(self) -> bool:
        """Whether any ad has a negative crowd."""
        return len(self.catalog.neg_crowds) > 0

    @cached_property
    def negatives_by_crowd(self) -> tuple[I64, U32]:
        """Crowd -> ads that its members never see: (indptr (C+1,), ad ordinals ascending inside a crowd)."""
        owner = np.repeat(np.arange(len(self.catalog.ads), dtype=np.uint32), np.diff(self.catalog.neg_indptr))
        order = np.argsort(self.catalog.neg_crowds, kind="stable")
        sizes = np.bincount(self.catalog.neg_crowds, minlength=len(self.catalog.crowds))
        return np.concatenate(([0], np.cumsum(sizes))).astype(np.int64), owner[order]

    def negative_ads(self, indptr: I64, crowds: U32) -> tuple[I64, U32]:
        """(row, ad) of every ad for which one of a row's crowds is negative, rows ascending."""
        by_crowd, ads = self.negatives_by_crowd
        rows, owner = spread(by_crowd[crowds], np.diff(by_crowd)[crowds])
        return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))[owner], ads[rows]


def spread(starts: I64, sizes: I64) -> tuple[I64, I64]:
    """Ranges end to end: (every place in [start, start + size) of each, which range it is of)."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return np.arange(total) + np.repeat(starts - ends + sizes, sizes), owner


def within_cap(advertisers: U64, cap: int) -> NDArray[np.bool_]:
    """(n,) of entries best first: whether fewer than `cap` of the same advertiser come before."""
    order = np.argsort(advertisers, kind="stable")
    ranked = advertisers[order]
    firsts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1]))) if len(ranked) else ranked
    sizes = np.diff(np.append(firsts, len(ranked)))
    keep = np.empty(len(advertisers), bool)
    keep[order] = np.arange(len(ranked)) - np.repeat(firsts, sizes) < cap
    return keep
