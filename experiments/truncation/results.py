"""All seeds' figures -> what is told: one structure, from which table, JSON, plots and page are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
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
    "impressions/ads seldom among the best": "impressions of ads seldom among the best",
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
    impressions: Estimate


@dataclass(frozen=True, slots=True)
class Results:
    """What the experiment found.

    ways, crowds, shares, budgets: near-line against other online systems, and under other budgets
    staleness: near-line against exact matching at the request, and lists that are always an event behind likewise
    changes: shares of advertisers who won or lost impressions, near-line's and the A/A's
    """

    sizes: Sizes
    seeds: int
    baseline: Cut
    user_pairs: float
    staleness_ms: Staleness
    rows: list[Row]
    users: list[Row]
    ways: list[Point]
    crowds: list[Point]
    shares: list[Point]
    budgets: list[Point]
    staleness: list[Point]
    changes: dict[str, dict[str, Estimate]]
    groups: dict[str, Estimate] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """The row of a figure's name."""
        return next(r for r in (*self.rows, *self.users) if r.name == name)

    def to_json(self) -> dict[str, Any]:
        """The one object of `--json`."""

        def rows(rows: list[Row]) -> dict[str, Any]:
            parts = ("base", "near_line", "change", "noise")
            return {r.name: {p: getattr(r, p).to_json() for p in parts} for r in rows}

        def points(points: list[Point]) -> list[dict[str, Any]]:
            return [
                {"name": p.name, "at": p.at, "revenue_per_mille_gain": p.gain.to_json(),
                 "impressions_of_truncated_gain": p.impressions.to_json()}
                for p in points
            ]  # fmt: skip

        return {
            "seeds": self.seeds,
            "sizes": asdict(self.sizes),
            "latency": asdict(MEASURED) | {"share": MEASURED.share},
            "baseline": asdict(self.baseline),
            "user_pairs": self.user_pairs,
            "staleness": asdict(self.staleness_ms),
            "published": PUBLISHED,
            "figures": rows(self.rows),
            "users": rows(self.users),
            **{n: points(getattr(self, n)) for n in ("ways", "crowds", "shares", "budgets")},
            "staleness_cost": points(self.staleness),
            "advertisers": {k: {n: e.to_json() for n, e in v.items()} for k, v in self.changes.items()},
            "groups": {k: e.to_json() for k, e in self.groups.items()},
        }


def conclude(seeds: Sequence[dict[str, Any]], sizes: Sizes, calibration: Calibration, stale: Staleness) -> Results:
    """Estimates of everything over the seeds' figures."""
    baseline = calibration.strongest(MEASURED.share)

    def row(figure: str) -> Row:
        return Row(
            figure,
            level(seeds, BASE, figure),
            level(seeds, NEAR, figure),
            relative(seeds, NEAR, BASE, figure),
            relative(seeds, AGAIN, BASE, figure),
        )

    def point(name: str, at: float, base: str, system: str = NEAR) -> Point:
        figures = ("revenue_per_mille", "impressions/ads truncated")
        return Point(name, at, *(relative(seeds, system, base, f) for f in figures))

    best = calibration.best[MEASURED.share]
    ways = [
        point(label(cut), float(cut.crowds), BASE if cut == baseline else f"way {way}") for way, cut in best.items()
    ]
    fewer = [Cut("impact", baseline.pairs, min(c, baseline.pairs)) for c in FEWER_CROWDS]
    shares = [point(label(calibration.strongest(s)), s, f"share {s:g}") for s in SHARES]
    shares += [
        point(label(baseline), MEASURED.share, BASE),
        point("everything, at the request", 1.0, "online, everything"),
    ]
    scales = [point(f"budgets x {s:g}", s, f"budgets {s:g}, base", f"budgets {s:g}, near-line") for s in BUDGETS]
    return Results(
        sizes=sizes,
        seeds=len(seeds),
        baseline=baseline,
        user_pairs=calibration.user_pairs,
        staleness_ms=stale,
        rows=[row(f) for f in FIGURES],
        users=[row(f) for f in USERS],
        ways=ways,
        crowds=[
            point(label(cut), float(cut.crowds), f"crowds {c}") for c, cut in zip(FEWER_CROWDS, fewer, strict=True)
        ],
        shares=sorted(shares, key=lambda p: p.at),
        budgets=sorted([*scales, point("budgets x 1", 1.0, BASE)], key=lambda p: p.at),
        staleness=[
            point("lists as stale as measured", 0.0, "online, everything"),
            point("lists always one event behind", 1.0, "online, everything", "near-line, always behind"),
        ],
        changes={
            system: {
                n: level(seeds, system, n) for n in ("advertisers_judged", "winners", "losers", "impressions_moved")
            }
            for system in (NEAR, AGAIN)
        },
        groups={n: Estimate.of([s["groups"][n] for s in seeds]) for n in seeds[0]["groups"]},
    )
