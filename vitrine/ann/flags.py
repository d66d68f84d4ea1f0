"""Which rows of an immutable segment are dead, as arrays that never change under the snapshot that holds them.

A snapshot needs flags that stay as they are while it is searched, and copying ten million of them for every update
would cost more than the update. So up to three arrays take turns: one that no snapshot holds any more is brought up
to date by the rows flagged since it was last out, and goes out again.
"""

import weakref

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


class Flags:
    """Rows flagged so far, of `rows` rows; for one writer.

    dead: how many are flagged
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.dead = 0
        self._newest = _Buffer(np.zeros(rows, bool))
        self._spare: list[_Buffer] = []
        self._flagged: list[Rows] = []  # since the oldest buffer was last out; buffers count from _base
        self._base = 0

    def flag(self, rows: Rows) -> None:
        """Flags rows that are not flagged yet, each named once; arrays that are out stay as they are."""
        if len(rows):
            self._flagged.append(rows)
            self.dead += len(rows)

    def is_dead(self, rows: Rows) -> NDArray[np.bool_]:
        """bool (len(rows),), of all that is flagged."""
        self._renew()
        dead: NDArray[np.bool_] = self._newest.array[rows]
        return dead

    def alive(self) -> Rows:
        """Rows that are not flagged, ascending."""
        self._renew()
        return np.flatnonzero(~self._newest.array)

    def array(self) -> NDArray[np.bool_]:
        """bool (rows,) of all that is flagged so far; holds for ever, for who keeps this very object."""
        self._renew()
        return self._newest.lend()

    def _renew(self) -> None:
        end = self._base + len(self._flagged)
        if self._newest.upto == end:
            return
        if self._newest.is_lent:
            lent = self._newest
            found = next((each for each in self._spare if not each.is_lent), None)
            if found is not None:
                self._spare.remove(found)
            self._newest = found or _Buffer(lent.array.copy(), lent.upto)
            self._spare = [*self._spare[-1:], lent]
        for rows in self._flagged[self._newest.upto - self._base :]:
            self._newest.array[rows] = True
        self._newest.upto = end
        oldest = min([self._newest.upto, *(each.upto for each in self._spare)])
        if (
            len(self._flagged) > 1024
        ):  # a snapshot held for long must not hold the list of all that was flagged since
            self._spare = [each for each in self._spare if each.upto >= end - 512]
            oldest = min([end, *(each.upto for each in self._spare)])
        del self._flagged[: oldest - self._base]
        self._base = oldest


class _Buffer:
    """An array of flags, whether a snapshot holds it, and how many flaggings are in it."""

    def __init__(self, array: NDArray[np.bool_], upto: int = 0) -> None:
        self.array = array
        self.upto = upto
        self._out: weakref.ref[NDArray[np.bool_]] | None = None

    @property
    def is_lent(self) -> bool:
        return self._out is not None and self._out() is not None

    def lend(self) -> NDArray[np.bool_]:
        out = self._out() if self._out is not None else None
        if out is None:
            out = self.array.view()
            out.flags.writeable = False
            self._out = weakref.ref(out)
        return out
