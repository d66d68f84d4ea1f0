"""One catalog under one model's towers, by ordinals: what a matcher asks of the base, and of the extra."""

from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Users:
    """Users of one call: bias (U,), vecs (U, d), and as CSR their crowds' ids, ascending for each."""

    bias: F32
    vecs: F32
    indptr: I64
    crowds: U64

    def __len__(self) -> int:
        return len(self.bias)


class Best(NamedTuple):
    """The most valuable ads: counts (U,), and (U, k) ordinals, values, crowds' ordinals; zero beyond a count."""

    counts: NDArray[np.int32]
    ads: U32
    values: F32
    crowds: U32


class Pairs(NamedTuple):
    """Pairs of a user's row and an ad's ordinal, with their value and the ordinal of the crowd that wins."""

    users: I64
    ads: U32
    values: F32
    crowds: U32


class Side:
    """A catalog's postings and the ads' towers. An ad that the towers lack has bias 0 and a zero vector."""

    def __init__(self, catalog: Catalog, towers: UserTowers) -> None:
        self.catalog = catalog
        self.ad_bias = np.zeros(len(catalog.ads), np.float32)
        self.ad_vecs = np.zeros((len(catalog.ads), towers.dim), np.float32)
        rows, known = catalog.ad_ordinals(towers.ads)
        self.ad_bias[rows] = towers.ad_bias[known]
        self.ad_vecs[rows] = towers.ad_vecs[known]
        self._postings = (
            np.ascontiguousarray(catalog.crowd_indptr),
            np.ascontiguousarray(catalog.posting_ads),
            np.ascontiguousarray(catalog.posting_bids),
        )

    def match(self, users: Users, k: int, mask: U8, exclude_indptr: I64, exclude: U32, advertiser_cap: int) -> Best:
        """The k best of each user among ads that the mask lets in, without the user's excluded ones (ascending)."""
        indptr, crowds = self.user_crowds(users)
        unmasked = bool(mask.all()) and not len(exclude) and not advertiser_cap
        asked = k if unmasked else max(len(mask), 1)
        counts, ads, values, won, _, _ = native.match_topk(
            users.bias, users.vecs, indptr, crowds, *self._postings, self.ad_bias, self.ad_vecs, asked
        )
        if unmasked:
            return Best(counts, ads, values, won)
        shape = len(users), k
        out = Best(
            np.zeros(len(users), np.int32),
            np.zeros(shape, np.uint32),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.uint32),
        )
        for user in range(len(users)):
            n = counts[user]
            keep = mask[ads[user, :n]] != 0
            keep &= ~np.isin(ads[user, :n], exclude[exclude_indptr[user] : exclude_indptr[user + 1]])
            rows = np.flatnonzero(keep)
            if advertiser_cap:
                rows = rows[within_cap(self.catalog.ad_advertisers[ads[user, rows]], advertiser_cap)]
            rows = rows[:k]
            out.counts[user] = len(rows)
            for column, found in ((out.ads, ads), (out.values, values), (out.crowds, won)):
                column[user, : len(rows)] = found[user, rows]
        return out

    def above(self, users: Users, floor_values: F32, floor_ads: I64) -> Pairs:
        """Every pair of the users' crowds that is at or above the user's floor: (value desc, ordinal asc)."""
        indptr, crowds = self.user_crowds(users)
        starts, sizes = self.catalog.crowd_indptr[crowds], self.catalog.crowd_sizes[crowds]
        rows, owner = spread(starts, sizes)
        user = np.repeat(np.arange(len(users)), np.diff(indptr))[owner]
        ads = self.catalog.posting_ads[rows]
        pairs = np.unique(np.stack([user, ads.astype(np.int64)], axis=1), axis=0) if len(ads) else np.empty((0, 2))
        user, ads = pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.uint32)
        values, won = self.best(users, user, ads)
        floor, last = floor_values[user], floor_ads[user]
        keep = (values > floor) | ((values == floor) & (ads <= last))
        return Pairs(user[keep], ads[keep], values[keep], won[keep])

    def best(self, users: Users, pair_users: I64, pair_ads: U32) -> tuple[F32, U32]:
        """(n,) value and winning crowd of pairs (user's row, ad), in order; value -1 where no crowd is shared."""
        indptr, crowds = self.user_crowds(users)
        owner = np.repeat(np.arange(len(users), dtype=np.uint64), np.diff(indptr))
        held = owner << np.uint64(32) | crowds.astype(np.uint64)
        by_ad, bid_crowds, bid_values = self.catalog.ad_postings
        rows, pair = spread(by_ad[pair_ads], np.diff(by_ad)[pair_ads])
        wanted = pair_users.astype(np.uint64)[pair] << np.uint64(32) | bid_crowds[rows].astype(np.uint64)
        shared = ordinals(held, wanted)[1]
        rows, pair = rows[shared], pair[shared]
        order = np.lexsort((bid_crowds[rows], -bid_values[rows], pair))
        firsts = order[np.unique(pair[order], return_index=True)[1]]
        bids, won = np.full(len(pair_ads), -1, np.float32), np.zeros(len(pair_ads), np.uint32)
        bids[pair[firsts]], won[pair[firsts]] = bid_values[rows[firsts]], bid_crowds[rows[firsts]]
        return np.where(bids < 0, np.float32(-1), bids * self.pctr(users, pair_users, pair_ads)), won

    def pctr(self, users: Users, pair_users: I64, pair_ads: U32) -> F32:
        """(n,) click probability of pairs."""
        out = np.zeros(len(pair_ads), np.float32)
        for user in np.unique(pair_users).tolist():
            of = pair_users == user
            out[of] = native.tower_pctr(
                float(users.bias[user]), users.vecs[user], pair_ads[of], self.ad_bias, self.ad_vecs
            )
        return out

    def user_crowds(self, users: Users) -> tuple[I64, U32]:
        """The users' crowds that this catalog knows, by ordinal: (indptr, crowds)."""
        crowds, known = self.catalog.crowd_ordinals(users.crowds)
        before = np.concatenate(([0], np.cumsum(known)))
        return before[users.indptr].astype(np.int64), crowds

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
