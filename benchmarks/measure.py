"""Interleaved timing: contenders take turns in one run, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping


def interleaved(
    contenders: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    label: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each contender's calls by `clock`: `rounds` of each, after one that does not count.

    Progress on stderr.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    shown = time.monotonic()
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            start = clock()
            call()
            if turn:
                seconds[name].append(clock() - start)
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"{label}: round {turn} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def median_ms(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e3


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """The median over rounds of slow / fast: how many times faster `fast` was within one round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def table(rows: list[dict[str, object]]) -> str:
    """Rows of equal keys as aligned columns under their names."""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in cells)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
