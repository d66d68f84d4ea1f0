"""A set of items that never changes: ids, codes, vectors, attributes, and a graph over the codes where it has one.

Files of a segment's folder (docs/ann.md, "Files"): ids.npy uint64 (n,), ascending; codes.npy uint64 (words, n),
word-major; vectors.npy float32 (n, dim), unit length; with a graph graph_codes.npy uint64 (nodes, words),
graph_edges.npy uint32 (nodes, degree), graph_entries.npy uint32 (e,), node_items.npy uint32 (n,) and
node_starts.npy int64 (nodes + 1,); where there are attributes attributes.arrow;
where there are re-rank codes coarse.safetensors.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann import filters
from vitrine.ann.arrays import check_unit_vectors, map_array, refuse
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Executor, Parameters, build
from vitrine.ann.coarse import Coarse
from vitrine.ann.filters import Filter, Mask
from vitrine.ann.hashing import Codes, Floats, Hashing

UNUSED = 2**32 - 1  # the distance of a candidate that is none
GRAPH_FILES = ("graph_codes.npy", "graph_edges.npy", "graph_entries.npy", "node_items.npy", "node_starts.npy")
ATTRIBUTES_FILE = "attributes.arrow"
COARSE_FILE = "coarse.safetensors"
COARSE_BITS = 4  # a dimension (docs/hashing.md, "Re-rank codes")

_MASK_BYTES = 1 << 27  # of masks kept a segment, each two bytes an item; but 4 masks at least, and 256 at most

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
    def one_each(self) -> bool:
        """Whether no code repeats."""
        return len(self.codes) == len(self.node_items)

    @cached_property
    def node_of(self) -> NDArray[np.uint32]:
        """The node of each row, uint32 (n,)."""
        nodes = np.empty(len(self.node_items), np.uint32)
        nodes[self.node_items] = np.repeat(np.arange(self.nodes, dtype=np.uint32), np.diff(self.starts))
        return nodes


class Masks:
    """What filters allow, for the filters that were asked for last; safe for threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Filter, Allowed] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, wanted: Filter, make: Callable[[], Allowed]) -> Allowed:
        """What is kept for it, or else made. Two threads may make the same."""
        with self._lock:
            found = self._kept.get(wanted)
            if found is not None:
                self._kept.move_to_end(wanted)
                return found
        made = make()
        with self._lock:
            self._kept[wanted] = made
            if len(self._kept) > max(4, min(256, _MASK_BYTES // (1 + 2 * len(made.rows)))):
                self._kept.popitem(last=False)
        return made


@dataclass(frozen=True, eq=False)
class Allowed:
    """Rows of a segment that may be results.

    rows:     bool (n,)
    count:    how many are
    nodes:    bool (nodes,), nodes that have one of them; where codes repeat perhaps others; None without a graph
    filtered: those of them that meet a filter
    """

    rows: Mask
    count: int
    nodes: Mask | None
    filtered: Masks = field(default_factory=lambda: Masks(), init=False, repr=False)

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
    """Candidates of each of q queries, nearest first, equal distances by id; all queries have as many.

    rows:      uint32 (q, p)
    distances: uint32 (q, p)
    visited:   codes compared with, for all queries together
    """

    rows: Rows
    distances: NDArray[np.uint32]
    visited: int


class Scanner(Protocol):
    """Another machine's way to the nearest rows, which a segment prefers."""

    def nearest(self, codes: NDArray[np.uint64], pool: int, allowed: Allowed | None) -> Pool | None:
        """As `vitrine.ann.nearest.nearest`, exactly; None where it cannot."""


@dataclass(frozen=True, eq=False, repr=False)
class Segment:
    """Items.

    ids:     uint64 (n,), ascending
    codes:   uint64 (words, n), word-major
    vectors: float32 (n, dim), unit length
    coarse:  re-rank codes of the vectors
    scanner: compares codes instead of the graph and the CPU
    """

    ids: Ids
    codes: Codes
    vectors: Floats
    attributes: Attributes
    graph: SegmentGraph | None = None
    coarse: Coarse | None = None
    scanner: Scanner | None = None
    _masks: Masks = field(default_factory=Masks, init=False, repr=False)

    def __repr__(self) -> str:
        return f"Segment({len(self.ids):,} items, {'a' if self.graph is not None else 'no'} graph)"

    def rows_of(self, ids: Ids) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows, places): rows of those of the ids that are here, and where among `ids` each stands."""
        if not len(self.ids):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        at = np.searchsorted(self.ids, ids)
        at[at == len(self.ids)] = 0
        places = np.flatnonzero(self.ids[at] == ids)
        return at[places], places

    def allowed(self, wanted: Filter | None, alive: Allowed | None) -> Allowed | None:
        """Rows that meet a filter and are alive; None where all are. Kept with the segment, or with `alive`."""
        if wanted is None:
            return alive
        of_all = self._masks.get(wanted, lambda: self._meeting(wanted))
        return of_all if alive is None else alive.filtered.get(wanted, lambda: _both(of_all, alive))

    def _meeting(self, wanted: Filter) -> Allowed:
        rows = filters.mask(wanted, self)
        nodes = None
        if self.graph is not None:
            by_node = rows[self.graph.node_items]
            nodes = by_node if self.graph.one_each else np.logical_or.reduceat(by_node, self.graph.starts[:-1])
        return Allowed(rows, int(np.count_nonzero(rows)), nodes)

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
        return cls(ids, codes, vectors, attributes, graph, Coarse.encode(vectors, COARSE_BITS))

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
        if self.coarse is not None:
            self.coarse.save(folder / COARSE_FILE)

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
        check_unit_vectors("vectors.npy", vectors, chunks=4)
        there = any((folder / name).exists() for name in GRAPH_FILES)
        graph = _load_graph(folder, n, bits // 64) if there else None
        file = folder / ATTRIBUTES_FILE
        attributes = Attributes.load(file, n) if file.exists() else Attributes.none(n)
        coarse = None
        if (folder / COARSE_FILE).exists():
            coarse = Coarse.load(folder / COARSE_FILE)
            if (coarse.items, coarse.dim) != (n, dim):
                refuse(COARSE_FILE, f"has {coarse.items:,} codes of {coarse.dim} dimensions, not {n:,} of {dim}")
        return cls(ids, codes, vectors, attributes, graph, coarse)


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


def _both(one: Allowed, other: Allowed) -> Allowed:
    """What both allow; a node may have rows of each and none of both."""
    rows = one.rows & other.rows
    nodes = None if one.nodes is None or other.nodes is None else one.nodes & other.nodes
    return Allowed(rows, int(np.count_nonzero(rows)), nodes)
