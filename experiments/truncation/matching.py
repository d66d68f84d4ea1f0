"""Matching, where the two systems differ: which (crowd, ad) pairs of a user are read before the best are kept.

All ways share one kernel, `vitrine.native.match_topk`; a way only decides which runs of postings a user reads:

- cut by bid, cut by impact: the user's heaviest C crowds, and of each the first A ads in order of bid, or of bid
  times historical click rate;
- merged: all the user's crowds at once, in the order of impact, until the time is up;
- deadline: exact matching online, best first: blocks of postings in impact order, by the bound on what a block can
  hold for this user, until the time is up;
- everything: all pairs.

The online ways have one budget, in pairs read; the deadline matcher's bounds count as pairs, eight as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from experiments.truncation.market import Market
from experiments.truncation.model import Model
from trainers.des.history import States
from vitrine import native

I64 = NDArray[np.int64]
F32 = NDArray[np.float32]

BLOCK = {"deadline": 8, "merged": 8}
"""Postings of a block, for the ways that stop at a deadline: small, as this market's crowds are."""

BOUNDS_A_PAIR = 8
"""Bounds that cost as much as a pair: they lie side by side in memory, a pair's slot and tower anywhere."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A way of matching, and what it may read.

    pairs:  pairs that a request may read; 0 for all of them
    crowds: crowds of the user that are looked at, for the ways that cut; pairs // crowds ads of each are read
    """

    way: Literal["bid", "impact", "merged", "deadline", "everything"]
    pairs: int = 0
    crowds: int = 0


EVERYTHING = Cut("everything")


@dataclass(frozen=True, slots=True)
class Found:
    """(n, K) ads, best first, with values and bids; ad -1 and value 0 beyond a user's last."""

    ads: I64
    values: F32
    bids: F32


class Matcher:
    """Postings in a way's order, of ads that are alive; told of every change before it matches.

    pairs: pairs read so far
    """

    def __init__(self, market: Market, cut: Cut) -> None:
        self.market, self.cut = market, cut
        self._crowd = np.repeat(np.arange(len(market.crowd_indptr) - 1), np.diff(market.crowd_indptr))
        self._crowds = len(market.crowd_indptr) - 1
        self.pairs = 0

    def order(self, model: Model, rate: NDArray[np.float64]) -> None:
        """Put postings in order, for a new model or a new day's historical click rates (A,)."""
        m = self.market
        self.model = model
        ads, bids = m.posting_ads.astype(np.int64), m.posting_bids.astype(np.float64)
        worth = {
            "bid": bids,
            "impact": bids * rate[ads],
            "merged": bids * rate[ads],
            "deadline": bids / (1.0 + np.exp(-(model.bias + model.ad_bias[ads]))),
            "everything": bids,
        }[self.cut.way]
        by = np.lexsort((ads, -worth, self._crowd))
        self._order_ads, self._order_bids, self._order_worth = m.posting_ads[by], m.posting_bids[by], worth[by]

    def alive(self, alive: NDArray[np.bool_]) -> None:
        """Leave out the postings of ads that are not alive (A,), and cut the rest."""
        kept = np.flatnonzero(alive[self._order_ads])
        ads, bids, crowd = self._order_ads[kept], self._order_bids[kept], self._crowd[kept]
        counts = np.bincount(crowd, minlength=self._crowds)
        starts = np.cumsum(counts) - counts
        rank = np.arange(len(ads)) - starts[crowd]
        if self.cut.way in ("bid", "impact"):
            first = rank < max(1, self.cut.pairs // self.cut.crowds)
            ads, bids, crowd = ads[first], bids[first], crowd[first]
            counts = np.bincount(crowd, minlength=self._crowds)
        self.ads, self.bids = np.ascontiguousarray(ads), np.ascontiguousarray(bids)
        self.indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        if self.cut.way in BLOCK:
            self._block(counts, BLOCK[self.cut.way], self._order_worth[kept])

    def _block(self, counts: I64, size: int, worth: NDArray[np.float64]) -> None:
        """Cut every crowd's postings into blocks, and bound what each can hold."""
        blocks = -(-counts // size)
        self.block_of = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)  # crowd -> its first block
        crowd = np.repeat(np.arange(len(counts)), blocks)
        starts = self.indptr[crowd] + (np.arange(len(crowd)) - self.block_of[crowd]) * size
        self.indptr = np.append(starts, len(self.ads)).astype(np.int64)
        if len(starts):
            norms = np.sqrt((self.model.ad_vecs**2).sum(axis=1))
            most = (self.bids, self.model.ad_bias[self.ads], norms[self.ads])
            self._most = [np.maximum.reduceat(x, starts) for x in most]
            self._worth = worth[starts].astype(np.float32)

    def match(self, states: States, users: I64, bias: F32, vecs: F32, k: int) -> Found:
        """The k most valuable ads of what each user reads, by the given halves (n,), (n, d) of the users."""
        crowds, weights = states.crowds[users].astype(np.int64), states.crowd_w[users]
        indptr, flat = _rows(crowds, weights, self.cut.crowds)
        runs = flat
        if self.cut.way in BLOCK:
            indptr, runs = self._before_deadline(indptr, flat, bias, vecs)
        found = native.match_topk(
            bias, vecs, indptr, runs.astype(np.uint32), self.indptr, self.ads, self.bids,
            self.model.ad_bias, self.model.ad_vecs, k,
        )  # fmt: skip
        self.pairs += int(np.diff(self.indptr)[runs].sum())
        there = np.arange(k) < found[0][:, None]
        return Found(np.where(there, found[1].astype(np.int64), -1), found[2], found[4])

    def _before_deadline(self, indptr: I64, crowds: I64, bias: F32, vecs: F32) -> tuple[I64, I64]:
        """Blocks that each user reads until the time is up, ascending within a user."""
        user = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        n = self.block_of[crowds + 1] - self.block_of[crowds]
        owner = np.repeat(user, n)
        block = np.repeat(self.block_of[crowds] - (np.cumsum(n) - n), n) + np.arange(int(n.sum()))
        users, blocks = len(indptr) - 1, len(self.indptr) - 1
        if not len(block):
            return np.zeros(users + 1, np.int64), block
        if self.cut.way == "merged":
            bound, bounds = self._worth[block], np.zeros(users, np.int64)
        else:
            bid, most_bias, norm = (x[block] for x in self._most)
            length = np.sqrt((vecs * vecs).sum(axis=1))
            bound = bid / (np.float32(1.0) + np.exp(-(bias[owner] + most_bias + length[owner] * norm)))
            bounds = np.bincount(owner, minlength=users) // BOUNDS_A_PAIR
        owner, block = _best_first(owner, bound, block)
        spent = np.cumsum(np.diff(self.indptr)[block])
        before = np.append(0, spent)[np.searchsorted(owner, np.arange(users))]
        kept = spent - before[owner] + bounds[owner] <= self.cut.pairs
        key = np.sort(owner[kept] * blocks + block[kept])
        counts = np.bincount(key // blocks, minlength=users)
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), key % blocks


def _best_first(owner: I64, bound: F32, block: I64) -> tuple[I64, I64]:
    """Sort by owner, then bound from the greatest, then block: one integer key, as numpy sorts those fastest.

    The bits of floats that are not negative ascend as they do.
    """
    if int(owner[-1]) >= 1 << 12 or int(block.max()) >= 1 << 20:
        raise ValueError("a batch holds at most 4,096 users, and a market 1,048,576 blocks")
    inverse = (1 << 31) - 1 - bound.view(np.uint32).astype(np.int64)
    key = np.sort(owner << 51 | inverse << 20 | block)
    return key >> 51, key & ((1 << 20) - 1)


def _rows(crowds: I64, weights: NDArray[np.floating], most: int) -> tuple[I64, I64]:
    """Slots of users (n, w) as CSR, crowds ascending within a user: all that are held, or the `most` heaviest."""
    none = np.iinfo(np.int64).max
    crowds = np.where(crowds >= 0, crowds, none)
    if most and most < crowds.shape[1]:
        by = np.argsort(crowds, axis=1, kind="stable")
        crowds, weights = np.take_along_axis(crowds, by, 1), np.take_along_axis(weights, by, 1)
        by = np.argsort(np.where(crowds < none, -weights, np.inf), axis=1, kind="stable")
        crowds = np.take_along_axis(crowds, by[:, :most], 1)
    crowds = np.sort(crowds, axis=1)
    held = crowds < none
    return np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int64), crowds[held]
