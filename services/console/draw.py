"""Small drawings as SVG, coloured by the style sheet: sparklines, the recall curve, a list's values, bars."""

from collections.abc import Sequence

from markupsafe import Markup, escape

_X, _Y = 108, 28  # of a sparkline


def sparkline(values: Sequence[float | None], what: str) -> Markup:
    """The last minutes of a figure, oldest first; a gap where it is not known. `what` is read out."""
    known = [v for v in values if v is not None]
    top = max(known, default=0.0) or 1.0
    step = _X / max(1, len(values) - 1)
    runs: list[list[tuple[float, float]]] = [[]]
    for i, value in enumerate(values):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((2 + i * step, _Y - 3 - (_Y - 6) * value / top))
    parts = []
    for run in filter(None, runs):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
        if len(run) > 1:
            parts.append(
                f'<polygon class="area" points="{run[0][0]:.1f},{_Y - 1} {line} {run[-1][0]:.1f},{_Y - 1}"/>'
            )
        parts.append(f'<polyline class="line" points="{line}"/>')
    if known and values[-1] is not None:
        x, y = runs[-1][-1]
        parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>')
    return svg("spark", _X + 4, _Y, what, parts)


def recall_curve(points: Sequence[tuple[int, float]], at: int, share: float) -> Markup:
    """Mean recall by over-recall, with a mark at (at, share)."""
    width, height, left, right, top, bottom = 380, 176, 46, 14, 14, 34
    low = min(0.9, min(y for _, y in points)) - 0.05
    low = max(0.0, round(low * 10 - 0.5) / 10)
    last = points[-1][0]

    def x(over_recall: float) -> float:
        return left + (over_recall - 1) / (last - 1) * (width - left - right)

    def y(share: float) -> float:
        return top + (1 - share) / (1 - low) * (height - top - bottom)

    parts = []
    middle = round((1 + low) / 2, 2)
    for level in (low, middle, 1.0):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(level):.1f}" y2="{y(level):.1f}"/>'
        )
        parts.append(f'<text class="end" x="{left - 8}" y="{y(level) + 4:.1f}">{level:.0%}</text>')
    for step in (1, 5, 10, 15, 20):
        if step <= last:
            parts.append(f'<text class="mid" x="{x(step):.1f}" y="{height - 14}">{step}</text>')
    line = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    parts.append(f'<polyline class="line" points="{line}"/>')
    parts.append(f'<line class="mark" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y(share):.1f}" y2="{y(low):.1f}"/>')
    parts.append(f'<circle class="dot" cx="{x(at):.1f}" cy="{y(share):.1f}" r="5"/>')
    what = f"Mean recall at ten by over-recall; {share:.1%} at {at}"
    return svg("curve", width, height, what, parts)


def list_values(values: Sequence[float], floor: float, ad: float | None, rank: int) -> Markup:
    """Values of a list by rank, its floor, and one ad: a dot at its rank, or a line at its value."""
    width, height, left, right, top, bottom = 640, 220, 16, 16, 18, 30
    highest = max([*values, floor, ad or 0.0]) * 1.08 or 1.0

    def x(at: float) -> float:
        return left + (at - 1) / max(1, len(values) - 1) * (width - left - right)

    def y(value: float) -> float:
        return height - bottom - value / highest * (height - top - bottom)

    base = height - bottom
    line = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(values, 1))
    parts = [f'<line class="grid" x1="{left}" x2="{width - right}" y1="{base}" y2="{base}"/>']
    if len(values) > 1:
        parts.append(f'<polygon class="area" points="{x(1):.1f},{base} {line} {x(len(values)):.1f},{base}"/>')
        parts.append(f'<polyline class="line" points="{line}"/>')
    if floor > 0:
        parts.append(
            f'<line class="floor" x1="{left}" x2="{width - right}" y1="{y(floor):.1f}" y2="{y(floor):.1f}"/>'
        )
    if ad is not None and 1 <= rank <= len(values):
        parts.append(f'<line class="mark" x1="{x(rank):.1f}" x2="{x(rank):.1f}" y1="{y(ad):.1f}" y2="{base}"/>')
        parts.append(f'<circle class="dot" cx="{x(rank):.1f}" cy="{y(ad):.1f}" r="6"/>')
    elif ad is not None:
        parts.append(f'<line class="mark" x1="{left}" x2="{width - right}" y1="{y(ad):.1f}" y2="{y(ad):.1f}"/>')
        parts.append(f'<circle class="dot" cx="{width - right - 6}" cy="{y(ad):.1f}" r="6"/>')
    parts.append(f'<text x="{left}" y="{height - 9}">1st</text>')
    parts.append(f'<text class="end" x="{width - right}" y="{height - 9}">{len(values)}th</text>')
    return svg("values", width, height, "Values of the list by rank, its floor, and this ad", parts)


def bar(share: float) -> Markup:
    """A bar of 0 to 1; the figure or the order beside it says the same."""
    width = max(1.5, 100 * min(1.0, max(0.0, share)))
    rectangle = '<rect class="{}" width="{:.1f}" height="6" rx="3"/>'
    inner = rectangle.format("track", 100) + rectangle.format("fill", width)
    return markup(
        f'<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">{inner}</svg>'
    )


def svg(kind: str, width: float, height: float, what: str, parts: Sequence[str]) -> Markup:
    """A drawing of this size in pixels; `what` is read out. `parts` are markup, any text in them escaped."""
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    return markup(f'<svg class="{kind}" {size} role="img" aria-label="{escape(what)}">{"".join(parts)}</svg>')


def markup(text: str) -> Markup:
    """Text that is markup already: numbers, words of this package, and what was escaped."""
    return Markup(text)  # noqa: S704
