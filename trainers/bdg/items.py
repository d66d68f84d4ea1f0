"""Which items an index has, and whence each one's vector: the embeddings, as the updates have changed them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainers.bdg import attributes as files
from vitrine.ann.attributes import Attributes, kind_of
from vitrine.ann.embeddings import Embeddings
from vitrine.ann.updates import Update
from vitrine.errors import FieldError
from vitrine.placement import shards_of


@dataclass(frozen=True, eq=False)
class Items:
    """Items by ascending id.

    ids:     uint64 (n,)
    sources: int64 (n,), each one's row of `embedded`, or -1 - its row of `updated`
    """

    ids: NDArray[np.uint64]
    sources: NDArray[np.int64]
    embedded: NDArray[np.float32]
    updated: NDArray[np.float32]
    attributes: Attributes

    @classmethod
    def of(cls, vectors: Embeddings, chosen: NDArray[np.int64], attributes: Path | None) -> Self:
        """Rows `chosen` of the embeddings, with the attributes of a Parquet file."""
        ids = vectors.ids[chosen]
        own = Attributes.none(len(ids)) if attributes is None else files.read(attributes, ids)
        return cls(ids, chosen, vectors.vectors, np.empty((0, vectors.vectors.shape[1]), np.float32), own)

    def changed(self, last: Mapping[int, Update]) -> tuple[Self, int]:
        """With each item as its last update has it; and how many updates are of another kind of attribute, and left
        out. An upsert replaces an item whole, as a live index does."""
        ordered = [last[item_id] for item_id in sorted(last)]
        kinds = _kinds(self.attributes.kinds, ordered)
        upserts, dropped = [], []
        for update in ordered:
            if update.vector is None:
                dropped.append(update.item_id)
                continue
            try:
                for attribute, value in update.attributes.items():
                    kind_of(attribute, value, kinds[attribute])
            except FieldError:
                continue
            upserts.append(update)
        new = np.array([update.item_id for update in upserts], np.uint64)
        kept = np.flatnonzero(~np.isin(self.ids, np.concatenate([new, np.array(dropped, np.uint64)])))
        ids = np.concatenate([self.ids[kept], new])
        order = np.argsort(ids)
        sources = np.concatenate([self.sources[kept], -1 - np.arange(len(new))])
        updated = np.empty((len(new), self.embedded.shape[1]), np.float32)
        for row, update in enumerate(upserts):
            updated[row] = update.vector
        own = Attributes.concat(
            [self.attributes.take(kept), Attributes.of([update.attributes for update in upserts], kinds)]
        )
        changed = type(self)(ids[order], sources[order], self.embedded, updated, own.take(order))
        return changed, len(last) - len(upserts) - len(dropped)

    def shard(self, number: int, shards: int) -> Self:
        """Those of one shard. Raises FieldError("shards") where it has none."""
        if shards == 1:
            return self
        rows = np.flatnonzero(shards_of(self.ids, shards) == number)
        if not len(rows):
            raise FieldError("shards", f"{shards} for {len(self.ids)} items leave shard {number} empty; use fewer")
        return type(self)(
            self.ids[rows], self.sources[rows], self.embedded, self.updated, self.attributes.take(rows)
        )

    def vectors(self, rows: NDArray[np.int64] | slice) -> NDArray[np.float32]:
        """Vectors float32 (len(rows), dim) of these items."""
        sources = self.sources[rows]
        found = np.empty((len(sources), self.embedded.shape[1]), np.float32)
        there = sources >= 0
        found[there] = self.embedded[sources[there]]
        found[~there] = self.updated[-1 - sources[~there]]
        return found


def _kinds(known: Mapping[str, str], last: Iterable[Update]) -> dict[str, str]:
    """Kinds of attributes: those that are known, else what the first value is; a number where some are whole."""
    kinds = dict(known)
    for update in last:
        for name, value in update.attributes.items():
            kind = kind_of(name, value)
            if name not in known and {kind, kinds.setdefault(name, kind)} == {"integer", "number"}:
                kinds[name] = "number"
    return kinds


def choose(vectors: Embeddings, splits: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the pictures in these splits, ascending, or of all pictures; ValueError where none is in them."""
    if not splits:
        return np.arange(len(vectors.ids))
    found = vectors.thumbnails(["split"])["split"]
    rows = np.flatnonzero(pc.is_in(found, pa.array(splits)).to_numpy())
    if not len(rows):
        there = ", ".join(sorted(pc.unique(found).to_pylist()))
        raise ValueError(f"splits: no picture is in {', '.join(splits)}; there are {there}")
    return rows
