"""Drawn markets of crowds, ads and users for the matching benchmarks: long-tailed crowds, long-tailed membership.

Crowd sizes and the chance that a user is in a crowd go as rank^-0.75. A spectrum says what the towers make of a
pair: the logit's standard deviation over pairs, and how fast it falls from dimension to dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
U32 = NDArray[np.uint32]
I64 = NDArray[np.int64]

EXPONENT = 0.75


@dataclass(frozen=True)
class Spectrum:
    """Dimension i has exp(-decay * i) of the first one's part in the logit's standard deviation `sd`."""

    sd: float
    decay: float = 0.0

    def scales(self, d: int) -> NDArray[np.float64]:
        """What a user's and an ad's normal coordinates are multiplied by, each."""
        parts = np.exp(-self.decay * np.arange(d))
        return np.sqrt(parts * self.sd / np.sqrt((parts**2).sum()))


SPECTRA = {
    "sd 0.3 flat": Spectrum(0.3),
    "sd 0.7 decay 0.3": Spectrum(0.7, 0.3),
    "sd 0.7 flat": Spectrum(0.7),
}


@dataclass(frozen=True)
class Market:
    """The arrays of `native.MatchIndex` but for the towers."""

    ads: int
    crowd_indptr: I64
    posting_ads: U32
    posting_bids: F32


def sizes(crowds: int, postings: int, most: int) -> I64:
    """Postings of each crowd, largest first; none has more than `most`."""
    weights = np.arange(1, crowds + 1) ** -EXPONENT
    return np.clip(np.rint(weights * (postings / weights.sum())), 1, most).astype(np.int64)


def postings(rng: np.random.Generator, ads: int, crowds: int, count: int) -> tuple[I64, U32]:
    """Each crowd's ads, ascending: one of every stretch of ads / size."""
    each = sizes(crowds, count, ads)
    indptr = np.r_[0, np.cumsum(each)]
    posting_ads = np.empty(indptr[-1], np.uint32)
    for begin in range(0, crowds, 65_536):  # in parts, for memory's sake
        end = min(crowds, begin + 65_536)
        part = each[begin:end]
        place = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
        spot = (place + rng.random(len(place))) * np.repeat(ads / part, part)
        posting_ads[indptr[begin] : indptr[end]] = np.minimum(spot, ads - 1)
    crowd = np.repeat(np.arange(crowds, dtype=np.uint32), each)
    again = np.r_[False, (posting_ads[1:] == posting_ads[:-1]) & (crowd[1:] == crowd[:-1])]
    kept = np.bincount(crowd[~again], minlength=crowds)
    return np.r_[0, np.cumsum(kept)].astype(np.int64), posting_ads[~again]


def market(rng: np.random.Generator, ads: int, crowds: int, count: int, sigma: float = 1.0) -> Market:
    """`count` postings, a few less where a large crowd drew an ad twice; bids lognormal, each drawn by itself."""
    indptr, posting_ads = postings(rng, ads, crowds, count)
    bids = np.exp(rng.standard_normal(len(posting_ads), np.float32) * np.float32(sigma))
    return Market(ads, indptr, posting_ads, bids)


def members(rng: np.random.Generator, market: Market, users: int, pairs: float) -> tuple[I64, U32]:
    """Users' crowds: as many for each as make `pairs` pairs a user in the mean, none twice."""
    each = np.diff(market.crowd_indptr)
    weights = np.arange(1, len(each) + 1) ** -EXPONENT
    weights /= weights.sum()
    low, high = 1, len(each)
    while low < high:  # the mean of distinct draws: a crowd is in n of them with 1 - (1 - w)^n
        middle = (low + high) // 2
        if (each * -np.expm1(middle * np.log1p(-weights))).sum() < pairs:
            low = middle + 1
        else:
            high = middle
    edges = np.cumsum(weights)
    held = [np.unique(np.searchsorted(edges, rng.random(low) * edges[-1])) for _ in range(users)]
    return np.cumsum([0, *map(len, held)]).astype(np.int64), np.concatenate(held).astype(np.uint32)


def towers(rng: np.random.Generator, count: int, spectrum: Spectrum, d: int) -> F32:
    return (rng.standard_normal((count, d)) * spectrum.scales(d)).astype(np.float32)
