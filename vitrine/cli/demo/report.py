"""demo/report.html: one self-contained page of what the demo saw."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from vitrine.artifacts import Manifest
from vitrine.cli.demo.market import MarketView, Photo
from vitrine.cli.demo.show import FACTS, moved, written
from vitrine.cli.demo.walk import Ranked, Walk

mpl.use("Agg")
from matplotlib import pyplot as plt

# Ten hues that keep apart in light and dark, for category borders.
_HUES = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0",
)  # fmt: skip

_STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1080px; padding: 24px; }
h1 { font-size: 28px; margin-bottom: 0; } h2 { font-size: 20px; margin-top: 40px; }
p.lead { margin-top: 4px; opacity: .75; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: 5px 10px; text-align: left; white-space: nowrap; }
th { font-weight: 600; } td.n, th.n { text-align: right; }
.new { color: #3ca951; font-weight: 600; } .fell { opacity: .6; }
.facts { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); }
.facts div { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.facts b { display: block; font-size: 22px; }
.photos { display: flex; flex-wrap: wrap; gap: 8px; margin: 12px 0 20px; }
.photos figure { margin: 0; width: 84px; } .photos figcaption { font-size: 12px; overflow-wrap: anywhere; }
.photos img { border: 4px solid var(--hue); border-radius: 8px; box-sizing: border-box; height: 84px;
  object-fit: cover; width: 84px; }
.photos .query { margin-right: 16px; }
.lineage { list-style: none; margin: 0; padding: 0; }
.lineage .lineage { border-left: 2px solid var(--line); margin-left: 18px; padding-left: 18px; }
.lineage .box { border: 1px solid var(--line); border-radius: 8px; margin: 10px 0; padding: 8px 14px; }
.lineage small { opacity: .7; }
.figures { display: flex; flex-wrap: wrap; font-size: 13px; gap: 2px 16px; } .figures span { opacity: .85; }
svg { height: auto; max-width: 100%; }
"""


def write(file: Path, market: MarketView, seen: Walk, facts: dict[str, Any], manifests: Sequence[Manifest]) -> None:
    """Write the page; it loads nothing from elsewhere."""
    body = [
        "<h1>Vitrine</h1>",
        f"<p class=lead>The whole system on {escape(facts['data'])} data, run in {facts['seconds']:.0f} s. "
        f"Kafka: {facts['kafka']}, Redis: {facts['redis']}.</p>",
        _facts(facts),
        f"<h2>User {seen.user_id} {escape(seen.event)}</h2>",
        "<p>The ten ads served before the event and after it. A value is the bid times the click probability; "
        "the crowd is the one whose bid won.</p>",
        _lists(market, seen),
        "<h2>From an event to the stored list</h2>",
        f"<p>{len(seen.event_to_list_ms)} events, one after the other, each timed from its send until the list in "
        f"Redis reflects it: median {facts['event_to_list_ms_p50']} ms, 99th percentile "
        f"{facts['event_to_list_ms_p99']} ms.</p>",
        _histogram(seen.event_to_list_ms),
        "<h2>Photos and their neighbours</h2>",
        "<p>Test photos, which the encoder never saw, and their ten nearest indexed photos. Borders show the "
        f"category. {100 * facts['search_same_category_at_10']:.0f}% of all neighbours share the photo's category; "
        f"{100 * facts['same_category_by_pixels']:.0f}% by pixels, "
        f"{100 * facts['same_category_by_chance']:.0f}% by chance.</p>",
        _photos(market, seen),
        "<h2>Artifacts</h2>",
        "<p>What was trained and published; an artifact hangs below the one that it was made from.</p>",
        _lineage(manifests),
    ]
    file.write_text(
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>Vitrine demo</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _facts(facts: dict[str, Any]) -> str:
    cells = []
    for name, title, unit in FACTS:
        text = written(facts[name])
        cells.append(f"<div><b>{text}{'&thinsp;' + unit if unit else ''}</b>{escape(title)}</div>")
    return f"<div class=facts>{''.join(cells)}</div>"


def _lists(market: MarketView, seen: Walk) -> str:
    head = "".join(
        f"<th{' class=n' if c in ('#', 'bid', 'pCTR', 'value') else ''}>{c}</th>"
        for c in ("#", "before", "after", "", "crowd", "bid", "pCTR", "value")
    )
    rows = []
    for rank, (before, after) in enumerate(zip(seen.before, seen.after, strict=False), 1):
        change = moved(after, rank)
        kind = "new" if change == "new" or change.startswith("▲") else "fell" if change else ""
        rows.append(
            f"<tr><td class=n>{rank}<td>{escape(market.ad(before.ad_id))}<td class='{kind}'>"
            f"{escape(market.ad(after.ad_id))}<td class='{kind}'>{change}{_reason(market, after)}</tr>"
        )
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _reason(market: MarketView, ad: Ranked) -> str:
    figures = (f"{ad.bid:.3f}", f"{ad.pctr:.4f}", f"{ad.value:.5f}")
    return f"<td>{escape(market.crowd(ad.crowd_id))}" + "".join(f"<td class=n>{f}" for f in figures)


def _histogram(milliseconds: Sequence[float]) -> str:
    figure, axes = plt.subplots(figsize=(9, 2.8))
    top = float(np.percentile(milliseconds, 99.5))
    axes.hist(np.minimum(milliseconds, top), bins=40, color="#4269d0")
    axes.set_xlabel("milliseconds (the last bar holds all that are longer)")
    axes.set_ylabel("events")
    axes.set_xlim(left=0)
    gray = "#888888"
    for spine in axes.spines.values():
        spine.set_color(gray)
    axes.tick_params(colors=gray)
    axes.xaxis.label.set_color(gray)
    axes.yaxis.label.set_color(gray)
    axes.spines[["top", "right"]].set_visible(False)
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, bbox_inches="tight")
    plt.close(figure)
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _photos(market: MarketView, seen: Walk) -> str:
    categories = sorted({photo.category for photo in market.photos.values()})
    hue = {category: _HUES[i % len(_HUES)] for i, category in enumerate(categories)}

    def figure(photo: Photo, note: str, kind: str = "") -> str:
        data = base64.b64encode(photo.image).decode()
        image = "png" if photo.image.startswith(b"\x89PNG") else "jpeg"
        source = f"data:image/{image};base64,{data}"
        category, border = escape(photo.category), hue.get(photo.category, "gray")
        return (
            f"<figure class='{kind}'><img style='--hue: {border}' alt='{category}' src='{source}'>"
            f"<figcaption>{category} {note}</figcaption></figure>"
        )

    rows = []
    for query, near in seen.search:
        found = "".join(figure(photo, f"{score:.2f}") for photo, score in near)
        rows.append(f"<div class=photos>{figure(query, '(query)', 'query')}{found}</div>")
    return "".join(rows)


def _lineage(manifests: Sequence[Manifest]) -> str:
    """A tree: what was made from an artifact hangs below it."""

    def grow(parent: Manifest | None) -> str:
        below = [m for m in manifests if _parent(m, manifests) is parent]
        boxes = (f"<li><div class=box>{_artifact(m)}</div>{grow(m)}</li>" for m in below)
        return f"<ul class=lineage>{''.join(boxes)}</ul>" if below else ""

    return grow(None)


def _parent(manifest: Manifest, manifests: Sequence[Manifest]) -> Manifest | None:
    return next((m for m in manifests if manifest.parents.get(m.name) == m.version), None)


def _artifact(manifest: Manifest) -> str:
    megabytes = sum(f["size"] for f in manifest.files.values()) / 1e6
    figures = "".join(
        f"<span>{escape(k.replace('_', ' '))} <b>{_short(v)}</b></span>" for k, v in manifest.metrics.items()
    )
    title = f"<b>{escape(manifest.name)}</b> {megabytes:.1f} MB <small>version {escape(manifest.version)}</small>"
    return f"{title}<div class=figures>{figures}</div>"


def _short(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else escape(value)
