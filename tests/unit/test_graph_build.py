"""The graph's build: the same bytes however it is run, every node found, and what goes wrong said."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from vitrine import native
from vitrine.ann.build import Built, Parameters, Threads, build
from vitrine.ann.build import neighbours as neighbours_stage
from vitrine.errors import FieldError

SMALL = Parameters(leaf=256, entries=64)


def clustered(n: int, words: int = 8, seed: int = 0, queries: int = 0) -> np.ndarray:
    """Codes of Gaussian clusters, about 100 of each: signs of projections. The last `queries` are held out."""
    draws = np.random.default_rng(seed)
    centres = draws.standard_normal((max(1, (n - queries) // 100), 16))
    planes = draws.standard_normal((16, words * 64))
    points = np.vstack(
        [
            centres[draws.integers(0, len(centres), m)] + 0.5 * draws.standard_normal((m, 16))
            for m in (n - queries, queries)
        ]
    )
    signs = points @ planes >= 0
    return np.packbits(signs, axis=1, bitorder="little").view("<u8")


def digest(graph: Built) -> str:
    """Of all arrays of a graph."""
    parts = (graph.codes, graph.edges, graph.entries, graph.items, graph.starts)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return clustered(30_000)


@pytest.fixture(scope="module")
def graph(rows, tmp_path_factory) -> Built:
    return build(rows, tmp_path_factory.mktemp("graph"), SMALL)


def test_workers_memory_and_resumption_do_not_change_a_byte(rows, graph, tmp_path, monkeypatch):
    expected = digest(graph)
    assert digest(build(rows, tmp_path / "two", SMALL, executor=Threads(2))) == expected
    assert digest(build(rows, tmp_path / "four", SMALL, executor=Threads(4), memory_mb=1)) == expected

    find, calls = neighbours_stage.find, []

    def killed(folder: Path, cluster: int, parameters: Parameters) -> None:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append((folder, cluster))
        find(folder, cluster, parameters)

    monkeypatch.setattr(neighbours_stage, "find", killed)
    with pytest.raises(KeyboardInterrupt):
        build(rows, tmp_path / "killed", SMALL)
    resumed = []
    monkeypatch.setattr(neighbours_stage, "find", lambda *args: (resumed.append(args[:2]), find(*args))[1])
    assert digest(build(rows, tmp_path / "killed", SMALL, executor=Threads(2))) == expected
    assert set(resumed).isdisjoint(calls)


@pytest.mark.parametrize("kernel", native.supported_kernels())
def test_instruction_sets_do_not_change_a_byte(kernel, tmp_path):
    import os
    import subprocess
    import sys

    code = (
        "import sys, pathlib\n"
        "from tests.unit.test_graph_build import SMALL, build, clustered, digest\n"
        "print(digest(build(clustered(5000), pathlib.Path(sys.argv[1]), SMALL)))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "forced")],
        env={**os.environ, "VITRINE_KERNEL": kernel}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ran.stdout.strip() == digest(build(clustered(5000), tmp_path / "own", SMALL))


def test_a_constant_added_to_every_code_changes_no_edge(rows, graph, tmp_path):
    constant = np.random.default_rng(1).integers(0, 2**64, rows.shape[1], dtype=np.uint64)
    turned = build(rows ^ constant, tmp_path / "xor", SMALL)
    np.testing.assert_array_equal(turned.edges, graph.edges)
    np.testing.assert_array_equal(turned.codes, graph.codes ^ constant)


def test_every_node_can_be_reached_and_an_indexed_code_finds_itself(rows, graph):
    searched = native.Graph(graph.codes, graph.edges, graph.entries)
    assert len(searched.missing_edges(8)) == 0
    nodes, distances, _, _ = searched.walk(np.ascontiguousarray(rows[::50]), 64)
    found = [graph.items[graph.starts[node] : graph.starts[node + 1]] for node in nodes[:, 0]]
    assert np.mean([row in items for row, items in zip(range(0, len(rows), 50), found, strict=True)]) > 0.999
    assert np.mean(distances[:, 0] == 0) > 0.999


def test_recall_is_high_at_a_small_list(rows, graph):
    queries = np.ascontiguousarray(clustered(30_200, queries=200)[30_000:])
    truth = np.sort(np.bitwise_count(queries[:, None] ^ rows[None]).sum(axis=2, dtype=np.int32), axis=1)[:, 9]
    _, distances, _, _ = native.Graph(graph.codes, graph.edges, graph.entries).walk(queries, 100)
    assert np.mean(distances[:, :10] <= truth[:, None]) > 0.98


def test_rows_of_edges_hold_no_node_twice_nor_their_own_and_end_in_unused_slots(graph):
    for node, row in enumerate(graph.edges[::17]):
        used = row[row != 2**32 - 1]
        assert len(set(used.tolist())) == len(used) > 0
        assert node * 17 not in used
        assert (row[len(used) :] == 2**32 - 1).all()


def test_identical_codes_are_one_node_with_all_their_items(tmp_path):
    rows = np.vstack([np.zeros((100_000, 8), np.uint64), clustered(2_000)])[
        np.random.default_rng(2).permutation(102_000)
    ]
    graph = build(rows, tmp_path, SMALL)
    counts = np.diff(graph.starts)
    assert len(graph.codes) == len(np.unique(rows, axis=0))
    assert counts.max() == 100_000
    many = int(np.argmax(counts))
    items = graph.items[graph.starts[many] : graph.starts[many + 1]]
    assert (items[1:] > items[:-1]).all()
    assert not rows[items].any()
    nodes, distances, _, _ = native.Graph(graph.codes, graph.edges, graph.entries).walk(
        np.zeros((1, 8), np.uint64), 16
    )
    assert (nodes[0, 0], distances[0, 0]) == (many, 0)


@pytest.mark.parametrize("n", [1, 2, 3, 33])
def test_a_few_items_are_a_graph_too(n, tmp_path):
    rows = clustered(n)
    graph = build(rows, tmp_path, SMALL)
    _, _, counts, _ = native.Graph(graph.codes, graph.edges, graph.entries).walk(rows, n)
    assert (counts == len(graph.codes)).all()
    assert sorted(graph.items.tolist()) == list(range(n))


def test_codes_whose_hashes_collide_are_told_apart(monkeypatch, tmp_path):
    from vitrine.ann.build import collapse

    monkeypatch.setattr(collapse, "_hash", lambda codes: np.zeros(len(codes), np.uint64))
    rows = clustered(300)[np.random.default_rng(3).integers(0, 200, 600)]
    graph = build(rows, tmp_path, SMALL)
    assert len(graph.codes) == len(np.unique(rows, axis=0))
    for node in range(len(graph.codes)):
        assert (rows[graph.items[graph.starts[node] : graph.starts[node + 1]]] == graph.codes[node]).all()


def test_a_ball_of_codes_is_cut_into_clusters_of_bounded_size(tmp_path, monkeypatch):
    from vitrine.ann.build import files, partition, split

    monkeypatch.setattr(partition, "CLUSTER", 250)
    monkeypatch.setattr(split, "CLUSTER", 250)
    flips = np.random.default_rng(4).random((6_000, 512)) < 0.05
    rows = np.packbits(flips, axis=1, bitorder="little").view("<u8")
    graph = build(rows, tmp_path / "one", SMALL)
    counts = np.bincount(files.read(tmp_path / "one", "tops").reshape(-1))
    assert len(files.read(tmp_path / "one", "split-0")) > 0
    assert counts.max() <= 4 * 250
    assert counts.sum() == 2 * len(rows)
    assert digest(build(rows, tmp_path / "two", SMALL, executor=Threads(3), memory_mb=1)) == digest(graph)


def test_what_no_graph_can_be_made_of_is_refused_by_name(tmp_path):
    with pytest.raises(FieldError, match="rows"):
        build(np.zeros((0, 8), np.uint64), tmp_path)
    with pytest.raises(FieldError, match="degree: is 20"):
        Parameters(degree=20)
    with pytest.raises(FieldError, match="overlap: is 1"):
        Parameters(overlap=1)
