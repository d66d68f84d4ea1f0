"""The graph itself: edges both ways, every node made reachable, nodes in their final order."""

from pathlib import Path

import numpy as np

from vitrine import native
from vitrine.ann.build import files
from vitrine.ann.build.parameters import Parameters

SPARE = 2  # slots of a row that only the repair may fill
_WALK = 32  # the repair's list: it links a lost node to one of so many near ones
_CHUNK = 1 << 16


def prepare(folder: Path, parameters: Parameters) -> None:
    """Creates the array that `both_ways` fills."""
    files.create(folder, "edges", (len(files.read(folder, "ordered")), parameters.degree), np.uint32)


def both_ways(folder: Path, begin: int, end: int, parameters: Parameters) -> None:
    """forward -> edges of nodes begin to end: those they chose and those that chose them, capped by pruning."""
    forward, distances = files.read(folder, "forward"), files.read(folder, "forward_distances")
    indptr, sources, source_distances = native.incoming(forward, distances, begin, end)
    capped = native.cap_edges(
        files.read(folder, "ordered"), forward, distances, indptr, sources, source_distances, begin, end,
        parameters.degree, SPARE, parameters.slack,
    )  # fmt: skip
    files.write(folder, "edges", slice(begin, end), capped)


def choose_entries(folder: Path, parameters: Parameters) -> None:
    """entries (e,) uint32: sampled evenly over the order of clusters, so that every region has its share."""
    nodes = len(files.read(folder, "ordered"))
    count = min(nodes, parameters.entries)
    files.save(folder, "entries", (np.arange(count, dtype=np.int64) * nodes // count).astype(np.uint32))


def find_missing(folder: Path) -> None:
    """edges, entries -> missing (m, 2) uint32: the edges without which the entries do not lead to every node."""
    graph = native.Graph(*(files.read(folder, name) for name in ("ordered", "edges", "entries")))
    files.save(folder, "missing", graph.missing_edges(_WALK))


def connect(folder: Path) -> None:
    """edges, missing -> edges with the missing ones; those that a killed run had added already stay as they are."""
    missing = files.read(folder, "missing")
    if not len(missing):
        return
    edges = np.load(folder / "edges.npy", mmap_mode="r+", allow_pickle=False)
    for source, target in missing.tolist():
        row = edges[source]
        if target not in row:
            row[np.argmax(row == files.UNUSED)] = target
    edges.flush()


def reorder(folder: Path) -> None:
    """Nodes by (home cluster, home leaf): what a search visits together lies together.

    Writes graph_codes, graph_edges, graph_entries and node_items_starts, node_items: the items of each node.
    """
    ordered, edges = files.read(folder, "ordered"), files.read(folder, "edges")
    places, leaves = files.read(folder, "places"), files.read(folder, "leaves")
    nodes, degree = edges.shape
    starts = files.read(folder, "cluster_starts")
    home_leaf = np.asarray(leaves)[np.asarray(places[:, 0])]
    # Home clusters ascend already: a leaf's number within its cluster decides, then the node.
    cluster = np.searchsorted(starts, np.asarray(places[:, 0]), side="right")
    order = np.lexsort((home_leaf, cluster))
    number = np.empty(nodes + 1, np.uint32)
    number[order] = np.arange(nodes, dtype=np.uint32)
    number[nodes] = files.UNUSED
    codes = files.create(folder, "graph_codes", ordered.shape, np.uint64)
    turned = files.create(folder, "graph_edges", (nodes, degree), np.uint32)
    for start in range(0, nodes, _CHUNK):
        rows = order[start : start + _CHUNK]
        codes[start : start + len(rows)] = ordered[rows]
        turned[start : start + len(rows)] = number[np.minimum(edges[rows], nodes)]
    files.save(folder, "graph_entries", np.sort(number[np.asarray(files.read(folder, "entries"))]))
    old = np.asarray(files.read(folder, "old"))
    of_old = np.empty(nodes, np.uint32)
    of_old[old] = number[:nodes]
    item_nodes = of_old[np.asarray(files.read(folder, "item_nodes"))]
    items = np.argsort(item_nodes, kind="stable").astype(np.uint32)
    item_starts = np.zeros(nodes + 1, np.int64)
    np.cumsum(np.bincount(item_nodes, minlength=nodes), out=item_starts[1:])
    files.save(folder, "node_items", items)
    files.save(folder, "node_items_starts", item_starts)
