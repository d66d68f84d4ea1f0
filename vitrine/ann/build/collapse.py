"""Identical codes become one node with many ids, ordered by the smallest: a clique of them would lead nowhere."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.build import files

ROW_BYTES = 80  # memory that `group` takes a row of its bucket


def prepare(folder: Path) -> None:
    """Creates the arrays that `hash_rows` and `group` fill."""
    n = len(files.read(folder, "rows"))
    files.create(folder, "keys", (n,), np.uint64)
    files.create(folder, "firsts", (n,), np.uint32)


def hash_rows(folder: Path, begin: int, end: int) -> None:
    """rows (n, words), the code of each item, items by ascending id -> keys (n,) uint64, rows begin to end."""
    rows, keys = files.read(folder, "rows"), files.change(folder, "keys")
    for start in range(begin, end, files.CHUNK):
        stop = min(start + files.CHUNK, end)
        keys[start:stop] = _hash(rows[start:stop])


def group(folder: Path, bucket: int, buckets: int) -> None:
    """rows, keys -> firsts (n,) uint32, the first row of the same code, for the rows whose keys are in a bucket.

    Memory is that of the bucket's different codes and of so many rows again, however often a code repeats.
    """
    rows, keys = files.read(folder, "rows"), files.read(folder, "keys")
    firsts = files.change(folder, "firsts")
    most = max(files.CHUNK, 2 * len(rows) // buckets)
    known_keys, known_firsts = np.empty(0, np.uint64), np.empty(0, np.uint32)
    odd = [np.empty(0, np.uint32)]  # rows of a hash whose first row has another code
    for members in _members(keys, bucket, buckets, most):
        own, at, inverse = np.unique(keys[members], return_index=True, return_inverse=True)
        own_firsts = members[at]
        place = np.searchsorted(known_keys, own)
        known = np.zeros(len(own), bool)
        inside = place < len(known_keys)
        known[inside] = known_keys[place[inside]] == own[inside]
        own_firsts[known] = known_firsts[place[known]]
        known_keys = np.insert(known_keys, place[~known], own[~known])
        known_firsts = np.insert(known_firsts, place[~known], own_firsts[~known])
        first = own_firsts[inverse]
        again = np.flatnonzero(first != members)
        same = np.empty(len(again), bool)
        for start in range(0, len(again), files.CHUNK):
            part = again[start : start + files.CHUNK]
            same[start : start + files.CHUNK] = (rows[members[part]] == rows[first[part]]).all(axis=1)
        odd.append(members[again[~same]])
        firsts[members] = first
    mixed = np.concatenate(odd)  # ascending, so the first of equal ones is the smallest
    _, at, inverse = np.unique(rows[mixed], axis=0, return_index=True, return_inverse=True)
    firsts[mixed] = mixed[at][inverse.ravel()]


def number(folder: Path) -> None:
    """rows, firsts -> nodes.

    Writes codes (nodes, words), node i having the code that first appears i-th; item_nodes (n,) uint32.
    """
    rows, firsts = files.read(folder, "rows"), files.read(folder, "firsts")
    n, words = rows.shape
    chunks = [slice(start, min(start + files.CHUNK, n)) for start in range(0, n, files.CHUNK)]
    count = sum(np.count_nonzero(firsts[c] == np.arange(c.start, c.stop)) for c in chunks)
    codes = files.create(folder, "codes", (int(count), words), np.uint64)
    item_nodes = files.create(folder, "item_nodes", (n,), np.uint32)
    node = 0
    for c in chunks:
        first = firsts[c]
        new = np.flatnonzero(first == np.arange(c.start, c.stop))
        codes[node : node + len(new)] = rows[c.start + new]
        item_nodes[c.start + new] = np.arange(node, node + len(new), dtype=np.uint32)
        item_nodes[c] = item_nodes[first]  # the first of each is above, or in an earlier chunk
        node += len(new)


def _members(keys: NDArray[np.uint64], bucket: int, buckets: int, most: int) -> Iterator[NDArray[np.uint32]]:
    """Rows whose keys are in the bucket, ascending, about `most` at a time."""
    gathered: list[NDArray[np.uint32]] = []
    for start in range(0, len(keys), files.CHUNK):
        part = keys[start : start + files.CHUNK]
        inside = (part >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32) == bucket
        gathered.append((start + np.flatnonzero(inside)).astype(np.uint32))
        if sum(map(len, gathered)) >= most:
            yield np.concatenate(gathered)
            gathered = []
    if gathered:
        yield np.concatenate(gathered)


def _hash(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row."""
    mixed = np.full(len(codes), 0x9E3779B97F4A7C15, np.uint64)
    for word in codes.T:
        mixed ^= word
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
    return mixed
