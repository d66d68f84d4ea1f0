"""Paired differences over seeds, with 95% intervals by Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

# 97.5% quantiles of Student's t by degrees of freedom, from 1; beyond them the normal's, corrected to first order.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Estimate:
    """mean, and the 95% interval [low, high]; NaN bounds from fewer than two seeds, all NaN from none."""

    mean: float
    low: float
    high: float
    seeds: int

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """Of one value a seed."""
        n = len(values)
        mean = float(np.mean(values)) if n else math.nan
        if n < 2:
            return Estimate(mean, math.nan, math.nan, n)
        half = quantile(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
        return Estimate(mean, mean - half, mean + half, n)

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, float | int | None]:
        """JSON has no NaN: None there."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def quantile(degrees: int) -> float:
    """97.5% quantile of Student's t."""
    return _T[degrees - 1] if degrees <= len(_T) else _Z + (_Z**3 + _Z) / (4 * degrees)


Systems = Sequence[dict[str, dict[str, float]]]
"""{system: {figure: value}} of every seed."""


def level(seeds: Systems, system: str, figure: str) -> Estimate:
    """A figure of one system."""
    return Estimate.of([seed[system][figure] for seed in seeds])


def relative(seeds: Systems, system: str, base: str, figure: str) -> Estimate:
    """How much more of a figure `system` has than `base`, of 1: the ratio of their means over seeds, less 1.

    The interval is that of a ratio estimator (Cochran 1977, 6.4), paired by seed: a ratio of each seed's own would
    let those count most in which the base has next to nothing. All NaN where the base has nothing in any.
    """
    ours, theirs = (np.array([seed[name][figure] for seed in seeds]) for name in (system, base))
    mean = float(theirs.mean()) if len(theirs) else 0.0
    if not mean:
        return Estimate.of([])
    ratio = float(ours.mean()) / mean
    rest = Estimate.of(((ours - ratio * theirs) / mean).tolist())  # of mean 0
    return Estimate(ratio - 1.0, ratio - 1.0 + rest.low, ratio - 1.0 + rest.high, len(theirs))
