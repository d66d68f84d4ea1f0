"""The baseline's time, turned into pairs: what reading a pair costs online in a market of production size.

    python -m experiments.truncation.latency

The experiment's market is small enough to be read whole in a fraction of any budget, so milliseconds cannot be
replayed as they are. What is kept from the large market is the share of a user's pairs that the time is enough for:

    share = budget / (nanoseconds a pair x pairs a user)

Measured once, then fixed in `MEASURED`; every run records it.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

import numpy as np

from vitrine import native


@dataclass(frozen=True, slots=True)
class Latency:
    """budget_ms: of one core, that a request's matching may take on average

    pair_ns: processor time a pair of the exhaustive kernel, at `ads` ads of 16 dimensions and `pairs` pairs a user
    """

    budget_ms: float
    pair_ns: float
    ads: int
    pairs: int

    @property
    def share(self) -> float:
        """Share of a user's pairs that the budget is enough for."""
        return min(1.0, self.budget_ms * 1e6 / (self.pair_ns * self.pairs))


MEASURED = Latency(budget_ms=2.0, pair_ns=31.0, ads=1_000_000, pairs=700_000)
"""Of the market of benchmarks/matching.py, on a two-core AMD EPYC with AVX-512, `native.match_topk`, one thread.

The 2 ms are an assumption: matching is one stage of several in a request that has some tens of milliseconds in all.
"""

ADS, PAIRS, DIM, CROWDS, K = 1_000_000, 700_000, 16, 200, 100


def measure(users: int = 12, seed: int = 0) -> float:
    """Nanoseconds of processor time a pair, the median over users who share no postings."""
    rng = np.random.default_rng(seed)
    ad_bias = rng.normal(-4, 0.5, ADS).astype(np.float32)
    ad_vecs = rng.normal(0, 0.3, (ADS, DIM)).astype(np.float32)
    each = PAIRS // CROWDS
    seconds = []
    for _ in range(users):
        ads = np.sort(rng.integers(0, ADS, (CROWDS, each)), axis=1).astype(np.uint32).ravel()
        bids = rng.lognormal(0, 1, len(ads)).astype(np.float32)
        indptr = np.arange(CROWDS + 1, dtype=np.int64) * each
        user = rng.normal(0, 0.5, (1, DIM)).astype(np.float32)
        began = time.process_time()
        native.match_topk(
            np.zeros(1, np.float32), user, np.array([0, CROWDS], np.int64), np.arange(CROWDS, dtype=np.uint32),
            indptr, ads, bids, ad_bias, ad_vecs, K,
        )  # fmt: skip
        seconds.append(time.process_time() - began)
    return float(np.median(seconds[1:])) / len(ads) * 1e9


if __name__ == "__main__":
    print(json.dumps({**asdict(Latency(1.0, round(measure(), 2), ADS, PAIRS)), "kernel": native.kernel()}))
