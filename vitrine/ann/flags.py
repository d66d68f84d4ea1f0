"""Which rows and nodes of an immutable segment are alive, as arrays that never change under their snapshot.

A snapshot needs arrays that stay as they are while it is searched, and copying those of ten million items for every
update would cost more than the update. So up to three pairs take turns: one that no snapshot holds any more is
brought up to date by what was flagged since it was last out, and goes out again.
"""

import weakref

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.segment import Allowed, Segment

Rows = NDArray[np.int64]
_LONGEST = 1024  # flaggings kept for arrays that are still out; what is older is copied instead


class Flags:
    """Rows flagged dead so far; for one writer.

    rows: of the segment
    dead: how many of them are flagged
    """

    def __init__(self, segment: Segment) -> None:
        self.rows = len(segment.ids)
        self.dead = 0
        graph = segment.graph
        self._node_of = None if graph is None else graph.node_of
        self._left = None  # rows alive, by node, where nodes have several
        if graph is not None and graph.nodes < self.rows:
            self._left = np.diff(graph.starts)
        self._newest = _Buffer(np.ones(self.rows, bool), None if graph is None else np.ones(graph.nodes, bool), 0)
        self._spare: list[_Buffer] = []
        self._flagged: list[tuple[Rows, NDArray[np.uint32]]] = []  # the first is number _base
        self._base = 0

    def flag(self, rows: Rows) -> None:
        """Flags rows that are not flagged yet, each named once; arrays that are out stay as they are."""
        if len(rows):
            self._flagged.append((rows, self._died(rows)))
            self.dead += len(rows)

    def is_dead(self, rows: Rows) -> NDArray[np.bool_]:
        """bool (len(rows),), of all that is flagged."""
        self._renew()
        return ~self._newest.rows[rows]

    def alive(self) -> Rows:
        """Rows that are not flagged, ascending."""
        self._renew()
        return np.flatnonzero(self._newest.rows)

    def allowed(self) -> Allowed | None:
        """What is not flagged so far, unchanged while the object is kept; None where nothing is flagged."""
        if not self.dead:
            return None
        self._renew()
        return self._newest.lend(self.rows - self.dead)

    def _died(self, rows: Rows) -> NDArray[np.uint32]:
        """Nodes whose last row alive is among these."""
        if self._node_of is None:
            return np.empty(0, np.uint32)
        nodes: NDArray[np.uint32] = self._node_of[rows]
        if self._left is None:
            return nodes
        np.subtract.at(self._left, nodes, 1)
        return np.unique(nodes[self._left[nodes] == 0])

    def _renew(self) -> None:
        end = self._base + len(self._flagged)
        if self._newest.upto == end:
            return
        if self._newest.is_lent:
            lent = self._newest
            found = next((each for each in self._spare if not each.is_lent), None)
            if found is not None:
                self._spare.remove(found)
            self._newest = found or lent.copy()
            self._spare = [*self._spare[-1:], lent]
        for rows, nodes in self._flagged[self._newest.upto - self._base :]:
            self._newest.flag(rows, nodes)
        self._newest.upto = end
        if len(self._flagged) > _LONGEST:
            self._spare = [each for each in self._spare if each.upto >= end - _LONGEST // 2]
        oldest = min([end, *(each.upto for each in self._spare)])
        del self._flagged[: oldest - self._base]
        self._base = oldest


class _Buffer:
    """A pair of arrays, whether a snapshot holds it, and how many flaggings are in it."""

    def __init__(self, rows: NDArray[np.bool_], nodes: NDArray[np.bool_] | None, upto: int) -> None:
        self.rows, self.nodes, self.upto = rows, nodes, upto
        self._out: weakref.ref[Allowed] | None = None

    @property
    def is_lent(self) -> bool:
        return self._out is not None and self._out() is not None

    def flag(self, rows: Rows, nodes: NDArray[np.uint32]) -> None:
        self.rows[rows] = False
        if self.nodes is not None:
            self.nodes[nodes] = False

    def lend(self, count: int) -> Allowed:
        out = self._out() if self._out is not None else None
        if out is None:
            out = Allowed(self.rows, count, self.nodes)
            self._out = weakref.ref(out)
        return out

    def copy(self) -> "_Buffer":
        return _Buffer(self.rows.copy(), None if self.nodes is None else self.nodes.copy(), self.upto)
