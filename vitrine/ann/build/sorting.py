"""A counting sort that streams: the places of keys, chunk by chunk, in an array far larger than a chunk."""

import numpy as np
from numpy.typing import NDArray


def places(keys: NDArray[np.integer], next_place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of keys (m,) goes, in the order of keys and, among equal ones, of their coming; int64 (m,).

    next_place: (buckets,), the first free place of each key; moved on by what is placed
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(keys) else np.empty(0, np.int64)
    lengths = np.diff(np.append(new, len(keys)))
    begins = next_place[ordered[new]]
    found = np.empty(len(keys), np.int64)
    found[order] = np.arange(len(keys)) + np.repeat(begins - new, lengths)
    next_place[ordered[new]] = begins + lengths
    return found


def counted(keys: NDArray[np.integer], buckets: int, chunk: int) -> NDArray[np.int64]:
    """How often each key occurs in a mapped array of one dimension: int64 (buckets,)."""
    counts = np.zeros(buckets, np.int64)
    for start in range(0, len(keys), chunk):
        counts += np.bincount(keys[start : start + chunk], minlength=buckets)
    return counts


def starts_of(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each bucket begins, and where the last ends: int64 (buckets + 1,)."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts
