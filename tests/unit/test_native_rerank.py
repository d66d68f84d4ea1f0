"""Re-ranking kernels give the bits of plain numpy, on every instruction set and number of threads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit import native_oracles as oracle
from vitrine import native

KERNELS = native.supported_kernels()
UNUSED = 2**32 - 1
dims = st.sampled_from([1, 3, 8, 63, 64, 65, 100, 128, 192, 256, 300])


def drawn(seed, n, dim, queries, pool):
    """Vectors, queries, flips, and rows that end early for some queries."""
    draws = np.random.default_rng(seed)
    vectors = draws.standard_normal((n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = draws.integers(0, n, (queries, pool)).astype(np.uint32)
    used = draws.integers(0, pool + 1, queries)
    rows[np.arange(pool) >= used[:, None]] = UNUSED
    flips = draws.choice([-1.0, 1.0], (2, -(-dim // 64) * 64)).astype(np.float32)
    return vectors, draws.standard_normal((queries, dim)).astype(np.float32), flips, rows, used


@given(st.integers(0, 2**32), st.integers(1, 40), dims, st.sampled_from([4, 8]))
def test_codes_are_those_of_numpy(seed, n, dim, bits):
    vectors, _, flips, *_ = drawn(seed, n, dim, 1, 1)
    codes, factors = native.coarse_encode(vectors, flips, bits)
    expected = oracle.coarse_encode(vectors, flips, bits)
    assert np.array_equal(codes, expected[0])
    assert np.array_equal(factors, expected[1])


@given(st.integers(0, 2**32), dims, st.sampled_from([4, 8]), st.integers(0, 70), st.integers(1, 80))
def test_scores_and_best_rows_are_those_of_numpy_on_every_kernel(seed, dim, bits, pool, k):
    vectors, queries, flips, rows, used = drawn(seed, 50, dim, 3, pool)
    coarse = (*native.coarse_encode(vectors, flips, bits), flips)
    for kernel in KERNELS:
        for threads in (1, 2):
            scores = native.coarse_scores(*coarse, queries, rows, threads, kernel=kernel)
            coarse_best = native.coarse_topk(*coarse, queries, rows, k, threads, kernel=kernel)
            vector_best = native.vector_topk(vectors, queries, rows, k, threads, kernel=kernel)
            for q in range(3):
                given_rows = rows[q, : used[q]]
                expected = oracle.coarse_scores(*coarse, queries[q], given_rows)
                assert np.array_equal(scores[q, : used[q]], expected)
                assert not scores[q, used[q] :].any()
                cosines = oracle.vector_scores(vectors, queries[q], given_rows)
                for found, wanted in ((coarse_best, expected), (vector_best, cosines)):
                    best = oracle.topk(given_rows, wanted, k)
                    assert np.array_equal(found[0][q], best[0])
                    assert np.array_equal(found[1][q], best[1])


def test_the_longest_query_does_not_overflow():
    """Every coordinate as large as the largest, against rows of the largest integers of the same signs."""
    flips = np.ones((2, 65536), np.float32)
    vector = oracle.turn(np.ones((1, 65536), np.float32), flips)  # turning twice is the identity
    for bits in (4, 8):
        codes, factors = native.coarse_encode(vector, flips, bits)
        score = native.coarse_scores(codes, factors, flips, vector, np.zeros((1, 1), np.uint32))[0, 0]
        assert abs(score / 65536 - 1) < 0.01


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"codes": np.zeros((5, 33), np.uint8)}, ValueError, r"codes: expected shape \(5, 32\)"),
        ({"codes": np.zeros((5, 32), np.int8)}, TypeError, "codes: .* got int8"),
        ({"factors": np.zeros(4, np.float32)}, ValueError, r"codes: expected shape \(4, 32\)"),
        ({"flips": np.ones((2, 60), np.float32)}, ValueError, r"flips: expected shape \(2, 64\)"),
        ({"queries": np.ones((1, 65), np.float32)}, ValueError, r"flips: expected shape \(2, 128\)"),
        ({"queries": np.ones((1, 0), np.float32)}, ValueError, "queries: expected 1 to 65,536 dimensions, got 0"),
        ({"rows": np.array([[0, 5]], np.uint32)}, ValueError, "rows: entry 1 of query 0 is 5, but there are 5"),
        ({"rows": np.zeros((2, 1), np.uint32)}, ValueError, r"rows: expected shape \(1, 1\)"),
        ({"k": 0}, ValueError, "k: expected at least 1"),
        ({"threads": 0}, ValueError, "threads: expected at least 1"),
    ],
)
def test_a_bad_argument_is_named(changes, error, message):
    good = {
        "codes": np.zeros((5, 32), np.uint8),
        "factors": np.zeros(5, np.float32),
        "flips": np.ones((2, 64), np.float32),
        "queries": np.ones((1, 50), np.float32),
        "rows": np.zeros((1, 1), np.uint32),
        "k": 1,
    }
    with pytest.raises(error, match=f"^{message}"):
        native.coarse_topk(**good | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": np.ones((1, 7), np.float32)}, r"queries: expected shape \(1, 6\)"),
        ({"rows": np.array([[5]], np.uint32)}, "rows: entry 0 of query 0 is 5"),
    ],
)
def test_a_bad_argument_of_vectors_is_named(changes, message):
    good = {
        "vectors": np.zeros((5, 6), np.float32),
        "queries": np.ones((1, 6), np.float32),
        "rows": np.zeros((1, 1), np.uint32),
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        native.vector_topk(**good | changes, k=1)


def test_what_is_behind_the_first_unused_place_is_not_read():
    rows = np.array([[1, UNUSED, 9]], np.uint32)
    best, _ = native.vector_topk(np.eye(3, dtype=np.float32), np.ones((1, 3), np.float32), rows, 2)
    assert best.tolist() == [[1, UNUSED]]
