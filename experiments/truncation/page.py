"""The results as one self-contained HTML page, in the style of the demo's report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from experiments.truncation import plots
from experiments.truncation.calibration import label
from experiments.truncation.estimates import Estimate
from experiments.truncation.latency import MEASURED
from experiments.truncation.results import FIGURES, USERS, Comparison, Results, Row
from experiments.truncation.table import about, against, changes, context, curves, figure, percent

Lines = Sequence[Sequence[str | Estimate]]

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1080px; padding: 24px; }
h1 { font-size: 28px; margin-bottom: 0; } h2 { font-size: 20px; margin-top: 40px; } h3 { font-size: 16px; }
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


def write(file: Path, results: Results, pictures: Mapping[str, Figure]) -> None:
    """Write the page; it loads nothing from elsewhere. pictures: `plots.pictures` of the results."""
    drawn = {name: plots.svg(figure) for name, figure in pictures.items()}
    body = [
        "<h1>Matching without truncation</h1>",
        f"<p class=lead>{escape(about(results))}</p>",
        *(_facts(name, c) for name, c in results.against.items()),
        f"<p>{escape(context())} Nothing here was fitted to them.</p>",
        *(_comparison(name, c, drawn) for name, c in results.against.items()),
        _curves(results, drawn),
        _method(results),
    ]
    file.write_text(
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Matching without truncation</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n",
        "utf-8",
    )


def _facts(name: str, c: Comparison) -> str:
    told = {
        "revenue_per_mille": "revenue per thousand requests",
        "impressions/ads truncated": "impressions of ads truncated before",
        "impressions/advertisers truncated": "impressions of advertisers truncated before",
        "click_rate": "click rate",
    }
    cells = "".join(_fact(c.row(figure).change, title) for figure, title in told.items())
    return f"<h3>Against the {escape(name)} baseline: {escape(label(c.cut))}</h3><div class=facts>{cells}</div>"


def _fact(estimate: Estimate, title: str) -> str:
    mean, _, interval = percent(estimate).partition(" ")
    return f"<div><b>{mean}</b><small>{interval or 'no interval'}</small>{escape(title)}</div>"


def _comparison(name: str, c: Comparison, drawn: dict[str, str]) -> str:
    return "".join(
        [
            f"<h2>Against the {escape(name)} baseline</h2>",
            f"<p>{escape(against(name, c))} Changes are paired by market, with 95% intervals; bold ones leave 0 "
            "out. A/A is the baseline against itself with other draws of clicks: what chance moves.</p>",
            drawn[f"{name}-comparison"],
            _rows(c.rows, FIGURES),
            "<h3>Users</h3><p>By their requests and by their eligible pairs in the pre-period.</p>",
            drawn[f"{name}-users"],
            _rows(c.users, USERS),
            "<h3>Winners and losers</h3><p>Advertisers whose impressions rose or fell by more than a tenth. "
            "Requests are as many in both systems, so what one wins another loses.</p>",
            drawn[f"{name}-advertisers"],
            _table(("", "advertisers judged", "winners", "losers", "impressions moved"), changes(c)),
        ]
    )


def _curves(results: Results, drawn: dict[str, str]) -> str:
    tables = []
    for title, points in curves(results).items():
        lines: Lines = [[escape(p.name), f"{p.at:.3g}" if p.at else "", p.gain] for p in points]
        tables.append(f"<h3>{escape(title)}</h3>{_table(('', 'at', 'revenue per mille'), lines)}")
    return "".join(
        [
            "<h2>Cut-offs, budgets, staleness</h2><p>On the left the strongest way of matching online at each "
            "share of a user's pairs; at 100% nothing is cut, and what is left is what staleness costs.</p>",
            drawn["cut-offs"],
            drawn["budgets"],
            *tables,
        ]
    )


def _method(results: Results) -> str:
    stale = results.staleness_ms
    return (
        f"<h2>What was fixed before</h2><p>The baselines' budget: {MEASURED.pair_ns:g} ns a pair, measured at "
        f"{MEASURED.ads:,} ads and {MEASURED.pairs:,} pairs a user, {MEASURED.budget_ms:g} ms a request. Their "
        "cut-offs: the best of all ways to spend it, on markets that are not compared here. The click model: "
        "trained on the baseline's logs, the same for all systems and retrained on the same days. The lists' "
        f"staleness: {stale.p50_ms:g} ms at the median, {stale.p99_ms:g} ms at the 99th percentile, and towers "
        "refreshed by the rule of the design. The simulator's truth decided clicks and nothing else.</p>"
    )


def _rows(rows: Iterable[Row], names: dict[str, str]) -> str:
    lines: Lines = [
        [escape(names[r.name]), figure(r.base), figure(r.near_line), r.change, percent(r.noise)] for r in rows
    ]
    return _table(("", "baseline", "near-line", "change", "A/A"), lines)


def _table(head: Iterable[str], lines: Lines) -> str:
    top = "".join(f"<th{' class=n' * bool(i)}>{escape(h)}</th>" for i, h in enumerate(head))
    rows = "".join(f"<tr>{''.join(_cell(i, c) for i, c in enumerate(line))}</tr>" for line in lines)
    return f"<div class=scroll><table><tr>{top}</tr>{rows}</table></div>"


def _cell(column: int, content: str | Estimate) -> str:
    if isinstance(content, Estimate):
        return f"<td class='n{' clear' * content.clear}'>{percent(content)}"
    return f"<td{' class=n' * bool(column)}>{content}"
