"""The results as one self-contained HTML page, in the style of the demo's report."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from experiments.truncation import plots
from experiments.truncation.estimates import Estimate
from experiments.truncation.latency import MEASURED
from experiments.truncation.results import AGAIN, FIGURES, NEAR, USERS, Point, Results, Row
from experiments.truncation.table import about, context, figure, percent

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1080px; padding: 24px; }
h1 { font-size: 28px; margin-bottom: 0; } h2 { font-size: 20px; margin-top: 40px; }
p.lead { margin-top: 4px; opacity: .75; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 5px 10px; text-align: left; white-space: nowrap; }
th { font-weight: 600; } td.n, th.n { text-align: right; } td.clear { font-weight: 600; }
.facts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); }
.facts div { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.facts b { display: block; font-size: 22px; } .facts small { display: block; opacity: .7; }
svg { height: auto; max-width: 100%; }
"""


def write(file: Path, results: Results) -> None:
    """Write the page; it loads nothing from elsewhere."""
    stale = results.staleness_ms
    body = [
        "<h1>Matching without truncation</h1>",
        f"<p class=lead>{escape(about(results))}</p>",
        _facts(results),
        f"<p>{escape(context())} Nothing here was fitted to them.</p>",
        "<h2>Near-line against the baseline</h2>",
        "<p>Same market, users, budgets, pacing, auction and click model; matching alone differs. Changes are "
        "paired by market; in brackets 95% intervals. A/A is the baseline against itself with other draws of "
        "clicks: what chance moves.</p>",
        plots.svg(plots.comparison, results),
        _rows(results.rows, FIGURES),
        "<h2>Cut-offs</h2>",
        f"<p>The baseline's budget was measured once ({MEASURED.pair_ns:g} ns a pair at {MEASURED.ads:,} ads and "
        f"{MEASURED.pairs:,} pairs a user, {MEASURED.budget_ms:g} ms a request) and then fixed. Left: the "
        "strongest cut-offs at other budgets; at 100% nothing is cut, and what is left is what staleness costs. "
        "Right: other ways to spend the same budget.</p>",
        plots.svg(plots.cut_offs, results),
        _points([*results.shares, *results.ways, *results.crowds]),
        "<h2>Budgets and staleness</h2>",
        f"<p>A list reflects an event {stale.p50_ms:g} ms later at the median, {stale.p99_ms:g} ms at the 99th "
        "percentile, and its user's tower is refreshed by the rule of the design.</p>",
        plots.svg(plots.budgets, results),
        _points([*results.budgets, *results.staleness]),
        "<h2>Users</h2>",
        "<p>Revenue per thousand requests of users by their requests and by their eligible pairs in the "
        "pre-period: where few pairs are eligible, little is cut.</p>",
        plots.svg(plots.users, results),
        _rows(results.users, USERS),
        "<h2>Winners and losers</h2>",
        "<p>Advertisers whose impressions rose or fell by more than a tenth; requests are as many in both "
        "systems, so what one wins another loses.</p>",
        plots.svg(plots.advertisers, results),
        _changes(results),
    ]
    file.write_text(
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Matching without truncation</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n",
        "utf-8",
    )


def _facts(results: Results) -> str:
    told = {
        "revenue_per_mille": "revenue per thousand requests",
        "impressions/ads truncated": "impressions of ads truncated before",
        "impressions/advertisers truncated": "impressions of advertisers truncated before",
        "click_rate": "click rate",
    }
    cells = [_fact(results.row(name).change, title) for name, title in told.items()]
    everything = next(p for p in results.staleness if not p.at)
    cells.append(_fact(everything.gain, "revenue, against exact matching at the request"))
    return f"<div class=facts>{''.join(cells)}</div>"


def _fact(estimate: Estimate, title: str) -> str:
    mean, _, interval = percent(estimate).partition(" ")
    return f"<div><b>{mean}</b><small>{interval or 'no interval'}</small>{escape(title)}</div>"


def _rows(rows: Iterable[Row], names: dict[str, str]) -> str:
    lines: list[list[str | Estimate]] = [
        [escape(names[r.name]), figure(r.base), figure(r.near_line), r.change, percent(r.noise)] for r in rows
    ]
    return _table(("", "baseline", "near-line", "change", "A/A"), lines)


def _points(points: Iterable[Point]) -> str:
    lines: list[list[str | Estimate]] = [
        [escape(p.name), f"{p.at:.3g}" if p.at else "", p.gain, p.impressions] for p in points
    ]
    return _table(("near-line against", "at", "revenue per mille", "impressions of truncated ads"), lines)


def _changes(results: Results) -> str:
    lines: list[list[str | Estimate]] = []
    for system, name in ((NEAR, "near-line"), (AGAIN, "A/A")):
        c = results.changes[system]
        shares = [percent(c[n], sign=False) for n in ("winners", "losers", "impressions_moved")]
        lines.append([name, f"{c['advertisers_judged'].mean:.0f}", *shares])
    return _table(("", "advertisers judged", "winners", "losers", "impressions moved"), lines)


def _table(head: Iterable[str], lines: Iterable[list[str | Estimate]]) -> str:
    top = "".join(f"<th{' class=n' * bool(i)}>{escape(h)}</th>" for i, h in enumerate(head))
    rows = "".join(f"<tr>{''.join(_cell(i, c) for i, c in enumerate(line))}</tr>" for line in lines)
    return f"<div class=scroll><table><tr>{top}</tr>{rows}</table></div>"


def _cell(column: int, content: str | Estimate) -> str:
    if isinstance(content, Estimate):
        return f"<td class='n{' clear' * content.clear}'>{percent(content)}"
    return f"<td{' class=n' * bool(column)}>{content}"
