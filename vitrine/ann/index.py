"""The searchable index of a `binary-index` artifact: candidates by binary codes, re-ranked by real vectors.

Files, schema 2: meta.json {"bits", "dim", "over_recall", "ef", "shards", "parameters"}; hashing.safetensors; for
each shard a folder shard-00000, ... as vitrine/ann/segment.py describes. Schema 1 had the files of a segment
without a graph beside these two; it is still read. The parent `embeddings` has the encoder of pictures.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitrine.ann import cursor, filters
from vitrine.ann.arrays import refuse
from vitrine.ann.attributes import Attributes, Value
from vitrine.ann.filters import Filter
from vitrine.ann.found import View
from vitrine.ann.hashing import Floats, Hashing
from vitrine.ann.hits import Hits, Options, join, none
from vitrine.ann.search import Between, Codes, Search
from vitrine.ann.segment import Ids, Segment
from vitrine.errors import FieldError, NotFoundError

__all__ = ["BinaryIndex", "Hits", "Items", "Options", "View"]

KIND = "binary-index"
SCHEMA = 2

MAX_K = 1000
MAX_OVER_RECALL = 100
MAX_EF = 10_000
EF = 64

_POOLED = 1 << 18  # candidates held at a time: those of one block of queries

Rows = slice | NDArray[np.intp]  # of the queries of a call
Block = tuple[Codes, Floats | None, Ids | None]  # what `Search` takes


def _nothing(stage: str) -> None:
    """Between stages, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Items:
    """Indexed items: ids uint64 (n,), unit vectors float32 (n, dim), and each one's attributes."""

    ids: Ids
    vectors: Floats
    attributes: list[dict[str, Value]]


@dataclass(frozen=True)
class BinaryIndex:
    """A snapshot of an index: its segments, of which the last have the newest items; read-only, safe for threads.

    segments:    an item is alive in at most one of them
    over_recall: default number of candidates re-ranked, as a multiple of k
    ef:          default number of nodes that a walk keeps
    generation:  names what cursors are good for: the artifact's version
    """

    hashing: Hashing
    segments: tuple[View, ...]
    over_recall: int
    ef: int = EF
    generation: str = ""

    @classmethod
    def of(
        cls,
        ids: Ids,
        vectors: Floats,
        hashing: Hashing,
        *,
        over_recall: int = 10,
        attributes: Attributes | None = None,
    ) -> Self:
        """An index of one segment without a graph; ids ascending, vectors of unit length."""
        segment = Segment(ids, hashing.encode(vectors), vectors, attributes or Attributes.none(len(ids)))
        return cls(hashing, (View(segment),), over_recall)

    @cached_property
    def items(self) -> int:
        """Items in the index."""
        return sum(view.items for view in self.segments)

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self.hashing.dim

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.hashing.bits

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Attributes that can be filtered by, and their kinds."""
        return {name: kind for view in self.segments for name, kind in view.segment.attributes.kinds.items()}

    def search_vectors(
        self, queries: Floats, options: Options, *, threads: int = 1, between: Between = _nothing
    ) -> Hits:
        """The k items of highest cosine among the k x over_recall of nearest codes.

        queries: float32 (q, dim), finite and not zero; of any length
        between: called with "encode", "graph" (segments with one), "scan" (those without) and "rerank" after each
                 block of queries has gone through that stage; what it raises ends the search

        Raises FieldError("vectors" | "k" | "over_recall" | "ef" | "filter" | "group_by" | "radius" | "cursors");
        for a cursor of another generation cursor.GenerationError.
        """
        search = self._search(options, len(queries), threads, between)
        return self._by_vectors(unit_queries(queries, self.dim), None, options, search, between)

    def search_codes(
        self, codes: Codes, options: Options, *, threads: int = 1, between: Between = _nothing
    ) -> Hits:
        """The k items of nearest code; codes: uint64 (q, words). Raises FieldError, "codes" among the fields."""
        if codes.ndim != 2 or codes.shape[1] * 64 != self.bits:
            raise FieldError("codes", f"has shape {codes.shape}; codes here have {self.bits // 64} words")
        search = self._search(options, len(codes), threads, between, over_recall=1)
        codes = np.ascontiguousarray(codes)
        return self._blocks(search, options, len(codes), lambda rows: (codes[rows], None, None), scored=False)

    def search_items(self, ids: Ids, options: Options, *, threads: int = 1, between: Between = _nothing) -> Hits:
        """The k items of highest cosine to each of these, which is left out itself.

        Raises FieldError as `search_vectors` does, and NotFoundError naming an id that is not indexed.
        """
        search = self._search(options, len(ids), threads, between)
        found = self.get(ids)
        if len(found.ids) < len(ids):
            missing = ids[~np.isin(ids, found.ids)][0]
            raise NotFoundError(f"item_ids: {missing} is not in the index")
        return self._by_vectors(found.vectors, ids, options, search, between)

    def get(self, ids: Ids) -> Items:
        """Those of the items that are indexed, in the order asked for; an id asked for twice comes twice."""
        rows, views = np.zeros(len(ids), np.int64), np.full(len(ids), -1)
        for number, view in enumerate(self.segments):
            here, places = view.segment.rows_of(ids)
            if view.alive is not None:
                alive = view.alive.rows[here]
                here, places = here[alive], places[alive]
            rows[places], views[places] = here, number
        there = np.flatnonzero(views >= 0)
        vectors = np.empty((len(there), self.dim), np.float32)
        attributes: list[dict[str, Value]] = []
        for at, place in enumerate(there.tolist()):
            segment, row = self.segments[views[place]].segment, int(rows[place])
            vectors[at] = segment.vectors[row]
            attributes.append(segment.attributes.row(row))
        return Items(ids[there], vectors, attributes)

    def matching(self, wanted: Filter) -> Ids:
        """Ids of all items that a filter holds for, ascending. Raises FieldError("filter")."""
        filters.check(wanted, self.kinds)
        allowed = [(view.segment, view.segment.allowed(wanted, view.alive)) for view in self.segments]
        found = [segment.ids[each.rows] for segment, each in allowed if each is not None]
        return np.sort(np.concatenate(found)) if found else np.empty(0, np.uint64)

    def warm_up(self) -> None:
        """Reads what a search reads, by searching for the first items.

        Raises ArtifactError where their codes are not those of their vectors.
        """
        for view in self.segments:
            sample = np.asarray(view.segment.vectors[: min(16, len(view.segment.ids))])
            codes = self.hashing.encode(sample)
            if not np.array_equal(codes, view.segment.codes[:, : len(sample)]):
                refuse("codes.npy", "does not hold the codes of vectors.npy")
            if len(sample):
                self.search_vectors(sample, Options(10))

    @classmethod
    def load(cls, folder: Path, *, shard: int = 0, shards: int = 1, generation: str = "") -> Self:
        """One shard of the index in an artifact's folder, memory-mapped and checked.

        Raises ArtifactError naming the file that is missing, cut short, or does not fit the others, and where the
        artifact has another number of shards.
        """
        meta = _read_meta(folder / "meta.json")
        try:
            hashing = Hashing.load(folder / "hashing.safetensors")
        except (ValueError, OSError) as error:
            refuse("hashing.safetensors", str(error))
        bits, dim = meta["bits"], meta["dim"]
        if (hashing.bits, hashing.dim) != (bits, dim):
            refuse(
                "hashing.safetensors", f"gives {hashing.bits} bits of {hashing.dim} dimensions, not {bits} of {dim}"
            )
        if meta["shards"] != shards:
            refuse("meta.json", f"has {meta['shards']} shards, and this server is of {shards}")
        whole = folder if meta["schema"] == 1 else folder / shard_folder(shard)
        segment = Segment.load(whole, bits, dim)
        return cls(hashing, (View(segment),), meta["over_recall"], meta["ef"], generation)

    def write(self, folder: Path) -> None:
        """The files of an artifact of one shard; of an index of one segment with nothing dead."""
        (view,) = self.segments
        if view.alive is not None:
            raise ValueError("an index with dead items cannot be written")
        write_meta(folder, self.hashing, over_recall=self.over_recall, ef=self.ef)
        (folder / shard_folder(0)).mkdir()
        view.segment.write(folder / shard_folder(0))

    def _search(
        self, options: Options, queries: int, threads: int, between: Between, over_recall: int | None = None
    ) -> Search:
        """With the defaults filled in. Raises FieldError for what means nothing."""
        given = self.over_recall if options.over_recall is None else options.over_recall
        ef = self.ef if options.ef is None else options.ef
        if not 1 <= options.k <= MAX_K:
            raise FieldError("k", f"is {options.k}; use 1 to {MAX_K:,}")
        if not 1 <= given <= MAX_OVER_RECALL:
            raise FieldError("over_recall", f"is {given}; use 1 to {MAX_OVER_RECALL}")
        if not 1 <= ef <= MAX_EF:
            raise FieldError("ef", f"is {ef}; use 1 to {MAX_EF:,}")
        if options.radius is not None and not 0 <= options.radius <= self.bits:
            raise FieldError("radius", f"is {options.radius}; codes here are 0 to {self.bits} bits apart")
        if options.cursors is not None and len(options.cursors) != queries:
            raise FieldError("cursors", f"has {len(options.cursors)}; give one for each of {queries} queries")
        if options.filter is not None:
            filters.check(options.filter, self.kinds)
        if options.group_by is not None and options.group_by not in self.kinds:
            there = ", ".join(sorted(self.kinds)) or "none"
            raise FieldError("group_by", f"no item has an attribute {options.group_by!r}; there are: {there}")
        return Search(
            self.segments,
            options,
            over_recall=over_recall or given,
            ef=ef,
            generation=self.generation,
            threads=threads,
            between=between,
        )

    def _by_vectors(
        self, queries: Floats, without: Ids | None, options: Options, search: Search, between: Between
    ) -> Hits:
        """queries of unit length"""

        def block(rows: Rows) -> Block:
            codes = np.ascontiguousarray(self.hashing.encode(queries[rows]).T)
            between("encode")
            return codes, queries[rows], None if without is None else without[rows]

        return self._blocks(search, options, len(queries), block, scored=True)

    def _blocks(
        self, search: Search, options: Options, queries: int, block: Callable[[Rows], Block], *, scored: bool
    ) -> Hits:
        """Some queries at a time, so that a large batch takes bounded memory; of later pages those alike."""
        grouped = options.group_by is not None
        if not search.total:
            return join([none(scored=scored, grouped=grouped)] * queries, scored=scored, grouped=grouped)
        if options.cursors is None:
            parts = [search.first(*block(rows)) for rows in _slices(queries, search.count())]
            return join(parts, scored=scored, grouped=grouped)
        pages = {i: cursor.decode(each, self.generation) for i, each in enumerate(options.cursors) if each}
        alike: dict[int, list[int]] = {}
        for i, page in pages.items():
            alike.setdefault(page.taken, []).append(i)
        parts_of = [none(scored=scored, grouped=grouped)] * queries
        for taken, members in alike.items():
            for part in _slices(len(members), search.count(taken)):
                some = members[part]
                hits = search.after(*block(np.array(some)), [pages[i] for i in some])
                for i, each in zip(some, hits.split([1] * len(some)), strict=True):
                    parts_of[i] = each
        return join(parts_of, scored=scored, grouped=grouped)


def shard_folder(shard: int) -> str:
    """Name of a shard's folder."""
    return f"shard-{shard:05d}"


def write_meta(
    folder: Path,
    hashing: Hashing,
    *,
    over_recall: int,
    ef: int = EF,
    shards: int = 1,
    parameters: Mapping[str, Any] | None = None,
) -> None:
    """The files of an artifact that its shards share."""
    hashing.save(folder / "hashing.safetensors")
    meta = {"bits": hashing.bits, "dim": hashing.dim, "over_recall": over_recall, "ef": ef, "shards": shards}
    (folder / "meta.json").write_text(json.dumps(meta | {"parameters": dict(parameters or {})}, indent=1) + "\n")


def unit_queries(queries: Floats, dim: int) -> Floats:
    """Queries float32 (q, dim) scaled to unit length, contiguous.

    Raises FieldError("vectors") for another shape, and naming the row that is not finite or all zero.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise FieldError("vectors", f"has shape {queries.shape}; vectors here have {dim} dimensions")
    wide = queries.astype(np.float64)  # the square of any float32 fits
    norms = np.sqrt(np.vecdot(wide, wide))
    if len(norms) and not 0 < norms.min() <= norms.max() < np.inf:
        bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
        what = "is all zero" if norms[bad[0]] == 0 else "has a value that is not finite"
        raise FieldError("vectors", f"row {bad[0]} {what}")
    unit: Floats = (wide / norms[:, None]).astype(np.float32)
    return unit


def _slices(queries: int, pool: int) -> list[slice]:
    """Slices of the queries whose candidates together are bounded."""
    step = max(1, _POOLED // pool)
    return [slice(start, min(start + step, queries)) for start in range(0, queries, step)]


def _read_meta(file: Path) -> dict[str, int]:
    """bits, dim, over_recall, ef, shards, and the schema that they are of."""
    try:
        meta: dict[str, Any] = json.loads(file.read_text())
        schema = 2 if "shards" in meta else 1
        values = {"ef": EF, "shards": 1} | {name: meta[name] for name in ("bits", "dim", "over_recall")}
        if schema == 2:
            values |= {name: meta[name] for name in ("ef", "shards")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse("meta.json", f"cannot be read: {error!r}")
    if not all(type(v) is int and v > 0 for v in values.values()) or values["over_recall"] > MAX_OVER_RECALL:
        refuse("meta.json", f"has {', '.join(f'{name} {value!r}' for name, value in values.items())}")
    return values | {"schema": schema}
