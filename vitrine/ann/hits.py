"""What is asked of a search, and what it answers: results of all queries one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.attributes import Value
from vitrine.ann.filters import Filter
from vitrine.ann.hashing import Floats
from vitrine.ann.segment import Ids


@dataclass(frozen=True, slots=True)
class Options:
    """Of a search; every query of a call has the same ones, but a cursor of its own.

    k:           results a query, or groups
    over_recall: candidates re-ranked, as a multiple of k; None for the index's default
    ef:          nodes of the graph that a walk keeps, or the candidates where they are more; None for the default
    exact:       compare with all codes instead of walking the graph, and re-rank by real vectors alone
    filter:      items that may be results
    group_by:    at most one result for each value of this attribute, and none for items without it
    radius:      bits that a result's code is at most away
    cursors:     one a query: results go on after these; after an empty one there are none
    """

    k: int
    over_recall: int | None = None
    ef: int | None = None
    exact: bool = False
    filter: Filter | None = None
    group_by: str | None = None
    radius: int | None = None
    cursors: Sequence[bytes] | None = None


@dataclass(frozen=True, slots=True)
class Hits:
    """Results of q queries one after the other, each query's nearest first, ties by ascending id.

    counts:    uint32 (q,), results of each: k, or fewer where fewer items may be results
    ids:       uint64 (sum of counts,)
    scores:    float32, cosine; None for queries by code
    distances: uint32, Hamming distance in bits
    groups:    with group_by, the value of each result; else None
    cursors:   one a query, b"" where nothing comes after its results
    visited:   codes that were compared with
    """

    counts: NDArray[np.uint32]
    ids: Ids
    scores: Floats | None
    distances: NDArray[np.uint32]
    groups: list[Value] | None
    cursors: Sequence[bytes]
    visited: int

    def slices(self) -> Iterator[slice]:
        """Where each query's results are."""
        end = 0
        for count in self.counts.tolist():
            yield slice(end, end + count)
            end += count

    def split(self, sizes: Sequence[int]) -> list[Hits]:
        """Those of so many queries each; the first has all that was visited."""
        ends = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)]).tolist()
        parts: list[Hits] = []
        begin = 0
        for size in sizes:
            flat = slice(ends[begin], ends[begin + size])
            parts.append(
                Hits(
                    self.counts[begin : begin + size],
                    self.ids[flat],
                    None if self.scores is None else self.scores[flat],
                    self.distances[flat],
                    None if self.groups is None else self.groups[flat],
                    self.cursors[begin : begin + size],
                    0 if parts else self.visited,
                )
            )
            begin += size
        return parts


def none(*, scored: bool, grouped: bool) -> Hits:
    """The hits of one query where there are none."""
    return Hits(
        np.zeros(1, np.uint32),
        np.empty(0, np.uint64),
        np.empty(0, np.float32) if scored else None,
        np.empty(0, np.uint32),
        [] if grouped else None,
        [b""],
        0,
    )


def join(parts: Sequence[Hits], *, scored: bool, grouped: bool) -> Hits:
    """The hits of some queries after those of others."""
    if len(parts) == 1:
        return parts[0]
    empty = np.empty(0, np.uint32)
    scores = [part.scores for part in parts if part.scores is not None]
    return Hits(
        np.concatenate([empty, *(part.counts for part in parts)]),
        np.concatenate([np.empty(0, np.uint64), *(part.ids for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *scores]) if scored else None,
        np.concatenate([empty, *(part.distances for part in parts)]),
        [value for part in parts for value in part.groups or ()] if grouped else None,
        [each for part in parts for each in part.cursors],
        sum(part.visited for part in parts),
    )
