"""Candidates of one segment by each of the ways to find them, against numpy over all rows."""

from unittest.mock import patch

import numpy as np
import pytest
from ann_kit import unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.ann import hashing
from vitrine.ann import nearest as nearest_module
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters
from vitrine.ann.nearest import nearest
from vitrine.ann.segment import Allowed, Segment

DIM, N = 8, 600
FUNCTION = hashing.fit(unit_vectors(0, 300, DIM), 64, seed=0)

# What each way is forced by.
WAYS = {
    "weighed": {"_TIES": 1},
    "all rows": {"_PICK_NS": 1e9, "_TIES": 0},
    "picked rows": {"_PICK_NS": 0, "_TIES": 0},
    "copies": {"_PICK_NS": 0, "_COPIED": 37},
}


@pytest.fixture(scope="module")
def segments(tmp_path_factory):
    """By whether codes repeat and whether there is a graph."""
    made = {}
    for repeated in (False, True):
        vectors = unit_vectors(1, N, DIM)
        if repeated:
            vectors = vectors[np.random.default_rng(2).integers(0, N // 3, N)]
        ids, attributes = np.arange(1, N + 1, dtype=np.uint64), Attributes.none(N)
        made[repeated, True] = Segment.build(
            ids, vectors, FUNCTION, attributes, Parameters(leaf=32), tmp_path_factory.mktemp("graph")
        )
        made[repeated, False] = Segment(ids, FUNCTION.encode(vectors), vectors, attributes)
    return made


def allowed_of(segment: Segment, share: float, seed: int) -> Allowed | None:
    """A random share of the rows; all of them as None."""
    if share == 1:
        return None
    rows = np.random.default_rng(seed).random(N) < share
    nodes = None
    if segment.graph is not None:
        nodes = np.logical_or.reduceat(rows[segment.graph.node_items], segment.graph.starts[:-1])
        if not segment.graph.one_each:
            nodes[seed % len(nodes)] = True  # one that may have no allowed row
    return Allowed(rows, int(rows.sum()), nodes)


def brute(segment: Segment, codes, allowed: Allowed | None, count: int):
    """(rows, distances) of each code."""
    may = np.arange(N) if allowed is None else np.flatnonzero(allowed.rows)
    away = np.bitwise_count(segment.codes[:, None, may] ^ codes.T[:, :, None]).astype(np.uint32).sum(axis=0)
    order = np.lexsort((np.broadcast_to(may, away.shape), away), axis=1)[:, :count]
    return may[order], np.take_along_axis(away, order, 1)


def asked(seed: int, queries: int):
    return np.ascontiguousarray(FUNCTION.encode(unit_vectors(100 + seed, queries, DIM)).T)


@settings(deadline=None, max_examples=150)
@given(
    way=st.sampled_from(list(WAYS)),
    repeated=st.booleans(),
    graph=st.booleans(),
    share=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]),
    count=st.integers(1, 700),
    seed=st.integers(0, 100),
    queries=st.integers(1, 4),
)
def test_exact_candidates_are_the_nearest_by_distance_and_row(
    segments, way, repeated, graph, share, count, seed, queries
):
    segment = segments[repeated, graph]
    allowed, codes = allowed_of(segment, share, seed), asked(seed, queries)
    with patch.multiple(nearest_module, **WAYS[way]):
        pool = nearest(segment, codes, count, 10, exact=True, allowed=allowed)
    rows, distances = brute(segment, codes, allowed, count)
    assert np.array_equal(pool.rows, rows)
    assert np.array_equal(pool.distances, distances)


@settings(deadline=None, max_examples=150)
@given(
    repeated=st.booleans(),
    share=st.sampled_from([0.0, 0.02, 0.3, 0.9, 1.0]),
    count=st.integers(1, 60),
    ef=st.integers(1, 100),
    seed=st.integers(0, 100),
    queries=st.integers(1, 4),
)
def test_a_walk_gives_as_many_as_there_can_be_all_of_them_allowed(
    segments, repeated, share, count, ef, seed, queries
):
    segment = segments[repeated, True]
    allowed, codes = allowed_of(segment, share, seed), asked(seed, queries)
    with patch.object(nearest_module, "_WALK_NS", 0):
        pool = nearest(segment, codes, count, ef, allowed=allowed)
    may, _ = brute(segment, codes, allowed, N)
    expected, distances = brute(segment, codes, allowed, count)
    assert pool.rows.shape == expected.shape
    for row, away, there in zip(pool.rows, pool.distances, may, strict=True):
        assert set(row) <= set(there)
        assert len(set(row)) == len(row)
        assert np.array_equal(np.lexsort((row, away)), np.arange(len(row)))
    own = np.bitwise_count(segment.codes[:, pool.rows] ^ codes.T[:, :, None]).astype(np.uint32).sum(axis=0)
    assert np.array_equal(own, pool.distances)
    if ef >= 60:
        assert (pool.distances <= distances[:, -1:]).mean() >= 0.9 if distances.size else True


def test_walks_find_nearly_all(segments):
    segment, codes = segments[False, True], asked(7, 200)
    with patch.object(nearest_module, "_WALK_NS", 0):
        for share in (0.3, 0.9, 1.0):
            allowed = allowed_of(segment, share, 3)
            pool = nearest(segment, codes, 10, 60, allowed=allowed)
            assert (pool.distances <= brute(segment, codes, allowed, 10)[1][:, -1:]).mean() > 0.99


def test_what_a_walk_cannot_find_is_scanned(segments):
    """The only allowed nodes are those farthest from the query."""
    segment, codes = segments[False, True], asked(3, 1)
    rows = np.zeros(N, bool)
    rows[brute(segment, codes, None, N)[0][0, -40:]] = True
    allowed = Allowed(rows, 40, rows[segment.graph.node_items])
    with patch.multiple(nearest_module, _WALK_NS=0, _GROWTH=1):
        pool = nearest(segment, codes, 10, 10, allowed=allowed)
    assert np.array_equal(pool.rows, brute(segment, codes, allowed, 10)[0])
    assert pool.visited >= 40
