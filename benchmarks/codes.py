"""Clustered binary codes, made alike everywhere, and how well a search finds the nearest of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vitrine import native

CLUSTERS = 1000

Codes = NDArray[np.uint64]
Distances = NDArray[np.integer]


def generate(
    n: int, *, bits: int = 512, dim: int = 32, spread: float = 0.6, seed: int = 1
) -> tuple[Codes, NDArray]:
    """(codes (n, bits / 64), place float32 (n,)): 1,000 Gaussian clusters in `dim` dimensions, their centres of
    variance 1 and their points of `spread` around them; a code says on which side of `bits` random hyperplanes its
    point lies, and its place, 0 to 1, where its cluster stands in the order of the centres' first coordinate."""
    draws = np.random.default_rng(seed)
    centres = draws.standard_normal((CLUSTERS, dim)).astype(np.float32)
    planes = draws.standard_normal((dim, bits)).astype(np.float32)
    order = np.argsort(np.argsort(centres[:, 0]))
    codes, place = np.empty((n, bits // 64), np.uint64), np.empty(n, np.float32)
    for start in range(0, n, 65_536):
        size = min(65_536, n - start)
        cluster = draws.integers(0, CLUSTERS, size)
        points = centres[cluster] + np.float32(spread) * draws.standard_normal((size, dim)).astype(np.float32)
        codes[start : start + size] = np.packbits(points @ planes >= 0, axis=1, bitorder="little").view("<u8")
        place[start : start + size] = (order[cluster] + draws.random(size)) / CLUSTERS
    return codes, place


def true_bounds(codes: Codes, queries: Codes, k: int = 10) -> Distances:
    """The k-th smallest distance of each query, uint32 (q, 1)."""
    return native.hamming_topk(np.ascontiguousarray(codes.T), queries, k, 2)[1][:, k - 1 :]


def recall(distances: Distances, bounds: Distances) -> float:
    """Share of results (q, k) within the true k-th distance: of equally distant items any one counts."""
    return float((distances <= bounds).mean())


def smallest(recall_of: Callable[[int], float], wanted: float, *, low: int = 10, high: int = 2048) -> int:
    """The smallest list from `low` to `high` that reaches a recall."""
    while low < high:
        middle = (low + high) // 2
        if recall_of(middle) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low
