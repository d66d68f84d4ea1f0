"""Figures for people: money, shares, times, sizes; one way of writing each, on every page."""

import math
from datetime import UTC, datetime

_THIN = "\N{NARROW NO-BREAK SPACE}"
_MISSING = "\N{EN DASH}"


def whole(value: float) -> str:
    """12,345"""
    return f"{value:,.0f}"


def money(value: float) -> str:
    """Currency units with four digits that count: 2.839, 0.0417, 12.50."""
    if value == 0 or not math.isfinite(value):
        return "0"
    decimals = min(6, max(2, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{decimals}f}"


def percent(share: float, decimals: int = 1) -> str:
    """4.2 %"""
    return f"{100 * share:.{decimals}f}{_THIN}%"


def seconds(value: float | None) -> str:
    """A time in the unit that suits it: 0.8 ms, 12 ms, 3.4 s, 5 min, 2 h, 3 d."""
    if value is None or not math.isfinite(value):
        return _MISSING
    if value < 1:
        milliseconds = value * 1000
        return f"{milliseconds:.2g}{_THIN}ms" if milliseconds < 10 else f"{milliseconds:.0f}{_THIN}ms"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.0f}{_THIN}{unit}"
    return f"{value:.1f}{_THIN}s" if value < 10 else f"{value:.0f}{_THIN}s"


def rate(value: float | None) -> str:
    """Events a second: 0, 0.4, 12, 1,530."""
    if value is None or not math.isfinite(value):
        return _MISSING
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def size(octets: float) -> str:
    """18.4 MB"""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if octets >= length:
            return f"{octets / length:.1f}{_THIN}{unit}"
    return f"{octets:.0f}{_THIN}B"


def figure(value: float | int | str) -> str:
    """A manifest's metric, whatever it is."""
    if isinstance(value, str):
        return value[:80]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def when(version: str) -> str:
    """The minute that a version's name begins with: 24 Nov 2026, 10:25; else the name itself."""
    try:
        return datetime.strptime(version[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).strftime("%-d %b %Y, %H:%M")
    except ValueError:
        return version[:40]


def short(version: str) -> str:
    """The end of a version's name, enough to tell two apart."""
    return version.rpartition("-")[2][:8] or _MISSING
