"""The results as a table for a terminal."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.truncation.calibration import label
from experiments.truncation.estimates import Estimate
from experiments.truncation.latency import MEASURED
from experiments.truncation.results import AGAIN, FIGURES, NEAR, USERS, Comparison, Point, Results, Row
from experiments.truncation.settings import PUBLISHED, SERVED


def show(console: Console, results: Results) -> None:
    """Print everything; a change whose interval leaves 0 out is bold."""
    console.print(about(results), soft_wrap=True, highlight=False)
    for name, c in results.against.items():
        console.print("\n" + against(name, c), soft_wrap=True, highlight=False)
        _rows(console, f"Near-line against the {name} baseline", c.rows, FIGURES)
        _rows(console, "… revenue per thousand requests, by thirds of users", c.users, USERS)
        table = _table("… advertisers who won or lost a tenth of their impressions or more", *_CHANGES)
        for cells in changes(c):
            table.add_row(*cells)
        console.print(table)
    for title, points in curves(results).items():
        table = _table(title, "", "at", "revenue per mille")
        for p in points:
            table.add_row(p.name, f"{p.at:.3g}" if p.at else "", _marked(p.gain))
        console.print(table)
    console.print(context(), soft_wrap=True, highlight=False)


_CHANGES = ("", "judged", "winners", "losers", "impressions moved")


def changes(c: Comparison) -> list[list[str]]:
    """Cells of the table of winners and losers."""
    lines = []
    for system, name in ((NEAR, "near-line"), (AGAIN, "A/A")):
        shares = [percent(c.changes[system][n], sign=False) for n in ("winners", "losers", "impressions_moved")]
        lines.append([name, f"{c.changes[system]['advertisers_judged'].mean:.0f}", *shares])
    return lines


def curves(results: Results) -> dict[str, list[Point]]:
    """Titles and points of near-line's gains."""
    return {
        f"Near-line against other ways to spend {results.pairs:,} pairs": [*results.ways, *results.crowds],
        "Near-line against the strongest way at other shares of pairs": results.shares,
        "Near-line against the strongest way under other budgets": results.budgets,
        "What staleness costs: near-line against exact matching at the request": results.staleness,
    }


def about(results: Results) -> str:
    """What was replayed, in words."""
    s = results.sizes
    return (
        f"{results.seeds} markets of {s.users:,} users, {s.ads:,} ads and {s.crowds:,} crowds; {s.before} days of "
        f"a baseline, then {s.main} days of every system. A user has {results.user_pairs:,.0f} eligible (crowd, "
        f"ad) pairs; {MEASURED.budget_ms:g} ms are enough for {100 * MEASURED.share:.1f}% of them, "
        f"{results.pairs:,}."
    )


def against(name: str, c: Comparison) -> str:
    """What a baseline is and whom it truncated, in words."""
    truncated, kept = (
        f"{c.groups[f'ads {n}'].mean:,.0f} ads and {c.groups[f'advertisers {n}'].mean:,.0f} advertisers"
        for n in ("truncated", "not truncated")
    )
    return (
        f"The {name} baseline: {label(c.cut)}. In the pre-period its cut-offs kept out "
        f"{percent(c.groups['kept_out'], sign=False)} of what was among the users' {SERVED} most valuable: "
        f"{truncated} were truncated, {kept} were not; the others were seldom among the most valuable."
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


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column else "left", min_width=None if column else 20)
    return table


def _rows(console: Console, title: str, rows: list[Row], names: dict[str, str]) -> None:
    table = _table(title, "", "baseline", "near-line", "change", "A/A")
    for r in rows:
        cells = figure(r.base), figure(r.near_line), _marked(r.change), percent(r.noise).replace("[", r"\[")
        table.add_row(names[r.name], *cells)
    console.print(table)


def _marked(estimate: Estimate) -> str:
    text = percent(estimate).replace("[", r"\[")
    return f"[bold]{text}[/bold]" if estimate.clear else text
