"""The results as a table for a terminal."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.truncation.calibration import label
from experiments.truncation.estimates import Estimate
from experiments.truncation.latency import MEASURED
from experiments.truncation.results import AGAIN, FIGURES, NEAR, USERS, Point, Results, Row
from experiments.truncation.settings import PUBLISHED


def show(console: Console, results: Results) -> None:
    """Print everything; a change whose interval leaves 0 out is bold."""
    console.print(about(results), soft_wrap=True, highlight=False)
    _rows(console, "Near-line against the baseline", results.rows, FIGURES)
    _rows(console, "Revenue per thousand requests, by thirds of users", results.users, USERS)
    _points(console, "Near-line against other cut-offs, at the same budget", [*results.ways, *results.crowds])
    _points(console, "… against the strongest cut-offs by the share of pairs that they may read", results.shares)
    _points(console, "… under other budgets", results.budgets)
    _points(console, "What staleness costs: near-line against exact matching at the request", results.staleness)
    table = Table("", "judged", "winners", "losers", "impressions moved", box=SIMPLE_HEAD, title_justify="left")
    table.title = "Advertisers who won or lost a tenth of their impressions or more"
    for system, name in ((NEAR, "near-line"), (AGAIN, "A/A")):
        c = results.changes[system]
        shares = (percent(c[n], sign=False) for n in ("winners", "losers", "impressions_moved"))
        table.add_row(name, f"{c['advertisers_judged'].mean:.0f}", *shares)
    console.print(table)
    console.print(context(), soft_wrap=True, highlight=False)


def about(results: Results) -> str:
    """What was compared, in words."""
    s, g = results.sizes, results.groups
    truncated, kept = (f"{g[f'ads {n}'].mean:,.0f} ads" for n in ("truncated", "not truncated"))
    return (
        f"{results.seeds} markets of {s.users:,} users, {s.ads:,} ads and {s.crowds:,} crowds; {s.before} days of "
        f"the baseline, then {s.main} days of every system. A user has {results.user_pairs:,.0f} eligible "
        f"(crowd, ad) pairs; {MEASURED.budget_ms:g} ms are enough for {100 * MEASURED.share:.1f}% of them. "
        f"Strongest online at that: {label(results.baseline)}. Its cut-offs kept out "
        f"{percent(g['kept_out'], sign=False)} of what was "
        f"among the users' most valuable: {truncated} and {g['advertisers truncated'].mean:,.0f} "
        f"advertisers were truncated, {kept} and {g['advertisers not truncated'].mean:,.0f} advertisers were not; "
        "the others were seldom among the most valuable."
    )


def context() -> str:
    """The published figures, which nothing here was fitted to."""
    return (
        f"For context, Alibaba's production system (arXiv 2102.09283) reports "
        f"+{100 * PUBLISHED['impressions_of_truncated']:.0f}% impressions of truncated advertisers and "
        f"+{100 * PUBLISHED['revenue_per_mille']:.1f}% revenue per mille."
    )


def percent(estimate: Estimate, *, sign: bool = True) -> str:
    """`+1.2% [0.8, 1.6]`."""
    if math.isnan(estimate.mean):
        return "none"
    form = "+.1f" if sign else ".1f"
    mean = f"{100 * estimate.mean:{form}}%"
    if math.isnan(estimate.low):
        return mean
    return f"{mean} [{100 * estimate.low:{form}}, {100 * estimate.high:{form}}]"


def figure(estimate: Estimate) -> str:
    """A level, as many digits as are worth reading."""
    m = estimate.mean
    return f"{m:,.0f}" if abs(m) >= 1000 else f"{m:.1f}" if abs(m) >= 10 else f"{m:.4f}"


def _rows(console: Console, title: str, rows: list[Row], names: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("", "baseline", "near-line", "change", "A/A"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=bool(column))
    for r in rows:
        table.add_row(names[r.name], figure(r.base), figure(r.near_line), _marked(r.change), percent(r.noise))
    console.print(table)


def _points(console: Console, title: str, points: list[Point]) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("", "at", "revenue per mille", "impressions of truncated ads"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=bool(column))
    for p in points:
        table.add_row(p.name, f"{p.at:.3g}" if p.at else "", _marked(p.gain), _marked(p.impressions))
    console.print(table)


def _marked(estimate: Estimate) -> str:
    text = percent(estimate).replace("[", r"\[")
    return f"[bold]{text}[/bold]" if estimate.clear else text
