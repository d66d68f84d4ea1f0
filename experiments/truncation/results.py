"""All seeds' figures -> what is told: one structure, from which table, JSON, plots and page are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.truncation.calibration import Calibration, label
from experiments.truncation.estimates import Estimate, level, relative
from experiments.truncation.latency import MEASURED
from experiments.truncation.matching import Cut
from experiments.truncation.settings import BUDGETS, FEWER_CROWDS, PUBLISHED, SHARES, Sizes, Staleness

NEAR, BASE, AGAIN = "near-line", "base", "again"

FIGURES = {
    "impressions/ads truncated": "impressions of ads truncated before",
    "impressions/ads not truncated": "impressions of ads not truncated before",
    "impressions/advertisers truncated": "impressions of advertisers truncated before",
    "impressions/advertisers not truncated": "impressions of advertisers not truncated before",
    "revenue_per_mille": "revenue per thousand requests",
    "click_rate": "click rate",
    "predicted_click_rate": "click rate that the model predicted",
    "ads_shown": "ads shown at all",
    "gini_impressions": "Gini of advertisers' impressions",
    "hhi_impressions": "HHI of advertisers' impressions",
    "gini_revenue": "Gini of advertisers' spend",
    "hhi_revenue": "HHI of advertisers' spend",
    "advertiser_days_spent": "advertiser-days with the budget spent",
}
"""Figures of the main comparison, and what they are called."""

USERS = {
    f"revenue_per_mille/{kind} {third}": f"{third} {what}"
    for kind, what in (("activity", "requests"), ("pairs", "eligible pairs"))
    for third in ("least", "middle", "most")
}
"""Revenue by thirds of the users."""


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of both systems; change: near-line against the baseline; noise: baseline against baseline (A/A)."""

    name: str
    base: Estimate
    near_line: Estimate
    change: Estimate
    noise: Estimate


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a curve: near-line's revenue per mille against another system's."""

    name: str
    at: float
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Comparison:
    """Near-line against one baseline, with groups and models of that baseline's logs.

    changes: shares of advertisers who won or lost impressions, near-line's and the A/A's
    groups: how many ads and advertisers are in each group, and the share of the best that the cut-offs kept out
    """

    cut: Cut
    rows: list[Row]
    users: list[Row]
    changes: dict[str, dict[str, Estimate]]
    groups: dict[str, Estimate]

    def row(self, name: str) -> Row:
        """The row of a figure's name."""
        return next(r for r in self.rows if r.name == name)


@dataclass(frozen=True, slots=True)
class Results:
    """What the experiment found.

    against: by baseline, "strongest" first
    ways, crowds, shares, budgets: near-line against other online systems, and under other budgets
    staleness: near-line against exact matching at the request, and lists that are always an event behind likewise
    """

    sizes: Sizes
    seeds: int
    user_pairs: float
    staleness_ms: Staleness
    against: dict[str, Comparison]
    ways: list[Point]
    crowds: list[Point]
    shares: list[Point]
    budgets: list[Point]
    staleness: list[Point]

    @property
    def pairs(self) -> int:
        """Pairs that the baselines may read for a request."""
        return self.against["strongest"].cut.pairs

    def to_json(self) -> dict[str, Any]:
        """The one object of `--json`."""
        return {
            "seeds": self.seeds,
            "sizes": asdict(self.sizes),
            "latency": asdict(MEASURED) | {"share": MEASURED.share},
            "user_pairs": self.user_pairs,
            "staleness": asdict(self.staleness_ms),
            "published": PUBLISHED,
            "against": {name: _comparison(c) for name, c in self.against.items()},
            **{n: _points(getattr(self, n)) for n in ("ways", "crowds", "shares", "budgets")},
            "staleness_cost": _points(self.staleness),
        }


def conclude(seeds: Sequence[dict[str, Any]], sizes: Sizes, calibration: Calibration, stale: Staleness) -> Results:
    """Estimates of everything over the seeds' figures."""
    strongest = [seed["systems"]["strongest"] for seed in seeds]
    baseline = calibration.strongest(MEASURED.share)

    def point(name: str, at: float, base: str, system: str = NEAR) -> Point:
        return Point(name, at, relative(strongest, system, base, "revenue_per_mille"))

    best = calibration.best[MEASURED.share]
    fewer = {c: Cut("impact", baseline.pairs, min(c, baseline.pairs)) for c in FEWER_CROWDS}
    shares = [point(label(calibration.strongest(s)), s, f"share {s:g}") for s in SHARES]
    shares += [point(label(baseline), MEASURED.share, BASE), point("everything", 1.0, "online, everything")]
    scales = [point(f"budgets x {s:g}", s, f"budgets {s:g}, base", f"budgets {s:g}, near-line") for s in BUDGETS]
    return Results(
        sizes=sizes,
        seeds=len(seeds),
        user_pairs=calibration.user_pairs,
        staleness_ms=stale,
        against={name: _against(seeds, name, cut) for name, cut in calibration.baselines().items()},
        ways=[point(label(c), 0.0, BASE if c == baseline else f"way {way}") for way, c in best.items()],
        crowds=[point(label(cut), float(cut.crowds), f"crowds {c}") for c, cut in fewer.items()],
        shares=sorted(shares, key=lambda p: p.at),
        budgets=sorted([*scales, point("budgets x 1", 1.0, BASE)], key=lambda p: p.at),
        staleness=[
            point("lists as stale as measured", 0.0, "online, everything"),
            point("lists always one event behind", 0.0, "online, everything", "near-line, always behind"),
        ],
    )


def _against(seeds: Sequence[dict[str, Any]], baseline: str, cut: Cut) -> Comparison:
    of = [seed["systems"][baseline] for seed in seeds]

    def row(figure: str) -> Row:
        levels = (level(of, system, figure) for system in (BASE, NEAR))
        return Row(figure, *levels, *(relative(of, system, BASE, figure) for system in (NEAR, AGAIN)))

    counted = ("advertisers_judged", "winners", "losers", "impressions_moved")
    groups = [seed["groups"][baseline] for seed in seeds]
    return Comparison(
        cut,
        [row(f) for f in FIGURES],
        [row(f) for f in USERS],
        {system: {n: level(of, system, n) for n in counted} for system in (NEAR, AGAIN)},
        {name: Estimate.of([g[name] for g in groups]) for name in groups[0]},
    )


def _comparison(c: Comparison) -> dict[str, Any]:
    def rows(rows: list[Row]) -> dict[str, Any]:
        parts = ("base", "near_line", "change", "noise")
        return {r.name: {p: getattr(r, p).to_json() for p in parts} for r in rows}

    return {
        "cut": asdict(c.cut),
        "figures": rows(c.rows),
        "users": rows(c.users),
        "advertisers": {k: {n: e.to_json() for n, e in v.items()} for k, v in c.changes.items()},
        "groups": {k: e.to_json() for k, e in c.groups.items()},
    }


def _points(points: list[Point]) -> list[dict[str, Any]]:
    return [{"name": p.name, "at": p.at, "revenue_per_mille_gain": p.gain.to_json()} for p in points]
