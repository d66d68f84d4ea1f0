"""Views of segments, and the candidates of a search in them, as matrices with a row a query."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann.hashing import Floats
from vitrine.ann.segment import UNUSED, Allowed, Ids, Rows, Segment

_COMPARED = 1 << 18  # pairs of rows that are compared, rather than sorted

Order = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class View:
    """A segment as one snapshot shows it.

    alive: its rows that are items of the index; None where all are
    """

    segment: Segment
    alive: Allowed | None = None

    @cached_property
    def items(self) -> int:
        """Items of the index in it."""
        return len(self.segment.ids) if self.alive is None else self.alive.count


@dataclass(frozen=True, slots=True)
class Found:
    """Candidates of q queries, (q, p) each.

    distances: UNUSED where there is no candidate
    ids:       None where there is one view, and nobody needs them yet
    views:     the view that each is of; None where there is one view
    keys:      what they are ordered by, ascending: a cosine made negative, inf for none; None for the distance
    """

    rows: Rows
    distances: NDArray[np.uint32]
    ids: Ids | None = None
    views: NDArray[np.intp] | None = None
    keys: Floats | None = None

    def ordered(self, order: Order) -> Found:
        """Candidates order[i] of each query i."""
        at = order + np.arange(len(order))[:, None] * self.rows.shape[1]
        return Found(
            self.rows.take(at),
            self.distances.take(at),
            None if self.ids is None else self.ids.take(at),
            None if self.views is None else self.views.take(at),
            None if self.keys is None else self.keys.take(at),
        )

    def by_keys(self, keys: Floats, kept: int | None) -> Found:
        """In the order of (key, id), the first `kept`."""
        order = np.lexsort((self.ids, keys), axis=1)[:, :kept]  # type: ignore[arg-type]
        return replace(self, keys=keys).ordered(order)

    def masked(self) -> Rows:
        """Rows of the only view, UNUSED where there is none."""
        if self.distances.max(initial=0) != UNUSED:
            return self.rows
        return np.where(self.distances == UNUSED, np.uint32(UNUSED), self.rows)

    def first(self, count: int) -> Found:
        """The first of each query."""
        return self.at((slice(None), slice(count)))

    def at(self, chosen: Any) -> Found:
        """Some candidates."""
        return Found(
            self.rows[chosen],
            self.distances[chosen],
            None if self.ids is None else self.ids[chosen],
            None if self.views is None else self.views[chosen],
            None if self.keys is None else self.keys[chosen],
        )


def places(rows: Rows, some: Rows) -> Order:
    """Where each of `some` (q, k) is first among its query's rows (q, p)."""
    if some.size * rows.shape[1] <= _COMPARED:
        return np.asarray((some[:, :, None] == rows[:, None, :]).argmax(axis=2))
    order = np.argsort(rows, axis=1, kind="stable")
    return np.stack([o[np.searchsorted(row, few, sorter=o)] for o, row, few in zip(order, rows, some, strict=True)])


def products(vectors: Floats, queries: Floats, rows: Rows, threads: int) -> Floats:
    """Products float32 (q, p) with each query's own rows, in their order: `vector_topk` has them in another."""
    best, found = native.vector_topk(vectors, queries, rows, rows.shape[1], threads)
    start = np.arange(len(rows))[:, None] * rows.shape[1]
    scores = np.empty(rows.shape, np.float32)
    scores.put(np.argsort(rows, axis=1) + start, found.take(np.argsort(best, axis=1) + start))
    return scores


def left_out(found: Found, without: Ids, count: int) -> Found:
    """`count` candidates, without one item: one more were found."""
    assert found.ids is not None
    gone = found.ids == without[:, None]
    left = found.ordered(np.argsort(gone, axis=1, kind="stable")[:, :count])
    assert left.ids is not None
    left.distances[left.ids == without[:, None]] = UNUSED
    return left
