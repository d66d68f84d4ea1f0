"""Nodes in their final order, by (home cluster, home leaf): what a search visits together lies together."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.build import files
from vitrine.ann.build.sorting import places as counted_places


def number(folder: Path) -> None:
    """Writes order (nodes,) uint32, the node of each final row; final (nodes,) uint32, its inverse; and creates
    the arrays that `turn` and `items` fill, graph_codes, graph_edges, node_items and node_items_starts."""
    places, leaves = files.read(folder, "places"), files.read(folder, "leaves")
    homes = files.read(folder, "home_starts").tolist()  # home clusters ascend already: leaves decide within one
    nodes, words = files.read(folder, "ordered").shape
    order = files.create(folder, "order", (nodes,), np.uint32)
    final = files.create(folder, "final", (nodes,), np.uint32)
    for low, high in pairwise(homes):
        by_leaf = low + np.argsort(leaves[places[low:high, 0]], kind="stable")
        order[low:high] = by_leaf
        final[by_leaf] = np.arange(low, high, dtype=np.uint32)
    files.save(folder, "graph_entries", np.sort(final[files.read(folder, "entries")]))
    files.create(folder, "graph_codes", (nodes, words), np.uint64)
    files.create(folder, "graph_edges", files.read(folder, "edges").shape, np.uint32)
    files.create(folder, "node_items", (len(files.read(folder, "item_nodes")),), np.uint32)
    files.create(folder, "node_items_starts", (nodes + 1,), np.int64)


def turn(folder: Path, begin: int, end: int) -> None:
    """ordered, edges -> graph_codes, graph_edges, rows begin to end of the final order."""
    ordered, edges, order, final = (files.read(folder, name) for name in ("ordered", "edges", "order", "final"))
    codes, turned = files.change(folder, "graph_codes"), files.change(folder, "graph_edges")
    for start in range(begin, end, files.CHUNK):
        rows = order[start : min(start + files.CHUNK, end)]
        codes[start : start + len(rows)] = ordered[rows]
        old = edges[rows]
        unused = old == files.UNUSED
        old[unused] = 0
        new = final[old]
        new[unused] = files.UNUSED
        turned[start : start + len(rows)] = new


def items(folder: Path, begin: int, end: int) -> None:
    """item_nodes -> node_items, node_items_starts of nodes begin to end of the final order."""
    item_nodes, numbers, final = (files.read(folder, name) for name in ("item_nodes", "numbers", "final"))
    found, starts = files.change(folder, "node_items"), files.change(folder, "node_items_starts")

    def chunks() -> Iterator[tuple[int, NDArray[np.int64]]]:
        for start in range(0, len(item_nodes), files.CHUNK):
            yield start, final[numbers[item_nodes[start : start + files.CHUNK]]].astype(np.int64) - begin

    before, counts = 0, np.zeros(end - begin, np.int64)
    for _, nodes in chunks():
        before += int(np.count_nonzero(nodes < 0))
        counts += np.bincount(nodes[(nodes >= 0) & (nodes < end - begin)], minlength=end - begin)
    next_place = before + np.cumsum(counts)
    starts[begin + 1 : end + 1] = next_place
    next_place -= counts
    for start, nodes in chunks():
        inside = np.flatnonzero((nodes >= 0) & (nodes < end - begin))
        found[counted_places(nodes[inside], next_place)] = start + inside
