"""Pictures of a run: latency against rate up to and past the knee, and the percentiles at 80% of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from loadtest.measured import Measured
from loadtest.stair import Stair

mpl.use("Agg")

_CURVE = (50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9)


def latency_by_rate(stairs: Mapping[str, Stair], file: Path, below: Mapping[str, Sequence[Measured]]) -> None:
    """p50 and p99 by rate, the better of two tries; what did not hold is crossed; the knee is the dashed line.

    below: steps at fractions of the knee, by the same names
    """
    figure = Figure(figsize=(10, 3.2 * len(stairs)), layout="constrained")
    for axes, (name, stair) in zip(figure.subplots(len(stairs), squeeze=False)[:, 0], stairs.items(), strict=True):
        tries = [*stair.steps, *below.get(name, ())]
        best = {step.rate: step for step in sorted(tries, key=lambda step: -step.ms(99))}
        steps = [best[rate] for rate in sorted(best)]
        over = [step for step in tries if not stair.held(step)]
        for percentile, colour in ((50, "tab:blue"), (99, "tab:red")):
            points = [max(step.ms(percentile), 1e-3) for step in steps]
            axes.plot([step.rate for step in steps], points, "o-", color=colour, label=f"p{percentile}")
            crossed = [max(step.ms(percentile), 1e-3) for step in over]
            axes.plot([step.rate for step in over], crossed, "x", color=colour, markersize=9)
        axes.axvline(stair.knee, linestyle="--", color="grey", label=f"knee {stair.knee:,.0f}/s")
        axes.axhline(stair.bound_ms, linestyle=":", color="grey", label=f"bound {stair.bound_ms:g} ms")
        axes.set(title=name, xlabel="offered, calls/s", ylabel="ms from the scheduled send", yscale="log")
        axes.legend(loc="upper left")
        axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def percentiles(steps: Mapping[str, Measured], file: Path, title: str) -> None:
    """Latency by percentile, one curve a kind of call."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, step in steps.items():
        xs = [1 / (1 - p / 100) for p in _CURVE]
        axes.plot(xs, [max(step.ms(p), 1e-3) for p in _CURVE], "o-", label=f"{name}, {step.offered:,.0f}/s")
    axes.set(xscale="log", yscale="log", xlabel="percentile", ylabel="ms from the scheduled send", title=title)
    axes.set_xticks([1 / (1 - p / 100) for p in _CURVE], [f"{p:g}" for p in _CURVE])
    axes.minorticks_off()
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def write(stairs: Mapping[str, Stair], at: Mapping[str, Mapping[str, Measured]], folder: Path) -> tuple[Path, Path]:
    """Both pictures, and where they lie; `at` has the steps at 50% and 80% of each knee ("at_50", "at_80")."""
    files = folder / "latency-by-rate.png", folder / "percentiles.png"
    latency_by_rate(stairs, files[0], {name: list(steps.values()) for name, steps in at.items()})
    percentiles({name: steps["at_80"] for name, steps in at.items()}, files[1], "at 80% of the knee")
    return files
