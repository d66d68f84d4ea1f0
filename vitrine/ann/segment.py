"""A set of items that never changes: ids, codes, vectors, attributes, and a graph over the codes where it has one.

Files of a segment's folder (docs/ann.md, "Files"): ids.npy uint64 (n,), ascending; codes.npy uint64 (words, n),
word-major; vectors.npy float32 (n, dim), unit length; with a graph graph_codes.npy uint64 (nodes, words),
graph_edges.npy uint32 (nodes, degree), graph_entries.npy uint32 (e,), node_items.npy uint32 (n,) and
node_starts.npy int64 (nodes + 1,); where there are attributes attributes.arrow;
where there are re-rank codes coarse.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann import filters
from vitrine.ann.arrays import check_unit_vectors, map_array, refuse
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Executor, Parameters, build
from vitrine.ann.filters import Filter, Mask
from vitrine.ann.hashing import Codes, Floats, Hashing

UNUSED = 2**32 - 1  # a row that is none
TURNS = 4  # walks that take turns on a thread
ATTRIBUTES_FILE = "attributes.arrow"

_MASKS = 16  # masks kept a segment; each is two bytes an item
_GROWTH = 4  # of a walk's list beyond what it needs where allowed nodes are spread evenly

Ids = NDArray[np.uint64]
Rows = NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class SegmentGraph:
    """The graph over the segment's codes, each different one a node.

    codes:      uint64 (nodes, words); edges: uint32 (nodes, degree); entries: uint32 (e,)
    node_items: uint32 (n,), rows by node; node i has those from starts[i] to starts[i + 1], ascending
    """

    codes: NDArray[np.uint64]
    edges: NDArray[np.uint32]
    entries: NDArray[np.uint32]
    node_items: Rows
    starts: NDArray[np.int64]
    walker: native.Graph = field(init=False)

    def __post_init__(self) -> None:
        """Raises ValueError where edges or entries name nodes that are not there."""
        object.__setattr__(self, "walker", native.Graph(self.codes, self.edges, self.entries))

    @property
    def nodes(self) -> int:
        """Different codes."""
        return len(self.codes)

    @cached_property
    def node_of(self) -> NDArray[np.uint32]:
        """The node of each row, uint32 (n,)."""
        nodes = np.empty(len(self.node_items), np.uint32)
        nodes[self.node_items] = np.repeat(np.arange(self.nodes, dtype=np.uint32), np.diff(self.starts))
        return nodes


@dataclass(frozen=True, eq=False)
class Allowed:
    """Rows of a segment that may be results.

    rows:     bool (n,)
    count:    how many are
    nodes:    bool (nodes,), nodes that have one of them; None without a graph
    filtered: those of them that meet a filter
    """

    rows: Mask
    count: int
    nodes: Mask | None
    filtered: dict[Filter, Allowed] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def ordered(self) -> Rows:
        """The rows, ascending."""
        return np.flatnonzero(self.rows).astype(np.uint32)

    @cached_property
    def ordered_nodes(self) -> Rows:
        """The nodes, ascending."""
        assert self.nodes is not None
        return np.flatnonzero(self.nodes).astype(np.uint32)


@dataclass(frozen=True, slots=True)
class Pool:
    """Candidates of each of q queries, nearest first, equal distances by id.

    rows:      uint32 (q, p), UNUSED from a query's count on
    distances: uint32 (q, p)
    visited:   codes compared with, for all queries together
    """

    rows: Rows
    distances: NDArray[np.uint32]
    visited: int


@dataclass(frozen=True, eq=False)
class Segment:
    """Items under ids that are each once; ascending, except in a live index's newest rows.

    codes:   uint64 (words, n), word-major
    vectors: float32 (n, dim), unit length
    """

    ids: Ids
    codes: Codes
    vectors: Floats
    attributes: Attributes
    graph: SegmentGraph | None = None
    _masks: dict[Filter, Allowed] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def ascending(self) -> bool:
        """Whether ids ascend."""
        return bool((self.ids[1:] > self.ids[:-1]).all())

    def rows_of(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows, places): rows of those of the ids that are here, and where among `ids` each stands."""
        order = None if self.ascending else np.argsort(self.ids, kind="stable")
        known = self.ids if order is None else self.ids[order]
        at = np.searchsorted(known, ids)
        at[at == len(known)] = 0
        places = np.flatnonzero(known[at] == ids) if len(known) else np.empty(0, np.int64)
        rows = at[places]
        return (rows if order is None else order[rows]), places

    def allowed(self, wanted: Filter | None, alive: Allowed | None) -> Allowed | None:
        """Rows that meet a filter and are alive; None where all are. Kept with the segment, or with `alive`."""
        if wanted is None:
            return alive
        kept = self._masks if alive is None else alive.filtered
        made = kept.get(wanted)
        if made is not None:
            return made
        if alive is None:
            rows = filters.mask(wanted, self)
        else:
            of_all = self.allowed(wanted, None)
            assert of_all is not None
            rows = of_all.rows & alive.rows
        nodes = None
        if self.graph is not None:
            by_node = rows[self.graph.node_items]
            one_each = self.graph.nodes == len(rows)
            nodes = by_node if one_each else np.logical_or.reduceat(by_node, self.graph.starts[:-1])
        made = Allowed(rows, int(np.count_nonzero(rows)), nodes)
        if len(kept) >= _MASKS:
            kept.clear()
        kept[wanted] = made
        return made

    def nearest(
        self,
        codes: NDArray[np.uint64],
        pool: int,
        ef: int,
        *,
        exact: bool,
        allowed: Allowed | None,
        threads: int = 1,
    ) -> Pool:
        """The `pool` nearest rows of each code, or all allowed ones where they are fewer.

        codes: uint64 (q, words)
        ef:    nodes that a walk keeps, where the graph is walked; `exact` compares with all rows instead
        """
        if self.graph is None:
            return self._scan(codes, pool, allowed, threads)
        if not exact:
            walked = self._walk(self.graph, codes, pool, ef, allowed, threads)
            if walked is not None:
                return walked
        if allowed is None:
            return self._scan(codes, pool, None, threads)
        return self._among(self.graph, codes, pool, allowed)

    def _scan(self, codes: NDArray[np.uint64], pool: int, allowed: Allowed | None, threads: int) -> Pool:
        """All rows, word-major."""
        source, rows = self.codes, None
        if allowed is not None and allowed.count < len(self.ids):
            rows = allowed.ordered
            source = np.ascontiguousarray(self.codes[:, rows])
        count = source.shape[1]
        if count == 0:
            empty = np.empty((len(codes), 0), np.uint32)
            return Pool(empty, empty, 0)
        # In a segment whose ids do not ascend, all at the last distance compete by id, not by row.
        kept = min(pool, count) if self.ascending else count
        found, distances = native.hamming_topk(source, codes, kept, threads)
        if rows is not None:
            found = rows[found]
        if not self.ascending:
            order = np.lexsort((self.ids[found], distances), axis=1)[:, :pool]
            found, distances = np.take_along_axis(found, order, 1), np.take_along_axis(distances, order, 1)
        return Pool(found, distances, len(codes) * count)

    def _among(self, graph: SegmentGraph, codes: NDArray[np.uint64], pool: int, allowed: Allowed) -> Pool:
        """The allowed rows alone."""
        nodes, distances = native.hamming_rows(graph.codes, allowed.ordered_nodes, codes, max(1, pool))
        counts = np.full(len(codes), nodes.shape[1], np.uint32)
        return self._rows(graph, nodes, distances, counts, pool, allowed, len(codes) * len(allowed.ordered_nodes))

    def _walk(
        self,
        graph: SegmentGraph,
        codes: NDArray[np.uint64],
        pool: int,
        ef: int,
        allowed: Allowed | None,
        threads: int,
    ) -> Pool | None:
        """By the graph; None where looking at all allowed rows costs less, or a walk found too few of them."""
        wanted = max(ef, pool)
        if wanted >= graph.nodes:
            return None
        if allowed is None:
            nodes, distances, counts, scored = graph.walker.walk(codes, wanted, TURNS, threads)
            return self._rows(graph, nodes, distances, counts, pool, None, int(scored.sum()))
        assert allowed.nodes is not None
        wanted = min(wanted, len(allowed.ordered_nodes))
        # A walk compares with about 50 / 6 times the nodes that it has to keep (docs/ann.md, "Filters").
        if wanted == 0 or allowed.count * allowed.count <= 50 * wanted * graph.nodes:
            return None
        most = _GROWTH * wanted * graph.nodes // len(allowed.ordered_nodes)
        nodes, distances, counts, scored = graph.walker.walk(
            codes, wanted, TURNS, threads, allowed=allowed.nodes, most=min(most, graph.nodes)
        )
        if (counts < wanted).any():
            return None
        return self._rows(graph, nodes, distances, counts, pool, allowed, int(scored.sum()))

    def _rows(
        self,
        graph: SegmentGraph,
        nodes: Rows,
        distances: NDArray[np.uint32],
        counts: NDArray[np.uint32],
        pool: int,
        allowed: Allowed | None,
        visited: int,
    ) -> Pool:
        """Nodes (q, m), of which counts[i] are found, as the rows that they stand for."""
        one_each = graph.nodes == len(self.ids)
        if one_each:
            nodes, distances = nodes[:, :pool], distances[:, :pool]
            rows = graph.node_items[nodes]
            rows[np.arange(nodes.shape[1]) >= counts[:, None]] = UNUSED
            return Pool(rows, distances, visited)
        found = [
            self._rows_of_nodes(graph, nodes[i, : counts[i]], distances[i, : counts[i]], pool, allowed)
            for i in range(len(nodes))
        ]
        return _padded(found, visited)

    def _rows_of_nodes(
        self, graph: SegmentGraph, nodes: Rows, distances: NDArray[np.uint32], pool: int, allowed: Allowed | None
    ) -> tuple[Rows, NDArray[np.uint32]]:
        """Up to `pool` rows of one query's nodes."""
        begins, ends = graph.starts[nodes], graph.starts[nodes + 1]
        if allowed is None:
            ends = np.minimum(ends, begins + pool)  # of a node with many items the first suffice
        sizes = ends - begins
        places = np.repeat(begins - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
        rows, away = graph.node_items[places], np.repeat(distances, sizes)
        if allowed is not None:
            kept = allowed.rows[rows]
            rows, away = rows[kept], away[kept]
        order = np.lexsort((rows, away))[:pool]
        return rows[order], away[order]

    @classmethod
    def build(
        cls,
        ids: Ids,
        vectors: Floats,
        hashing: Hashing,
        attributes: Attributes,
        parameters: Parameters,
        folder: Path,
        *,
        executor: Executor | None = None,
        memory_mb: int = 4_000,
        progress: Callable[[str, float], None] = lambda stage, share: None,
    ) -> Self:
        """A segment with a graph, in memory; ids ascending.

        folder: for the build's files, and resuming; not needed afterwards
        """
        codes = hashing.encode(vectors)
        built = build(
            np.ascontiguousarray(codes.T),
            folder,
            parameters,
            executor=executor,
            memory_mb=memory_mb,
            progress=progress,
        )
        graph = SegmentGraph(
            np.array(built.codes), np.array(built.edges), np.array(built.entries), np.array(built.items),
            np.array(built.starts),
        )  # fmt: skip
        return cls(ids, codes, vectors, attributes, graph)

    def write(self, folder: Path) -> None:
        """The segment's files, which `load` maps."""
        arrays: dict[str, NDArray[Any]] = {"ids": self.ids, "codes": self.codes, "vectors": self.vectors}
        if self.graph is not None:
            arrays |= {
                "graph_codes": self.graph.codes, "graph_edges": self.graph.edges,
                "graph_entries": self.graph.entries,
                "node_items": self.graph.node_items, "node_starts": self.graph.starts,
            }  # fmt: skip
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        if self.attributes.columns:
            self.attributes.write(folder / ATTRIBUTES_FILE)

    @classmethod
    def load(cls, folder: Path, bits: int, dim: int) -> Self:
        """The files of `write`, mapped and checked; ArtifactError names one that is missing, cut or unfit."""
        codes = map_array(folder / "codes.npy", np.uint64, 2)
        ids = map_array(folder / "ids.npy", np.uint64, 1)
        vectors = map_array(folder / "vectors.npy", np.float32, 2)
        n = len(ids)
        _expect("codes.npy", codes, (bits // 64, n))
        _expect("vectors.npy", vectors, (n, dim))
        if n == 0:
            refuse("ids.npy", "has no items")
        if ids[0] == 0 or not (ids[1:] > ids[:-1]).all():
            refuse("ids.npy", "is not ascending ids from 1")
        check_unit_vectors("vectors.npy", vectors)
        graph = _load_graph(folder, n, bits // 64) if (folder / "graph_edges.npy").exists() else None
        file = folder / ATTRIBUTES_FILE
        attributes = Attributes.load(file, n) if file.exists() else Attributes.none(n)
        return cls(ids, codes, vectors, attributes, graph)


def _load_graph(folder: Path, n: int, words: int) -> SegmentGraph:
    codes = map_array(folder / "graph_codes.npy", np.uint64, 2)
    edges = map_array(folder / "graph_edges.npy", np.uint32, 2)
    entries = map_array(folder / "graph_entries.npy", np.uint32, 1)
    items = map_array(folder / "node_items.npy", np.uint32, 1)
    starts = map_array(folder / "node_starts.npy", np.int64, 1)
    nodes = len(codes)
    _expect("graph_codes.npy", codes, (nodes, words))
    _expect("graph_edges.npy", edges, (nodes, edges.shape[1]))
    _expect("node_items.npy", items, (n,))
    _expect("node_starts.npy", starts, (nodes + 1,))
    if starts[0] != 0 or starts[-1] != n or not (starts[1:] > starts[:-1]).all():
        refuse("node_starts.npy", f"does not ascend from 0 to {n}")
    seen = np.zeros(n, bool)
    seen[items[items < n]] = True
    if not seen.all():
        refuse("node_items.npy", f"does not name each of {n} rows once")
    try:
        return SegmentGraph(codes, edges, entries, items, starts)
    except ValueError as error:
        argument = str(error).partition(":")[0]
        refuse(f"graph_{argument}.npy", f"does not fit the graph: {error}")


def _expect(file: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        refuse(file, f"has shape {array.shape}, not {shape}")


def _padded(found: list[tuple[Rows, NDArray[np.uint32]]], visited: int) -> Pool:
    """Lists of different lengths as one pool."""
    width = max((len(rows) for rows, _ in found), default=0)
    rows, distances = np.full((len(found), width), UNUSED, np.uint32), np.zeros((len(found), width), np.uint32)
    for i, (some, away) in enumerate(found):
        rows[i, : len(some)], distances[i, : len(some)] = some, away
    return Pool(rows, distances, visited)
