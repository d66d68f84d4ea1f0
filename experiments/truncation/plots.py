"""The results as pictures: PNG files, and the same as SVG for the page."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.truncation.estimates import Estimate
from experiments.truncation.latency import MEASURED
from experiments.truncation.results import AGAIN, FIGURES, NEAR, USERS, Comparison, Point, Results, Row

mpl.use("Agg")

BLUE, GREY, RED = "#4269d0", "#888888", "#ff725c"


def pictures(results: Results) -> dict[str, Figure]:
    """Every picture by its name; those of one baseline bear its name."""
    out: dict[str, Figure] = {}
    for name, c in results.against.items():
        out[f"{name}-comparison"] = comparison(c, name)
        out[f"{name}-users"] = users(c, name)
        out[f"{name}-advertisers"] = advertisers(c, name)
    return out | {"cut-offs": cut_offs(results), "budgets": budgets(results)}


def png(figure: Figure, file: Path) -> None:
    """Write a picture on white."""
    figure.savefig(file, dpi=110, facecolor="white", bbox_inches="tight")


def svg(figure: Figure) -> str:
    """A picture without a background, in colours that do on light and dark."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "vitrine"}):  # the same ids, run for run
        figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def comparison(c: Comparison, name: str) -> Figure:
    """Every figure's change, and the A/A's."""
    return _forest([(FIGURES[r.name], r) for r in c.rows], f"near-line against the {name} baseline")


def users(c: Comparison, name: str) -> Figure:
    """Revenue by thirds of users."""
    title = f"revenue per thousand requests, near-line against the {name} baseline"
    return _forest([(USERS[r.name], r) for r in c.users], title)


def cut_offs(results: Results) -> Figure:
    """Gain over the share of pairs read, and over the number of crowds at one budget."""
    figure, (left, right) = _figure(11.0, 4.0, 2)
    _curve(left, results.shares)
    left.set(xscale="log", xlabel="share of a user's pairs that the online system may read")
    left.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))
    left.axvline(MEASURED.share, color=GREY, linestyle=":")
    left.annotate(
        f"{MEASURED.budget_ms:g} ms", (MEASURED.share, 0.97), xycoords=("data", "axes fraction"),
        color=GREY, ha="left", va="top", xytext=(4, 0), textcoords="offset points",
    )  # fmt: skip
    left.set_ylabel("near-line's revenue per mille against it")
    bars = [*results.crowds, *results.ways]
    _dots(right, [p.name for p in bars], [p.gain for p in bars], BLUE)
    right.set_xlabel(f"revenue per mille against other ways to spend {results.pairs:,} pairs")
    return figure


def budgets(results: Results) -> Figure:
    """Gain over the scale of all budgets, and what staleness costs."""
    figure, (left, right) = _figure(11.0, 3.2, 2)
    _curve(left, results.budgets)
    left.set(
        xscale="log", xlabel="all budgets, times", ylabel="near-line's revenue per mille\nagainst the baseline"
    )
    left.set_xticks([p.at for p in results.budgets], [f"{p.at:g}" for p in results.budgets])
    left.minorticks_off()
    _dots(right, [p.name for p in results.staleness], [p.gain for p in results.staleness], BLUE)
    right.set_xlabel("revenue per mille against exact matching at the request")
    return figure


def advertisers(c: Comparison, name: str) -> Figure:
    """Shares of advertisers who won and lost impressions, beside what chance alone moves."""
    figure, (axes,) = _figure(9.0, 2.4, 1)
    names = {NEAR: "near-line", AGAIN: "A/A"}
    for y, system in enumerate(names):
        won, lost = c.changes[system]["winners"].mean, c.changes[system]["losers"].mean
        parts = ((won, BLUE, "more"), (1 - won - lost, "#88888855", "about as many"), (lost, RED, "fewer"))
        for left, (width, colour, text) in zip((0.0, won, 1 - lost), parts, strict=True):
            axes.barh(y, width, left=left, color=colour, height=0.6)
            if width > 0.05 + 0.008 * len(text):
                axes.text(left + width / 2, y, f"{text} {100 * width:.0f}%", ha="center", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), list(names.values()))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"advertisers by their impressions against the {name} baseline's")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))
    return figure


def _figure(width: float, height: float, columns: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes: Any = figure.subplots(1, columns, squeeze=False)[0]
    for each in axes:
        for spine in each.spines.values():
            spine.set_color(GREY)
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(colors=GREY, labelcolor=GREY)
        each.xaxis.label.set_color(GREY)
        each.yaxis.label.set_color(GREY)
    return figure, axes


def _forest(rows: Sequence[tuple[str, Row]], title: str) -> Figure:
    figure, (axes,) = _figure(9.0, 1.2 + 0.34 * len(rows), 1)
    names = [name for name, _ in rows]
    _dots(axes, names, [r.noise for _, r in rows], GREY, 0.18, "A/A: the baseline against itself")
    _dots(axes, names, [r.change for _, r in rows], BLUE, -0.12, title)
    legend = axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12 - 0.4 / len(rows)), ncol=2, frameon=False)
    for text in legend.get_texts():
        text.set_color(GREY)
    return figure


def _dots(
    axes: Axes, names: Sequence[str], values: Sequence[Estimate], colour: str, shift: float = 0.0, label: str = ""
) -> None:
    """A mean and its interval a line, the first on top."""
    for y, e in enumerate(values):
        if math.isnan(e.mean):
            continue
        if not math.isnan(e.low):
            axes.plot([e.low, e.high], [y + shift] * 2, color=colour, linewidth=2)
        axes.plot([e.mean], [y + shift], "o", color=colour, markersize=5, label=label if y == 0 else "_")
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FuncFormatter(_signed))


def _curve(axes: Axes, points: Sequence[Point]) -> None:
    xs = [p.at for p in points]
    axes.fill_between(
        xs, [p.gain.low for p in points], [p.gain.high for p in points], color=BLUE, alpha=0.2, linewidth=0
    )
    axes.plot(xs, [p.gain.mean for p in points], "o-", color=BLUE)
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(_signed))


def _signed(value: float, _: object) -> str:
    return f"{100 * value:+g}%" if abs(value) > 1e-12 else "0"
