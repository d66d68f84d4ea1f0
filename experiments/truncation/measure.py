"""What is read off a log: revenue, clicks, who was shown, and how evenly; one flat summary a system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.truncation.replay import Replay

F64 = NDArray[np.float64]

MIN_WANTED = 20
"""Requests at which an ad must have been among the most valuable before it is said to be truncated or not."""
MIN_IMPRESSIONS = 20
"""Impressions in either system that an advertiser needs to count as a winner or a loser."""
CHANGED = 0.10
"""Relative change of impressions that makes one."""

THIRDS = ("least", "middle", "most")


@dataclass(frozen=True, slots=True)
class Groups:
    """Who is who, fixed before the comparison.

    ad, advertiser: (A,), (advertisers,) number into `names`, by the share of the requests at which the cut-offs
    kept out what was among the user's most valuable; advertiser_of: (A,)
    activity, pairs: (U,) third of each user by requests and by eligible pairs
    """

    names: tuple[str, ...]
    ad: NDArray[np.int64]
    advertiser: NDArray[np.int64]
    advertiser_of: NDArray[np.int64]
    activity: NDArray[np.int64]
    pairs: NDArray[np.int64]

    @staticmethod
    def of(before: Replay, requests: NDArray[np.integer], pairs: NDArray[np.integer]) -> Groups:
        """Groups by a pre-period that counted; requests, pairs: (U,) of every user in it."""
        owner = before.market.advertiser
        n = len(before.market.budget)
        wanted, dropped = (
            np.bincount(owner, x, minlength=n).astype(float) for x in (before.wanted, before.dropped)
        )
        return Groups(
            ("truncated", "not truncated", "seldom among the best"),
            _truncated(before.wanted, before.dropped),
            _truncated(wanted, dropped),
            owner,
            _thirds(requests),
            _thirds(pairs),
        )


def _truncated(wanted: F64, dropped: F64) -> NDArray[np.int64]:
    share = dropped / np.maximum(wanted, 1)
    return np.where(wanted < MIN_WANTED, 2, np.where(share >= 0.5, 0, 1))


def _thirds(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Third of each value by rank, ties by position."""
    rank = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return rank * 3 // len(values)


def summary(system: Replay, groups: Groups) -> dict[str, float]:
    """The figures of one system, each of them a number; shares and rates are of 1.

    Revenue per mille is of a thousand requests: a system that finds no ad for a request earns nothing from it.
    """
    log = system.log
    ad, user = log.column("ad"), log.column("user")
    clicked, paid = log.column("clicked").astype(bool), log.column("paid")
    shown = ad >= 0
    by_ad = np.bincount(ad[shown], minlength=system.market.ads)
    advertisers = len(groups.advertiser)
    by_advertiser = np.bincount(groups.advertiser_of, by_ad, minlength=advertisers)
    earned = np.bincount(groups.advertiser_of[ad[shown]], paid[shown], minlength=advertisers)
    n = max(1, int(shown.sum()))
    days = max(1, system.budgets.days)
    out: dict[str, float] = {
        "requests": float(len(ad)),
        "impressions": float(n),
        "fill": n / max(1, len(ad)),
        "clicks": float(clicked.sum()),
        "click_rate": float(clicked.sum()) / n,
        "predicted_click_rate": float(log.column("rate")[shown].sum()) / n,
        "revenue": float(paid.sum()),
        "revenue_per_mille": 1000.0 * float(paid.sum()) / max(1, len(ad)),
        "pairs_read_a_request": system.matcher.pairs / max(1, len(ad)),
        "ads_shown": float((by_ad > 0).sum()),
        "advertisers_shown": float((by_advertiser > 0).sum()),
        "gini_impressions": gini(by_advertiser),
        "hhi_impressions": hhi(by_advertiser),
        "gini_revenue": gini(earned),
        "hhi_revenue": hhi(earned),
        "advertiser_days_spent": float(system.budgets.exhausted_days.sum()) / (days * advertisers),
    }
    for g, name in enumerate(groups.names):
        out[f"impressions/ads {name}"] = float(by_ad[groups.ad == g].sum())
        out[f"impressions/advertisers {name}"] = float(by_advertiser[groups.advertiser == g].sum())
    for kind in ("activity", "pairs"):
        third = getattr(groups, kind)[user]
        for g, name in enumerate(THIRDS):
            out[f"revenue_per_mille/{kind} {name}"] = 1000.0 * _mean(paid[third == g])
    return out


def changes(system: Replay, base: Replay) -> dict[str, float]:
    """Advertisers who won and lost impressions against `base`, as shares of those with enough in either."""
    owner, n = system.market.advertiser, len(system.market.budget)
    ours, theirs = (
        np.bincount(owner, np.bincount(ad[ad >= 0], minlength=len(owner)), minlength=n)
        for ad in (system.log.column("ad"), base.log.column("ad"))
    )
    judged = np.maximum(ours, theirs) >= MIN_IMPRESSIONS
    ours, theirs = ours[judged], theirs[judged]
    count = max(1, len(ours))
    return {
        "advertisers_judged": float(len(ours)),
        "winners": float((ours > (1 + CHANGED) * theirs).sum()) / count,
        "losers": float((ours < (1 - CHANGED) * theirs).sum()) / count,
        "impressions_moved": float(np.abs(ours - theirs).sum()) / 2 / max(1.0, float(theirs.sum())),
    }


def gini(values: NDArray[Any]) -> float:
    """Gini coefficient: 0 where all have the same, towards 1 where one has everything."""
    x = np.sort(np.asarray(values, np.float64))
    total = x.sum()
    if total <= 0:
        return 0.0
    n = len(x)
    return float((2 * np.arange(1, n + 1) - n - 1) @ x / (n * total))


def hhi(values: NDArray[Any]) -> float:
    """Herfindahl-Hirschman index: the sum of squared shares, 1 / n to 1."""
    total = float(np.sum(values))
    return float(((np.asarray(values) / total) ** 2).sum()) if total > 0 else 0.0


def _mean(values: F64) -> float:
    return float(values.mean()) if len(values) else 0.0
