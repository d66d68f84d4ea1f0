"""An index that takes updates: newest items scanned flat before immutable segments, to which folding gives graphs.

Every `apply` ends in one assignment of a new snapshot, in which an item is alive in exactly one row; a search goes
on in the snapshot that it began with. Rows of segments are never changed: that of a replaced or deleted item is
flagged dead, and its node stays in the graph to be walked through (docs/ann-updates.md).
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from vitrine.ann.attributes import Attributes, Value, kind_of
from vitrine.ann.build import Parameters
from vitrine.ann.folding import Part, Rows, choose, fold, join
from vitrine.ann.index import BinaryIndex
from vitrine.ann.segment import Segment
from vitrine.ann.updates import Update
from vitrine.errors import FieldError

log = logging.getLogger(__name__)

FOLD_AT = 8192
_SMALL = 16  # the small part is at most this part of the flat one: what one update copies, and what a join does
_RETRY_S = 10.0
_NICE = 10  # of the folding thread, above that of searches


class LiveIndex:
    """Applies updates to an index, and gives snapshots of it to any number of readers.

    base:    what the updates are applied to; unchanged
    fold_at: newest items that are scanned flat, about this many, before they are folded
    threads: that folding may use
    """

    def __init__(
        self,
        base: BinaryIndex,
        *,
        fold_at: int = FOLD_AT,
        parameters: Parameters | None = None,
        threads: int = 1,
    ) -> None:
        self._base = base
        self._fold_at = fold_at
        self._parameters = parameters or Parameters()
        self._threads = threads
        self._kinds = dict(base.kinds)
        self._parts = [Part(view.segment, base=True) for view in base.segments]
        self._small: Part | None = None
        self._flat: Part | None = None
        self._current = base
        self._trouble: str | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._folder = threading.Thread(target=self._fold_on, name="fold", daemon=True)
        self._folder.start()

    @property
    def current(self) -> BinaryIndex:
        """The index with every update applied so far: a snapshot, for as long as it is kept."""
        return self._current

    @property
    def trouble(self) -> str | None:
        """Why folding does not go on, so that searches grow slower; None where it does."""
        return self._trouble

    @property
    def scanned(self) -> int:
        """Items without a graph, besides those of an artifact without one."""
        flat = [self._small, self._flat, *(part for part in self._parts if part.full)]
        return sum(part.items for part in flat if part is not None)

    def check(self, attributes: Mapping[str, Value]) -> None:
        """FieldError("attributes") where one is of another kind than the index's."""
        for name, value in attributes.items():
            kind_of(name, value, self._kinds.get(name))

    def apply(self, updates: Sequence[Update]) -> list[tuple[Update, str]]:
        """Shows the updates from its return on, all at once; of several of one item the last counts.

        Vectors are of unit length. Returns what is refused: updates with an attribute of another kind than the
        index's, which is that of the first value, and why. For one writer at a time.
        """
        refused: list[tuple[Update, str]] = []
        last: dict[int, Update] = {}
        for update in updates:
            try:
                for name, value in update.attributes.items():
                    self._kinds[name] = kind_of(name, value, self._kinds.get(name))
            except FieldError as error:
                refused.append((update, str(error)))
            else:
                last[update.item_id] = update
        if last:
            touched = np.sort(np.fromiter(last, np.uint64, len(last)))
            new = self._segment([last[int(item)] for item in touched])
            with self._changed:
                for part in self._all():
                    part.flag(touched)
                if new is not None:
                    self._add(new)
                self._publish()
                if self._choose():  # something is full, or mostly dead
                    self._changed.notify_all()
        return refused

    def settle(self, timeout_s: float = 60.0) -> bool:
        """Waits until there is nothing to fold; whether it is so within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or not self._choose(), timeout_s)

    def close(self) -> None:
        """Ends folding; snapshots stay as they are."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._folder.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _segment(self, updates: Sequence[Update]) -> Segment | None:
        """Those that are upserts, by ascending id."""
        upserts = [(update, update.vector) for update in updates if update.vector is not None]
        if not upserts:
            return None
        vectors = np.stack([vector for _, vector in upserts])
        return Segment(
            np.array([update.item_id for update, _ in upserts], np.uint64),
            self._base.hashing.encode(vectors),
            vectors,
            Attributes.of([update.attributes for update, _ in upserts], self._kinds),
        )

    def _add(self, new: Segment) -> None:
        """Joins new items to the small part, and that to the flat one once it is too large."""
        self._small = _joined(self._small, new)
        if self._small.flags.rows * _SMALL <= self._fold_at:
            return
        flat = _joined(self._flat, self._small.segment)
        self._small, self._flat = None, flat
        if flat.flags.rows >= self._fold_at:
            flat.full = True
            self._flat, self._parts = None, [*self._parts, flat]

    def _all(self) -> list[Part]:
        return [*self._parts, *(part for part in (self._flat, self._small) if part is not None)]

    def _publish(self) -> None:
        self._parts = [part for part in self._parts if part.base or part.items]
        views = tuple(part.view() for part in self._all())
        self._current = replace(self._base, segments=views)

    def _choose(self) -> list[Part]:
        return choose(self._parts, self._fold_at)

    def _fold_on(self) -> None:
        """The folding thread."""
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # of this thread alone, on Linux
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._choose())
                if self._closed:
                    return
                chosen = [(part, part.flags.alive()) for part in self._choose()]
            try:
                segment = fold(chosen, self._base.hashing, self._parameters, self._threads, self._check_open)
            except _ClosedError:
                return
            except Exception as error:
                self._trouble = f"updates are not folded, and searches scan {self.scanned:,} items: {error!r}"
                log.exception("folding failed; it is tried again in %.0f s", _RETRY_S)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, _RETRY_S)
            else:
                self._trouble = None
                self._replace(chosen, Part(segment))

    def _replace(self, chosen: Sequence[tuple[Part, Rows]], made: Part) -> None:
        """Puts what was folded in the place of its parts, without what has died meanwhile."""
        with self._changed:
            for part, rows in chosen:
                made.flag(part.segment.ids[rows[part.flags.is_dead(rows)]])
            gone = {id(part) for part, _ in chosen}
            self._parts = [*(part for part in self._parts if id(part) not in gone), made]
            self._publish()
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise _ClosedError


class _ClosedError(Exception):
    """The index was closed while it folded."""


def _joined(part: Part | None, new: Segment) -> Part:
    """A flat part of what is alive in `part`, and of the new items."""
    return Part(new if part is None else join([(part.segment, part.flags.alive()), (new, None)]))
