"""What a run depends on: the market's sizes, its days, and the constants that were measured once."""

from __future__ import annotations

from dataclasses import dataclass

DAY_MS = 86_400_000
SLOTS = 6
"""Slots of a day: budgets are paced, and spent ones leave the matching, between slots and batches."""

STORED, SERVED = 100, 50
"""Entries that matching hands on, and how many of them, at most, enter the auction; the same in both systems."""

RESERVE = 0.05
"""Least price of a click."""
SEEN_MOST = 3
"""Impressions of one ad to one user and day, at most."""

HALF_LIFE_MS = 30 * DAY_MS

PUBLISHED = {"impressions_of_truncated": 0.50, "revenue_per_mille": 0.094}
"""Gains that arXiv 2102.09283 reports of its production system: context, not a target."""


BUDGETS = (0.5, 2.0)
"""Scales of all budgets besides 1 that are replayed."""
SHARES = (0.005, 0.02)
"""Shares of a user's pairs that the cut-offs leave, besides the measured one and 1."""

FEWER_CROWDS = (4, 8, 16)
"""Crowds that a cut by impact keeps, at the measured share; the budget's rest is ads of each."""

CALIBRATION_SEEDS = (9001, 9002)
"""Markets on which the strongest cut-offs are found; no run compares anything on them."""


@dataclass(frozen=True, slots=True)
class Staleness:
    """How long a list lags behind the event that changes it: lognormal by its median and 99th percentile.

    The default is what docs/matching.md has for an event at rest, from the broker's append to the list's write.
    """

    p50_ms: float = 7.0
    p99_ms: float = 19.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """The market and the days that are replayed.

    warm: days of organic events before anything is shown; before: the pre-period; main: what is compared
    events_per_user: over all days, ad requests included, mean of a long-tailed number
    """

    name: str
    users: int
    ads: int
    crowds: int
    events_per_user: float
    warm: int
    before: int
    main: int
    dim: int = 16
    epochs: int = 2

    @property
    def days(self) -> int:
        """All days."""
        return self.warm + self.before + self.main


FULL = Sizes("full", users=2_000, ads=4_000, crowds=1_000, events_per_user=100.0, warm=10, before=4, main=6)
QUICK = Sizes("quick", users=1_000, ads=2_000, crowds=500, events_per_user=60.0, warm=6, before=4, main=4)
