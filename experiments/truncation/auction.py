"""The auction of both systems: second price over candidates by bid times pCTR, and budgets paced over the day."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.truncation.settings import RESERVE, SLOTS
from vitrine.data import draws

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sold:
    """ad: (n,) the winner, -1 where nobody could be shown; price: (n,) of a click on it; rate: (n,) its pCTR."""

    ad: I64
    price: NDArray[np.float64]
    rate: NDArray[np.float64]


def second_price(
    ads: I64, bids: NDArray[np.floating], rates: NDArray[np.floating], allowed: NDArray[np.bool_], served: int
) -> Sold:
    """The first `served` allowed candidates of each row (n, K), by bid times click rate; the winner pays the
    least that would still have won, per click, at least the reserve."""
    entering = allowed & (np.cumsum(allowed, axis=1) <= served)
    value = np.where(entering, bids.astype(np.float64) * rates, -1.0)
    rows = np.arange(len(ads))
    best = value.argmax(axis=1)
    top = value[rows, best]
    value[rows, best] = -1.0
    second = np.maximum(value.max(axis=1), 0.0)
    price = second / np.where(top > 0, rates[rows, best], 1.0)
    sold = top > 0
    price = np.minimum(np.maximum(price, RESERVE), bids[rows, best])
    return Sold(
        np.where(sold, ads[rows, best], -1), np.where(sold, price, 0.0), np.where(sold, rates[rows, best], 0.0)
    )


class Budgets:
    """Daily budgets of advertisers and the share of auctions that each takes part in, so that they last a day.

    spent: (advertisers,) today; rate: (advertisers,) the share; exhausted_days: of the `days` that have ended
    """

    def __init__(self, budget: NDArray[np.float64], advertiser: I64, seed: int, noise: int) -> None:
        self.budget, self.advertiser = budget, advertiser
        self.spent = np.zeros(len(budget))
        self.rate = np.ones(len(budget))
        self.exhausted_days = np.zeros(len(budget))
        self.days = 0
        self._seed, self._stream = seed, f"truncation/pace/{noise}"

    def end_day(self) -> None:
        """Budgets are whole again; shares stay as they are."""
        self.days += 1
        self.exhausted_days += self.spent >= self.budget
        self.spent[:] = 0.0

    def pace(self, slot_of_day: int) -> None:
        """At a slot's start: who is ahead of an even spend takes part less, who is behind more."""
        ahead = self.spent > self.budget * (slot_of_day / SLOTS)
        if slot_of_day:
            self.rate = np.where(ahead, np.maximum(self.rate * 0.7, 0.05), np.minimum(self.rate * 1.3, 1.0))

    def alive(self) -> NDArray[np.bool_]:
        """(A,) ads whose advertiser has money left today."""
        return np.asarray((self.spent < self.budget)[self.advertiser])

    def takes_part(self, ads: I64, requests: I64) -> NDArray[np.bool_]:
        """(n, K) whether each candidate takes part in each request's auction; a draw by (request, advertiser)."""
        owner = self.advertiser[np.maximum(ads, 0)]
        paced = self.rate[owner]
        out = (ads >= 0) & (self.spent < self.budget)[owner]
        row, column = np.nonzero(out & (paced < 1.0))
        u = draws.uniform(self._seed, self._stream, requests[row], owner[row, column])
        out[row, column] = u < paced[row, column]
        return out

    def bill(self, ads: I64, prices: NDArray[np.float64]) -> NDArray[np.float64]:
        """Charge clicks on `ads` (n,) in order; what each really pays, since nobody pays more than the budget."""
        owner = self.advertiser[ads]
        by = np.argsort(owner, kind="stable")
        before = np.cumsum(prices[by]) - prices[by]
        first = np.searchsorted(owner[by], owner[by])
        left = self.budget[owner[by]] - self.spent[owner[by]] - (before - before[first])
        paid = np.empty(len(ads))
        paid[by] = np.clip(np.minimum(prices[by], left), 0.0, None)
        np.add.at(self.spent, owner, paid)
        return paid
