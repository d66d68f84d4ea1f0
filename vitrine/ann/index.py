"""The searchable index of a `binary-index` artifact: candidates by binary codes, re-ranked by real vectors.

Files, schema 2: meta.json {"bits", "dim", "over_recall", "ef", "shards", "parameters"}; hashing.safetensors; for
each shard a folder shard-00000, ... as vitrine/ann/segment.py describes. Schema 1 had the files of a segment
without a graph beside these two; it is still read. The parent `embeddings` has the encoder of pictures.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitrine.ann import cursor, filters
from vitrine.ann.arrays import refuse
from vitrine.ann.attributes import Attributes, Value
from vitrine.ann.cursor import Cursor
from vitrine.ann.filters import Filter
from vitrine.ann.hashing import Floats, Hashing
from vitrine.ann.segment import UNUSED, Allowed, Ids, Pool, Segment
from vitrine.errors import FieldError, NotFoundError

KIND = "binary-index"
SCHEMA = 2

MAX_K = 1000
MAX_OVER_RECALL = 100
MAX_EF = 10_000
MAX_TAKEN = 10_000  # results of one query over all its pages
EF = 64

_POOLED = 1 << 18  # candidates held at a time: those of one block of queries
_GATHERED = 1 << 14  # candidates whose vectors are gathered at a time: 8 MB at 128 dimensions
_MORE = 4  # times the candidates, where those looked at gave too few results

Codes = NDArray[np.uint64]
Between = Callable[[str], None]


def _nothing(stage: str) -> None:
    """Between stages, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Options:
    """Of a search; every query of a call has the same ones, but a cursor of its own.

    k:           results a query, or groups
    over_recall: candidates re-ranked, as a multiple of k; None for the index's default
    ef:          nodes of the graph that a walk keeps; None for the index's default
    exact:       compare with all codes instead of walking the graph
    filter:      items that may be results
    group_by:    at most one result for each value of this attribute, and none for items without it
    radius:      bits that a result's code is at most away
    cursors:     one a query: results go on after these
    """

    k: int
    over_recall: int | None = None
    ef: int | None = None
    exact: bool = False
    filter: Filter | None = None
    group_by: str | None = None
    radius: int | None = None
    cursors: Sequence[bytes] | None = None

    @property
    def plain(self) -> bool:
        """Whether the k best of the pool are the answer."""
        return self.group_by is None and self.radius is None and not self.cursors


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
    cursors: list[bytes]
    visited: int

    def slices(self) -> Iterator[slice]:
        """Where each query's results are."""
        end = 0
        for count in self.counts.tolist():
            yield slice(end, end + count)
            end += count


@dataclass(frozen=True, slots=True)
class Items:
    """Indexed items: ids uint64 (n,), unit vectors float32 (n, dim), and each one's attributes."""

    ids: Ids
    vectors: Floats
    attributes: list[dict[str, Value]]


@dataclass(frozen=True, eq=False)
class View:
    """A segment as one generation shows it.

    alive: its rows that are items of the index; None where all are
    """

    segment: Segment
    alive: Allowed | None = None

    @cached_property
    def items(self) -> int:
        """Items of the index in it."""
        return len(self.segment.ids) if self.alive is None else self.alive.count


@dataclass(frozen=True, slots=True)
class _Found:
    """Candidates of one query over all views, in the order of results."""

    views: NDArray[np.intp]
    rows: NDArray[np.uint32]
    ids: Ids
    keys: NDArray[np.float32]  # ascending: a distance, or a cosine made negative
    distances: NDArray[np.uint32]

    def at(self, chosen: NDArray[Any] | slice) -> "_Found":
        return _Found(
            self.views[chosen], self.rows[chosen], self.ids[chosen], self.keys[chosen], self.distances[chosen]
        )


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
        between: called with "encode", "graph" and "rerank" after each block of queries has gone through that stage;
                 what it raises ends the search

        Raises FieldError("vectors" | "k" | "over_recall" | "ef" | "filter" | "group_by" | "radius" | "cursors").
        """
        checked = self._checked(options, len(queries))
        queries = unit_queries(queries, self.dim)
        parts = []
        for block in _blocks(len(queries), checked.k * (checked.over_recall or 1)):
            codes = np.ascontiguousarray(self.hashing.encode(queries[block]).T)
            between("encode")
            parts.append(self._block(codes, queries[block], _part(checked, block), threads, between))
        return _joined(parts, scored=True, grouped=options.group_by is not None)

    def search_codes(
        self, codes: Codes, options: Options, *, threads: int = 1, between: Between = _nothing
    ) -> Hits:
        """The k items of nearest code; codes: uint64 (q, words). Raises FieldError, "codes" among the fields."""
        checked = replace(self._checked(options, len(codes)), over_recall=1)
        if codes.ndim != 2 or codes.shape[1] * 64 != self.bits:
            raise FieldError("codes", f"has shape {codes.shape}; codes here have {self.bits // 64} words")
        parts = []
        for block in _blocks(len(codes), checked.k):
            part = np.ascontiguousarray(codes[block])
            parts.append(self._block(part, None, _part(checked, block), threads, between))
        return _joined(parts, scored=False, grouped=options.group_by is not None)

    def search_items(self, ids: Ids, options: Options, *, threads: int = 1, between: Between = _nothing) -> Hits:
        """The k items of highest cosine to each of these, which is left out itself.

        Raises FieldError as `search_vectors` does, and NotFoundError naming an id that is not indexed.
        """
        found = self.get(ids)
        if len(found.ids) < len(ids):
            missing = ids[~np.isin(ids, found.ids)][0]
            raise NotFoundError(f"item_ids: {missing} is not in the index")
        parts = []
        for i, (item, vector) in enumerate(zip(ids.tolist(), found.vectors, strict=True)):
            others = filters.Not(filters.Items(frozenset([item])))
            own = replace(options, cursors=options.cursors[i : i + 1]) if options.cursors else options
            if not options.plain or options.filter is not None:
                both = others if options.filter is None else filters.All((options.filter, others))
                parts.append(
                    self.search_vectors(vector[None], replace(own, filter=both), threads=threads, between=between)
                )
                continue
            hits = self.search_vectors(
                vector[None], replace(own, k=min(own.k + 1, MAX_K)), threads=threads, between=between
            )
            parts.append(self._without(hits, item, own.k))
        return _joined(parts, scored=True, grouped=options.group_by is not None)

    def get(self, ids: Ids) -> Items:
        """Those of the items that are indexed, in the order asked for; an id asked for twice comes twice."""
        rows, views = np.zeros(len(ids), np.int64), np.full(len(ids), -1)
        for number, view in enumerate(self.segments):
            here, places = view.segment.rows_of(ids)
            if view.alive is not None:
                alive = view.alive.rows[here]
                here, places = here[alive], places[alive]
            rows[places], views[places] = here, number
        vectors = np.empty((len(ids), self.dim), np.float32)
        attributes: list[dict[str, Value]] = [{} for _ in ids]
        for place in np.flatnonzero(views >= 0):
            segment = self.segments[views[place]].segment
            vectors[place] = segment.vectors[rows[place]]
            attributes[place] = segment.attributes.row(rows[place])
        found = np.flatnonzero(views >= 0)
        return Items(ids[found], vectors[found], [attributes[place] for place in found])

    def matching(self, wanted: Filter) -> Ids:
        """Ids of all items that a filter holds for, ascending. Raises FieldError("filter")."""
        filters.check(wanted, self.kinds)
        allowed = [view.segment.allowed(wanted, view.alive) for view in self.segments]
        found = [view.segment.ids[each.rows] for view, each in zip(self.segments, allowed, strict=True) if each]
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

    def _checked(self, options: Options, queries: int) -> Options:
        """With the defaults filled in."""
        over_recall = self.over_recall if options.over_recall is None else options.over_recall
        if not 1 <= options.k <= MAX_K:
            raise FieldError("k", f"is {options.k}; use 1 to {MAX_K}")
        if not 1 <= over_recall <= MAX_OVER_RECALL:
            raise FieldError("over_recall", f"is {over_recall}; use 1 to {MAX_OVER_RECALL}")
        ef = self.ef if options.ef is None else options.ef
        if not 1 <= ef <= MAX_EF:
            raise FieldError("ef", f"is {ef}; use 1 to {MAX_EF}")
        if options.radius is not None and not 0 <= options.radius <= self.bits:
            raise FieldError("radius", f"is {options.radius}; codes here are 0 to {self.bits} bits apart")
        if options.cursors and len(options.cursors) != queries:
            raise FieldError("cursors", f"has {len(options.cursors)}; give one for each of {queries} queries")
        if options.filter is not None:
            filters.check(options.filter, self.kinds)
        if options.group_by is not None and options.group_by not in self.kinds:
            there = ", ".join(sorted(self.kinds)) or "none"
            raise FieldError("group_by", f"no item has an attribute {options.group_by!r}; there are: {there}")
        return replace(options, over_recall=over_recall, ef=ef)

    def _block(
        self, codes: Codes, queries: Floats | None, options: Options, threads: int, between: Between
    ) -> Hits:
        """One block of queries; those whose candidates gave too few results look at more, each by itself."""
        assert options.over_recall is not None
        allowed = [view.segment.allowed(options.filter, view.alive) for view in self.segments]
        total = sum(
            len(view.segment.ids) if each is None else each.count
            for view, each in zip(self.segments, allowed, strict=True)
        )
        pool = min(options.k * options.over_recall, max(1, total))
        pools = self._pools(codes, pool, options, allowed, threads)
        between("graph")
        visited = sum(each.visited for each in pools)
        answers = []
        for i in range(len(codes)):
            after = (
                cursor.decode(options.cursors[i], self.generation)
                if options.cursors and options.cursors[i]
                else None
            )
            query = None if queries is None else queries[i]
            looked = pool
            found = self._found(pools, i, query, pool)
            chosen = self._chosen(found, options, after)
            while len(chosen) < options.k and looked < total and not self._beyond(found, options):
                if after is not None and after.taken >= MAX_TAKEN:
                    raise FieldError(
                        "cursors", f"{MAX_TAKEN:,} results were given; narrow the search with a filter"
                    )
                looked = min(total, looked * _MORE)
                more = self._pools(codes[i : i + 1], looked, options, allowed, threads)
                visited += sum(each.visited for each in more)
                found = self._found(more, 0, query, looked)
                chosen = self._chosen(found, options, after)
            answers.append((found.at(chosen), after))
        between("rerank")
        return self._hits(answers, options, queries is not None, visited, total)

    def _pools(
        self, codes: Codes, pool: int, options: Options, allowed: Sequence[Allowed | None], threads: int
    ) -> list[Pool]:
        """Candidates in each view."""
        assert options.ef is not None
        return [
            view.segment.nearest(codes, pool, options.ef, exact=options.exact, allowed=each, threads=threads)
            for view, each in zip(self.segments, allowed, strict=True)
        ]

    def _found(self, pools: Sequence[Pool], i: int, query: NDArray[np.float32] | None, pool: int) -> _Found:
        """The candidates of query i over all views, the `pool` of nearest codes, in the order of results."""
        kept = [each.rows[i] for each in pools]
        kept = [row if len(row) == 0 or row[-1] != UNUSED else row[row != UNUSED] for row in kept]
        if len(pools) == 1:  # most indexes, most of the time
            (row,) = kept
            views, ids = np.zeros(len(row), np.intp), self.segments[0].segment.ids[row]
            distances = pools[0].distances[i, : len(row)]
        else:
            distances = np.concatenate([p.distances[i, : len(row)] for p, row in zip(pools, kept, strict=True)])
            views = np.repeat(np.arange(len(pools)), [len(row) for row in kept])
            ids = np.concatenate([view.segment.ids[row] for view, row in zip(self.segments, kept, strict=True)])
            row = np.concatenate(kept)
        if len(pools) > 1 and len(row) > pool:
            nearest = np.sort(np.lexsort((ids, distances))[:pool])
            views, row, ids, distances = views[nearest], row[nearest], ids[nearest], distances[nearest]
        keys = distances.astype(np.float32) if query is None else -self._cosines(views, row, query)
        order = np.lexsort((ids, keys))
        return _Found(views[order], row[order], ids[order], keys[order], distances[order])

    def _chosen(self, found: _Found, options: Options, after: Cursor | None) -> NDArray[np.intp]:
        """Places of the results among the candidates."""
        if options.plain:
            return np.arange(min(options.k, len(found.ids)))
        wanted = np.ones(len(found.ids), bool)
        if options.radius is not None:
            wanted &= found.distances <= options.radius
        if options.group_by is not None:
            wanted &= self._first_of_groups(found, wanted, options.group_by)
        if after is not None:
            wanted &= (found.keys > after.key) | ((found.keys == after.key) & (found.ids > after.item_id))
        return np.flatnonzero(wanted)[: options.k]

    def _beyond(self, found: _Found, options: Options) -> bool:
        """Whether the candidates reach beyond the radius, so that more of them are no results."""
        return options.radius is not None and len(found.ids) > 0 and int(found.distances.max()) > options.radius

    def _first_of_groups(self, found: _Found, wanted: NDArray[np.bool_], name: str) -> NDArray[np.bool_]:
        first = np.zeros(len(found.ids), bool)
        seen: set[Value] = set()
        for place in np.flatnonzero(wanted):
            value = self._attribute(found, place, name)
            if value is not None and value not in seen:
                seen.add(value)
                first[place] = True
        return first

    def _attribute(self, found: _Found, place: int | np.intp, name: str) -> Value | None:
        column = self.segments[found.views[place]].segment.attributes.columns.get(name)
        return None if column is None else column.value(int(found.rows[place]))

    def _cosines(
        self, views: NDArray[np.intp], rows: NDArray[np.uint32], query: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Cosines float32 (len(rows),); equal vectors get equal ones wherever they stand; not so BLAS."""
        cosines = np.empty(len(rows), np.float32)
        for number, view in enumerate(self.segments):
            chosen = slice(None) if len(self.segments) == 1 else views == number
            some = rows[chosen]
            into = cosines if len(self.segments) == 1 else np.empty(len(some), np.float32)
            for start in range(0, len(some), _GATHERED):
                part = slice(start, start + _GATHERED)
                np.einsum("nd,d->n", view.segment.vectors[some[part]], query, out=into[part])
            if len(self.segments) > 1:
                cosines[chosen] = into
        return cosines

    def _hits(
        self, answers: list[tuple[_Found, Cursor | None]], options: Options, scored: bool, visited: int, total: int
    ) -> Hits:
        groups: list[Value] | None = None
        if options.group_by is not None:
            values = [self._attribute(f, i, options.group_by) for f, _ in answers for i in range(len(f.ids))]
            groups = [value for value in values if value is not None]
        keys = np.concatenate([found.keys for found, _ in answers])
        return Hits(
            np.array([len(found.ids) for found, _ in answers], np.uint32),
            np.concatenate([found.ids for found, _ in answers]),
            -keys if scored else None,
            np.concatenate([found.distances for found, _ in answers]),
            groups,
            [self._cursor(found, after, options, total) for found, after in answers],
            visited,
        )

    def _cursor(self, found: _Found, after: Cursor | None, options: Options, total: int) -> bytes:
        taken = (after.taken if after else 0) + len(found.ids)
        if len(found.ids) < options.k or taken >= total:
            return b""
        return Cursor(self.generation, float(found.keys[-1]), int(found.ids[-1]), taken).encode()

    def _without(self, hits: Hits, item: int, k: int) -> Hits:
        """The hits of one query less an item, at most k."""
        assert hits.scores is not None
        kept = np.flatnonzero(hits.ids != item)[:k]
        ids, scores, distances = hits.ids[kept], hits.scores[kept], hits.distances[kept]
        more = len(kept) == k and k < self.items - 1
        after = Cursor(self.generation, float(-scores[-1]), int(ids[-1]), k).encode() if more else b""
        return Hits(np.array([len(ids)], np.uint32), ids, scores, distances, None, [after], hits.visited)


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
    norms = np.sqrt((wide * wide).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        what = "is all zero" if norms[bad[0]] == 0 else "has a value that is not finite"
        raise FieldError("vectors", f"row {bad[0]} {what}")
    unit: Floats = (wide / norms[:, None]).astype(np.float32)
    return unit


def _blocks(queries: int, pool: int) -> list[slice]:
    """Slices of the queries whose pools together are bounded, so that a large batch takes bounded memory."""
    step = max(1, _POOLED // max(1, pool))
    return [slice(start, min(start + step, queries)) for start in range(0, queries, step)]


def _part(options: Options, block: slice) -> Options:
    return replace(options, cursors=options.cursors[block]) if options.cursors else options


def _joined(parts: list[Hits], *, scored: bool, grouped: bool) -> Hits:
    if len(parts) == 1:
        return parts[0]
    empty = np.empty(0, np.uint32)
    return Hits(
        np.concatenate([empty, *(part.counts for part in parts)]),
        np.concatenate([np.empty(0, np.uint64), *(part.ids for part in parts)]),
        np.concatenate([np.empty(0, np.float32), *(p.scores for p in parts if p.scores is not None)])
        if scored
        else None,
        np.concatenate([empty, *(part.distances for part in parts)]),
        [value for part in parts for value in part.groups or []] if grouped else None,
        [each for part in parts for each in part.cursors],
        sum(part.visited for part in parts),
    )


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
