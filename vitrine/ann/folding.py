"""The parts of a live index: how new items join them, which of them become one, and the making of it.

A log-structured merge. New items are in a small part, that is joined into a larger one, both scanned flat; what is
full is folded into a segment with a graph; when `FANOUT` of those are of like size (within a factor of `FANOUT`),
they become one. So n items are in O(log n) segments, and each has been built into O(log n) graphs.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters
from vitrine.ann.build.executors import Threads
from vitrine.ann.flags import Flags
from vitrine.ann.hashing import Hashing
from vitrine.ann.index import View
from vitrine.ann.segment import Segment

FANOUT = 4

Ids = NDArray[np.uint64]
Rows = NDArray[np.int64]


@dataclass(eq=False)
class Part:
    """A segment, and which of its rows are alive.

    base: it came with the artifact, and is never folded
    full: it is flat, takes no more items, and waits for a graph
    """

    segment: Segment
    base: bool = False
    full: bool = False
    flags: Flags = field(init=False)

    def __post_init__(self) -> None:
        self.flags = Flags(self.segment)

    @property
    def items(self) -> int:
        """Rows alive."""
        return self.flags.rows - self.flags.dead

    def flag(self, ids: Ids) -> None:
        """Flags the rows of those of the ids (each once) that are here."""
        rows, _ = self.segment.rows_of(ids)
        self.flags.flag(rows[~self.flags.is_dead(rows)])

    def view(self) -> View:
        """As a snapshot holds it."""
        return View(self.segment, self.flags.allowed())


def join(chosen: Sequence[tuple[Segment, Rows | None]]) -> Segment:
    """One flat segment of these rows (None: all) of these segments; an item is in one of them."""
    picked = [(segment, slice(None) if rows is None else rows) for segment, rows in chosen]
    ids = np.concatenate([segment.ids[rows] for segment, rows in picked])
    order = np.argsort(ids)
    attributes = [segment.attributes if rows is None else segment.attributes.take(rows) for segment, rows in chosen]
    return Segment(
        ids[order],
        np.ascontiguousarray(
            np.concatenate([segment.codes[:, rows] for segment, rows in picked], axis=1)[:, order]
        ),
        np.concatenate([segment.vectors[rows] for segment, rows in picked])[order],
        Attributes.concat(attributes).take(order),
    )


def choose(parts: Sequence[Part], fold_at: int) -> list[Part]:
    """Parts to make one of, now; none where all is well.

    All that is full, and else the smallest tier that is, or one part that is mostly dead.
    """
    full = [part for part in parts if part.full]
    if full:
        return full
    graphs = [part for part in parts if not part.base]
    tiers: dict[int, list[Part]] = {}
    for part in graphs:
        tiers.setdefault(_tier(part.items, fold_at), []).append(part)
    for _, members in sorted(tiers.items()):
        if len(members) >= FANOUT:
            return members
    return next(([part] for part in graphs if part.flags.dead > part.items), [])


def fold(
    chosen: Sequence[tuple[Part, Rows]],
    hashing: Hashing,
    parameters: Parameters,
    threads: int,
    check: Callable[[], None],
) -> Segment:
    """One segment with a graph of these rows of these parts.

    check: called again and again; what it raises ends the work
    """
    joined = join([(part.segment, rows) for part, rows in chosen])
    check()
    with tempfile.TemporaryDirectory(prefix="vitrine-fold-") as folder:
        return Segment.build(
            joined.ids,
            joined.vectors,
            hashing,
            joined.attributes,
            parameters,
            Path(folder),
            executor=Threads(threads),
            progress=lambda stage, share: check(),
        )


def _tier(items: int, fold_at: int) -> int:
    tier = 0
    while items >= fold_at * FANOUT ** (tier + 1):
        tier += 1
    return tier
