"""Candidates of a search in one segment: by a walk of its graph, or exactly, where that costs less or is asked for.

Either way they are ordered by (distance, id), and as many as there can be, whatever a filter and deletions leave.
What is weighed here, in nanoseconds, was measured by `python -m benchmarks.filtered` (docs/ann.md, "Search").
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann.segment import Allowed, Pool, Rows, Segment, SegmentGraph

TURNS = 4  # walks that take turns on a thread

# Of a node that a walk keeps, of a row of a scan, of a row picked out of all.
_WALK_NS, _SCAN_NS, _PICK_NS = 300, 1.5, 8
_GROWTH = 4  # of a walk's list beyond what it needs where allowed nodes are spread evenly
_TIES = 64  # candidates beyond those asked for, so that the last distance is seen whole
_MORE = 4  # times the candidates, where they were too few
_COPIED = 1 << 16  # rows whose codes are copied at a time

Codes = NDArray[np.uint64]
Distances = NDArray[np.uint32]


def nearest(
    segment: Segment,
    codes: Codes,
    count: int,
    ef: int,
    *,
    exact: bool = False,
    allowed: Allowed | None = None,
    threads: int = 1,
) -> Pool:
    """The `count` nearest rows of each code, or all that are allowed where they are fewer.

    codes: uint64 (q, words)
    ef:    nodes that a walk keeps, where the graph is walked; `exact` compares with all rows instead
    """
    count = min(count, len(segment.ids) if allowed is None else allowed.count)
    if count == 0:
        empty = np.empty((len(codes), 0), np.uint32)
        return Pool(empty, empty, 0)
    if segment.scanner is not None:
        found = segment.scanner.nearest(codes, count, allowed)
        if found is not None:
            return found
    if exact or segment.graph is None:
        return _scan(segment, codes, count, allowed, threads)
    most = _nodes_worth(segment, segment.graph, max(ef, count), allowed)
    if most == 0:
        return _scan(segment, codes, count, allowed, threads)
    return _walk(segment, segment.graph, codes, count, max(ef, count), most, allowed, threads)


def _nodes_worth(segment: Segment, graph: SegmentGraph, wanted: int, allowed: Allowed | None) -> int:
    """Nodes that a walk's list may grow to; 0 where a scan costs less than the walk."""
    n = len(segment.ids)
    count = n if allowed is None else allowed.count
    scan_ns = min(n * _SCAN_NS, count * _PICK_NS)
    if wanted * n / count * _WALK_NS > scan_ns:
        return 0
    return min(graph.nodes, -(-_GROWTH * wanted * n // count))


def _walk(
    segment: Segment,
    graph: SegmentGraph,
    codes: Codes,
    count: int,
    wanted: int,
    most: int,
    allowed: Allowed | None,
    threads: int,
) -> Pool:
    """By the graph; the queries whose walk finds too few scan."""
    if allowed is None:
        nodes, distances, counts, scored = graph.walker.walk(codes, wanted, TURNS, threads)
    else:
        nodes, distances, counts, scored = graph.walker.walk(
            codes, wanted, TURNS, threads, allowed=allowed.nodes, most=most
        )
    visited = int(np.add.reduce(scored))
    if np.minimum.reduce(counts) == nodes.shape[1]:
        if graph.one_each:
            return _by_row(graph.node_items[nodes], distances, count, visited)
        begins = graph.starts[nodes]
        if (graph.starts[nodes + np.uint32(1)] - begins == 1).all():
            return _by_row(graph.node_items[begins], distances, count, visited)
    rows, away = (np.empty((len(codes), count), np.uint32) for _ in range(2))
    short = []
    for i, found in enumerate(counts.tolist()):
        best = _rows_of(graph, nodes[i, :found], distances[i, :found], count, allowed)
        if found < nodes.shape[1] or best.rows.shape[1] < count:
            short.append(i)
        else:
            rows[i], away[i] = best.rows[0], best.distances[0]
    if short:
        scanned = _scan(segment, codes[short], count, allowed, threads)
        rows[short], away[short] = scanned.rows, scanned.distances
        visited += scanned.visited
    return Pool(rows, away, visited)


def _scan(segment: Segment, codes: Codes, count: int, allowed: Allowed | None, threads: int) -> Pool:
    """Exactly: all rows, or those that are allowed; count is at most as many as there are."""
    n = len(segment.ids)
    if allowed is None:
        return Pool(*native.hamming_topk(segment.codes, codes, count, threads), len(codes) * n)
    if allowed.count * _PICK_NS > n * _SCAN_NS:
        return _scan_whole(segment, codes, count, allowed, threads)
    if segment.graph is not None:
        return _scan_nodes(segment.graph, codes, count, allowed)
    return _scan_copies(segment, codes, count, allowed, threads)


def _scan_whole(segment: Segment, codes: Codes, count: int, allowed: Allowed, threads: int) -> Pool:
    """Of the nearest of all rows, those that are allowed."""
    n = len(segment.ids)
    asked = min(n, count * n // allowed.count + _TIES)
    while True:
        rows, distances = native.hamming_topk(segment.codes, codes, asked, threads)
        may = allowed.rows[rows]
        if asked == n or (np.count_nonzero(may, axis=1) >= count).all():
            order = np.argsort(~may, axis=1, kind="stable")[:, :count]
            return Pool(_taken(rows, order), _taken(distances, order), len(codes) * n)
        asked = min(n, asked * _MORE)


def _scan_nodes(graph: SegmentGraph, codes: Codes, count: int, allowed: Allowed) -> Pool:
    """Rows of the allowed nodes, which are compared one by one."""
    chosen = allowed.ordered_nodes
    asked = min(len(chosen), count + _TIES)
    while True:
        nodes, distances = native.hamming_rows(graph.codes, chosen, codes, asked)
        if graph.one_each:
            best = [_by_row(graph.node_items[nodes], distances, count, 0)]
        else:
            best = [_rows_of(graph, nodes[i], distances[i], count, allowed) for i in range(len(codes))]
        if asked == len(chosen) or all(each.rows.shape[1] == count for each in best):
            rows, away = (np.concatenate(of) for of in zip(*((p.rows, p.distances) for p in best), strict=True))
            # Rows tie otherwise than nodes do, so the last distance has to be seen whole.
            if asked == len(chosen) or (away[:, -1] < distances[:, -1]).all():
                return Pool(rows, away, len(codes) * len(chosen))
        asked = min(len(chosen), asked * _MORE)


def _scan_copies(segment: Segment, codes: Codes, count: int, allowed: Allowed, threads: int) -> Pool:
    """Copies of the allowed rows' codes, some at a time."""
    rows, distances = (np.empty((len(codes), 0), np.uint32) for _ in range(2))
    for start in range(0, allowed.count, _COPIED):
        chosen = allowed.ordered[start : start + _COPIED]
        copied = np.take(segment.codes, chosen, axis=1)
        found, away = native.hamming_topk(copied, codes, min(count, len(chosen)), threads)
        best = _by_row(
            np.concatenate([rows, chosen[found]], axis=1), np.concatenate([distances, away], axis=1), count, 0
        )
        rows, distances = best.rows, best.distances
    return Pool(rows, distances, len(codes) * allowed.count)


def _by_row(rows: Rows, distances: Distances, count: int, visited: int) -> Pool:
    """The first `count` by (distance, row), which is by (distance, id)."""
    keys = distances.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= rows
    keys.sort(axis=1)
    keys = keys[:, :count]
    return Pool(keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32), visited)


def _rows_of(graph: SegmentGraph, nodes: Rows, distances: Distances, count: int, allowed: Allowed | None) -> Pool:
    """Up to `count` allowed rows of one query's nodes, by (distance, row)."""
    begins, ends = graph.starts[nodes], graph.starts[nodes + np.uint32(1)]
    if allowed is None:
        ends = np.minimum(ends, begins + count)  # of a node with many items the first suffice
    sizes = ends - begins
    places = np.repeat(begins - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())
    rows, away = graph.node_items[places], np.repeat(distances, sizes)
    if allowed is not None:
        may = allowed.rows[rows]
        rows, away = rows[may], away[may]
    return _by_row(rows[None], away[None], count, 0)


def _taken(values: Rows, order: NDArray[np.intp]) -> Rows:
    """values[i, order[i]] for each i; np.take_along_axis without its cost."""
    taken: Rows = values.take(order + np.arange(len(values))[:, None] * values.shape[1])
    return taken
