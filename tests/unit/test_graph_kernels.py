"""The kernels of the graph's build and search against their obvious versions, on every instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine import native

UNUSED = 2**32 - 1
kernels = pytest.mark.parametrize("kernel", native.supported_kernels())


def codes_of(n: int, words: int, seed: int, spread: int = 64) -> np.ndarray:
    """Clustered codes (n, words): a few centres with bits flipped, so that distances tie often."""
    draws = np.random.default_rng(seed)
    centres = draws.integers(0, 2**64, (max(1, n // spread), words), dtype=np.uint64)
    flips = draws.integers(0, 2**64, (n, words), dtype=np.uint64) & draws.integers(
        0, 2**64, (n, words), dtype=np.uint64
    )
    flips &= draws.integers(0, 2**64, (n, words), dtype=np.uint64)
    return centres[draws.integers(0, len(centres), n)] ^ flips


def distances_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """All Hamming distances (len(a), len(b))."""
    return np.bitwise_count(a[:, None] ^ b[None]).sum(axis=2, dtype=np.int64)


def pruned(codes: np.ndarray, candidates: list[tuple[int, int]], limit: int, slack: int) -> list[tuple[int, int]]:
    """Relative neighbourhood, word for word: candidates are (distance, node)."""
    kept: list[tuple[int, int]] = []
    for distance, node in sorted(set(candidates)):
        if len(kept) == limit:
            break
        if not any(distances_of(codes[[r]], codes[[node]])[0, 0] * slack < distance * 100 for _, r in kept):
            kept.append((distance, node))
    return kept


@kernels
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 200),
    st.sampled_from([1, 4, 5, 8, 16]),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_the_nearest_centres_are_those_of_a_sort(kernel, n, centres, words, fan, seed):
    codes, found = codes_of(n, words, seed), codes_of(centres, words, seed + 1)
    fan = min(fan, centres)
    expected = np.argsort(distances_of(codes, found), axis=1, kind="stable")[:, :fan]
    np.testing.assert_array_equal(native.assign_centres(codes, found, fan, kernel=kernel), expected)


@kernels
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 150), st.sampled_from([4, 8]), st.integers(1, 31), st.integers(0, 99))
def test_in_one_leaf_a_members_neighbours_are_the_nearest_of_all(kernel, n, words, neighbours, seed):
    codes = codes_of(n, words, seed)
    members = np.sort(np.random.default_rng(seed).permutation(n)[: max(1, n * 2 // 3)]).astype(np.uint32)
    nodes, distances, leaves = native.cluster_neighbours(
        codes, members, 4, 256, neighbours, 31, seed, kernel=kernel
    )
    all_distances = distances_of(codes[members], codes[members])
    for i in range(len(members)):
        order = [j for j in np.argsort(all_distances[i], kind="stable") if j != i][:neighbours]
        assert nodes[i, : len(order)].tolist() == members[order].tolist()
        assert distances[i, : len(order)].tolist() == all_distances[i, order].tolist()
        assert (nodes[i, len(order) :] == UNUSED).all()
    assert (leaves == 0).all()


@kernels
@pytest.mark.parametrize("overlap", [1, 4])
def test_overlapping_leaves_give_true_distances_sorted_and_each_once(kernel, overlap):
    codes = codes_of(3000, 8, 1)
    members = np.arange(3000, dtype=np.uint32)
    found = native.cluster_neighbours(codes, members, overlap, 100, 8, 24, 7, kernel=kernel)
    nodes, distances, leaves = found
    for i in range(0, 3000, 37):
        used = nodes[i][nodes[i] != UNUSED]
        assert len(set(used.tolist())) == len(used) > 0
        assert i not in used
        expected = distances_of(codes[[i]], codes[used])[0]
        assert distances[i, : len(used)].tolist() == expected.tolist()
        assert sorted(zip(expected.tolist(), used.tolist(), strict=True)) == list(
            zip(expected.tolist(), used.tolist(), strict=True)
        )
    assert np.bincount(leaves).max() <= 100
    for one, other in zip(
        found, native.cluster_neighbours(codes, members, overlap, 100, 8, 24, 7, kernel="portable"), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_codes_that_no_centre_parts_are_cut_by_order():
    codes = np.zeros((500, 4), np.uint64)
    nodes, distances, leaves = native.cluster_neighbours(codes, np.arange(500, dtype=np.uint32), 4, 100, 8, 24, 0)
    assert np.bincount(leaves).max() <= 100
    assert (nodes[:, :8] != UNUSED).all()
    assert (distances[:, :8] == 0).all()


@kernels
@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 80), st.sampled_from([2, 8]), st.integers(1, 20), st.sampled_from([100, 120]), st.integers(0, 99)
)
def test_merging_prunes_the_union_by_relative_neighbourhood(kernel, n, words, degree, slack, seed):
    codes, draws = codes_of(n, words, seed, 16), np.random.default_rng(seed)
    nodes, distances, _ = native.cluster_neighbours(codes, np.arange(n, dtype=np.uint32), 2, 8, 4, 12, seed)
    others, other_distances, _ = native.cluster_neighbours(
        codes, np.arange(n, dtype=np.uint32), 2, 16, 4, 12, seed + 1
    )
    shuffled = draws.permutation(2 * n)
    lists, list_distances = np.vstack([nodes, others])[shuffled], np.vstack([distances, other_distances])[shuffled]
    at = np.argsort(shuffled)
    places = np.stack([at[:n], at[n:]], axis=1)
    begin = n // 3
    merged, merged_distances = native.merge_lists(
        codes, lists, list_distances, places, begin, n, degree, slack, kernel=kernel
    )
    for i in range(begin, n):
        union = [
            (int(d), int(q))
            for place in places[i]
            for q, d in zip(lists[place], list_distances[place], strict=True)
            if q != UNUSED
        ]
        expected = pruned(codes, union, degree, slack)
        assert merged[i - begin][: len(expected)].tolist() == [q for _, q in expected]
        assert merged_distances[i - begin][: len(expected)].tolist() == [d for d, _ in expected]
        assert (merged[i - begin][len(expected) :] == UNUSED).all()


@kernels
@settings(max_examples=20, deadline=None)
@given(st.integers(2, 80), st.integers(2, 12), st.integers(0, 99))
def test_capped_edges_are_both_directions_pruned_where_they_are_too_many(kernel, n, degree, seed):
    codes = codes_of(n, 4, seed, 16)
    forward, distances, _ = native.cluster_neighbours(codes, np.arange(n, dtype=np.uint32), 2, 16, 6, 12, seed)
    begin, end = n // 4, n - n // 5
    indptr, sources, source_distances = native.incoming(forward, distances, begin, end)
    edges = native.cap_edges(
        codes, forward, distances, indptr, sources, source_distances, begin, end, degree, 1, 100, kernel=kernel
    )
    for node in range(begin, end):
        both = {int(q) for q in forward[node] if q != UNUSED} | {p for p in range(n) if node in forward[p]}
        candidates = sorted((int(distances_of(codes[[node]], codes[[q]])[0, 0]), q) for q in both)
        if len(candidates) > degree - 1:
            candidates = pruned(codes, candidates, degree - 1, 100)
        row = edges[node - begin]
        assert row[: len(candidates)].tolist() == [q for _, q in candidates]
        assert (row[len(candidates) :] == UNUSED).all()


def ring(n: int, degree: int = 16) -> np.ndarray:
    """Edges of a graph in which every node leads to the next two."""
    edges = np.full((n, degree), UNUSED, np.uint32)
    edges[:, 0], edges[:, 1] = (np.arange(n) + 1) % n, (np.arange(n) + 2) % n
    return edges


@kernels
@pytest.mark.parametrize("words", [1, 4, 8, 16])
def test_a_walk_with_room_for_all_is_an_exact_search(kernel, words):
    codes, queries = codes_of(400, words, 3), codes_of(9, words, 4)
    graph = native.Graph(codes, ring(400), np.array([0, 7, 300], np.uint32))
    nodes, distances, counts, scored = graph.walk(queries, 1000, kernel=kernel)
    expected = distances_of(queries, codes)
    order = np.argsort(expected, axis=1, kind="stable")
    np.testing.assert_array_equal(nodes, order)
    np.testing.assert_array_equal(distances, np.take_along_axis(expected, order, axis=1))
    assert (counts == 400).all()
    assert (scored <= 400).all()


def walked(codes, edges, entries, query, ef):
    """Best-first search that remembers every node: the list of (distance, node)."""
    distances = distances_of(query[None], codes)[0]
    seen = set(sorted(entries.tolist(), key=lambda node: (distances[node], node))[:8])
    best, expanded = sorted((int(distances[node]), node) for node in seen)[:ef], set()
    while left := [entry for entry in best if entry not in expanded]:
        expanded.add(left[0])
        new = {int(node) for node in edges[left[0][1]]} - seen
        seen |= new
        best = sorted([*best, *((int(distances[node]), node) for node in new)])[:ef]
    return best


@kernels
@pytest.mark.parametrize("ef", [1, 8, 30, 100])
def test_a_walk_finds_what_one_that_forgets_no_node_finds(kernel, ef):
    """The table of seen nodes has fewer slots than there are nodes to see."""
    draws = np.random.default_rng(8)
    codes, queries = draws.integers(0, 2**64, (6000, 1), dtype=np.uint64), codes_of(5, 1, 9)
    edges = draws.integers(0, 6000, (6000, 32), dtype=np.uint32)
    entries = np.arange(0, 6000, 100, np.uint32)
    nodes, distances, counts, _ = native.Graph(codes, edges, entries).walk(queries, ef, 3, kernel=kernel)
    for i, query in enumerate(queries):
        expected = walked(codes, edges, entries, query, ef)
        assert (
            list(zip(distances[i, : counts[i]].tolist(), nodes[i, : counts[i]].tolist(), strict=True)) == expected
        )


def test_an_answer_is_the_same_alone_interleaved_on_threads_and_on_every_instruction_set():
    codes, queries = codes_of(2000, 8, 5), codes_of(50, 8, 6)
    draws = np.random.default_rng(7)
    graph = native.Graph(
        codes, draws.integers(0, 2000, (2000, 16), dtype=np.uint32), np.arange(0, 2000, 50, np.uint32)
    )
    alone = [
        np.concatenate(parts)
        for parts in zip(*(graph.walk(queries[i : i + 1], 20) for i in range(50)), strict=True)
    ]
    for kernel in native.supported_kernels():
        for turns, threads in ((1, 1), (4, 1), (7, 3), (16, 2)):
            for one, other in zip(alone, graph.walk(queries, 20, turns, threads, kernel=kernel), strict=True):
                np.testing.assert_array_equal(one, other)


@kernels
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 99), st.floats(0, 1))
def test_a_walk_returns_allowed_nodes_alone_and_all_of_the_nearest_where_its_list_has_room(kernel, ef, seed, share):
    codes, queries = codes_of(300, 4, seed), codes_of(5, 4, seed + 1)
    allowed = np.random.default_rng(seed).random(300) < share
    graph = native.Graph(codes, ring(300), np.array([0, 7], np.uint32))
    nodes, distances, counts, _ = graph.walk(queries, 300, allowed=allowed, kernel=kernel)
    expected = distances_of(queries, codes)
    for i in range(5):
        order = [node for node in np.argsort(expected[i], kind="stable") if allowed[node]]
        assert nodes[i, : counts[i]].tolist() == order
        assert distances[i, : counts[i]].tolist() == expected[i][order].tolist()
    some, _, found, _ = graph.walk(queries, ef, allowed=allowed, most=300, kernel=kernel)
    few, _, fewer, _ = graph.walk(queries, ef, 3, allowed=allowed, most=ef + 5, kernel=kernel)
    for i in range(5):
        assert found[i] <= min(ef, allowed.sum())
        assert fewer[i] <= ef
        assert allowed[some[i, : found[i]]].all()
        assert allowed[few[i, : fewer[i]]].all()
        places = [(expected[i][node], node) for node in some[i, : found[i]]]
        assert places == sorted(set(places))


def test_a_walk_among_many_nodes_that_are_not_allowed_finds_what_a_longer_list_would():
    codes = codes_of(2050, 8, 5, 3000)
    codes, queries = codes[:2000], codes[2000:]
    edges = np.argsort(distances_of(codes, codes), axis=1, kind="stable")[:, 1:17].astype(np.uint32)
    graph = native.Graph(codes, edges, np.arange(0, 2000, 20, np.uint32))
    allowed = np.random.default_rng(1).random(2000) < 0.2
    exact = distances_of(queries, codes)
    found, _, counts, scored = graph.walk(queries, 40, allowed=allowed, most=2000)
    hits = 0
    for i in range(50):
        assert counts[i] == 40
        nearest = [node for node in np.argsort(exact[i], kind="stable") if allowed[node]][:10]
        hits += len(set(found[i].tolist()) & set(nearest))
    assert hits >= 0.8 * 50 * 10
    assert scored.mean() < 1900


@kernels
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.sampled_from([1, 4, 5, 8, 16]), st.integers(1, 50), st.integers(0, 99))
def test_the_nearest_of_chosen_rows_are_those_of_a_sort(kernel, n, words, k, seed):
    codes, queries = codes_of(n, words, seed), codes_of(3, words, seed + 1)
    rows = np.flatnonzero(np.random.default_rng(seed).random(n) < 0.5).astype(np.uint32)
    found, distances = native.hamming_rows(codes, rows, queries, k, kernel=kernel)
    expected = distances_of(queries, codes[rows])
    order = np.argsort(expected, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found, rows[order])
    np.testing.assert_array_equal(distances, np.take_along_axis(expected, order, axis=1))


@pytest.mark.parametrize("rows", [[0, 10], [3, 2], [3, 3]])
def test_rows_that_do_not_ascend_or_are_not_there_are_refused(rows):
    with pytest.raises(ValueError, match="rows: must ascend and be below 10, but entry 1"):
        native.hamming_rows(codes_of(10, 4, 1), np.array(rows, np.uint32), codes_of(1, 4, 2), 3)


def test_what_the_entries_do_not_reach_gets_an_edge_from_a_near_node_with_room():
    codes = codes_of(300, 4, 8)
    edges = np.full((300, 16), UNUSED, np.uint32)
    for part in (range(100), range(100, 200), range(200, 300)):  # three rings, one of them full
        edges[list(part), 0] = np.roll(list(part), -1)
    edges[0:100, 1:] = np.arange(100)[:, None]
    edges[50:60, 5:] = UNUSED
    graph = native.Graph(codes, edges, np.array([0], np.uint32))
    added = graph.missing_edges(32)
    assert len(added) == 2
    assert all(50 <= source < 60 or source >= 100 for source in added[:, 0])
    for source, target in added.tolist():
        edges[source, np.argmax(edges[source] == UNUSED)] = target
    assert len(native.Graph(codes, edges, np.array([0], np.uint32)).missing_edges(32)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": np.full((10, 16), 10, np.uint32)}, "edges: entry 0 is 10"),
        ({"entries": np.array([10], np.uint32)}, "entries: entry 0 is 10"),
        ({"entries": np.array([], np.uint32)}, "entries"),
        ({"edges": ring(9)}, "edges: expected shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(change, message):
    arrays = {"codes": codes_of(10, 4, 1), "edges": ring(10), "entries": np.array([0], np.uint32)} | change
    with pytest.raises(ValueError, match=message):
        native.Graph(*arrays.values())
