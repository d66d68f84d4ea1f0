"""What one step of load measured: latencies as an HDR histogram, failures by status, and who used the CPU."""

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_LONGEST_US = 120_000_000


def new_histogram() -> HdrHistogram:
    """Microseconds, 1 us to 2 minutes, three significant digits."""
    return HdrHistogram(1, _LONGEST_US, 3)


@dataclass
class Measured:
    """One step. Times in the histogram run from a call's scheduled send to its answer, microseconds.

    rate:      calls a second offered; 0 for a closed loop
    seconds:   length of the measured window
    sent:      calls scheduled in the window
    answered:  of these, answered well before the window closed
    failures:  calls by what went wrong: a status, or a wrong answer
    lag_us:    99th percentile of how late the generator itself sent a call
    client_cpu: cores that the generator used
    events:    records that the calls left in Kafka, warm-up included
    """

    rate: float
    seconds: float
    sent: int = 0
    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    lag_us: float = 0.0
    client_cpu: float = 0.0
    events: int = 0
    histogram: HdrHistogram = field(default_factory=new_histogram)

    @property
    def offered(self) -> float:
        """Calls a second that were in fact scheduled: a Poisson draw around `rate`."""
        return self.sent / self.seconds

    @property
    def achieved(self) -> float:
        """Calls a second that were answered well within the window."""
        return self.answered / self.seconds

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def ms(self, percentile: float) -> float:
        """Latency at a percentile, milliseconds; 0 where nothing was answered."""
        return self.histogram.get_value_at_percentile(percentile) / 1e3 if self.histogram.total_count else 0.0

    def record(self, latencies_us: NDArray[np.float64]) -> None:
        """Add latencies of answered calls."""
        values, counts = np.unique(np.clip(latencies_us, 1, _LONGEST_US).astype(np.int64), return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            self.histogram.record_value(value, count)

    def summary(self) -> dict[str, Any]:
        """Figures for people and reports."""
        return {
            "rate": round(self.rate, 1),
            "offered": round(self.offered, 1),
            "achieved": round(self.achieved, 1),
            "sent": self.sent,
            "failed": self.failed,
            "failures": dict(self.failures),
            **{f"p{percentile:g}_ms": round(self.ms(percentile), 3) for percentile in PERCENTILES},
            "max_ms": round(self.histogram.get_max_value() / 1e3, 3) if self.histogram.total_count else 0.0,
            "generator_lag_p99_ms": round(self.lag_us / 1e3, 3),
            "generator_cpu": round(self.client_cpu, 3),
        }

    def to_json(self) -> dict[str, Any]:
        """Everything, for another process to merge."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "failures": dict(self.failures),
            "histogram": self.histogram.encode().decode("ascii"),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_json`."""
        base64.b64decode(data["histogram"], validate=True)  # hdrh would read nonsense as an empty histogram
        return cls(
            **{name: data[name] for name in _PLAIN},
            failures=Counter(data["failures"]),
            histogram=HdrHistogram.decode(data["histogram"]),
        )


_PLAIN = ("rate", "seconds", "sent", "answered", "lag_us", "client_cpu", "events")


def merge(parts: Sequence[Measured]) -> Measured:
    """One step of several generators that ran side by side, each with its share of the rate."""
    whole = Measured(rate=sum(p.rate for p in parts), seconds=max(p.seconds for p in parts))
    for part in parts:
        whole.sent += part.sent
        whole.answered += part.answered
        whole.failures += part.failures
        whole.client_cpu += part.client_cpu
        whole.events += part.events
        whole.histogram.add(part.histogram)
    whole.lag_us = max(p.lag_us for p in parts)
    return whole
