"""Identical codes become one node with many ids, ordered by the smallest: a clique of them would lead nowhere."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.build import files

_CHUNK = 1 << 16


def collapse(folder: Path) -> None:
    """rows (n, words), the code of each item, items by ascending id -> nodes.

    Writes codes (nodes, words), node i having the code that first appears i-th; item_nodes (n,) uint32.
    """
    rows = files.read(folder, "rows")
    n, words = rows.shape
    order, starts = _groups(rows)
    firsts = np.minimum.reduceat(order, starts) if n else np.empty(0, np.int64)
    by_first = np.argsort(firsts, kind="stable")
    rank = np.empty(len(starts), np.uint32)
    rank[by_first] = np.arange(len(starts), dtype=np.uint32)
    item_nodes = np.empty(n, np.uint32)
    item_nodes[order] = np.repeat(rank, np.diff(np.append(starts, n)))
    codes = files.create(folder, "codes", (len(starts), words), np.uint64)
    chosen = firsts[by_first]
    for start in range(0, len(chosen), _CHUNK):
        codes[start : start + _CHUNK] = rows[chosen[start : start + _CHUNK]]
    files.save(folder, "item_nodes", item_nodes)


def _groups(rows: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(order, starts): rows in an order where equal ones stand together, and where each group of them starts.

    Sorted by a hash; among equal hashes, by the codes themselves.
    """
    n = len(rows)
    keys = np.empty(n, np.uint64)
    for start in range(0, n, _CHUNK):
        keys[start : start + _CHUNK] = _hash(np.asarray(rows[start : start + _CHUNK]))
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    del keys
    new = np.ones(n, bool)
    for start in range(0, n - 1, _CHUNK):
        stop = min(start + _CHUNK, n - 1)
        here, after = order[start:stop], order[start + 1 : stop + 1]
        new[start + 1 : stop + 1] = (rows[here] != rows[after]).any(axis=1)
    mixed = np.flatnonzero(new[1:] & (sorted_keys[1:] == sorted_keys[:-1])) + 1
    for key in np.unique(sorted_keys[mixed]):  # different codes of one hash: by the codes
        low, high = np.searchsorted(sorted_keys, key), np.searchsorted(sorted_keys, key, side="right")
        members = np.sort(order[low:high])
        codes = np.asarray(rows[members])
        members = members[np.lexsort(codes.T[::-1])]
        order[low:high] = members
        codes = np.asarray(rows[members])
        new[low + 1 : high] = (codes[1:] != codes[:-1]).any(axis=1)
    return order, np.flatnonzero(new)


def _hash(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row."""
    mixed = np.full(len(codes), 0x9E3779B97F4A7C15, np.uint64)
    for word in codes.T:
        mixed ^= word
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
    return mixed
