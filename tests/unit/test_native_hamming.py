"""The Hamming scan equals a full sort, whatever the shape, the ties, the threads and the instruction set."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import native_oracles as oracle
from vitrine import native

KERNELS = native.supported_kernels()


@st.composite
def scans(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    words, n, queries = draw(st.integers(0, 40)), draw(st.integers(0, 300)), draw(st.integers(0, 19))
    high = draw(st.sampled_from([2, 4, 2**64]))  # few distinct codes: most distances are equal
    codes = rng.integers(0, high, (words, n), dtype=np.uint64)
    return codes, rng.integers(0, high, (queries, words), dtype=np.uint64), draw(st.integers(1, 320))


def same(found, expected):
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(scan=scans(), threads=st.integers(1, 3))
def test_rows_and_distances_are_those_of_a_stable_sort(kernel, scan, threads):
    codes, queries, k = scan
    same(native.hamming_topk(codes, queries, k, threads, kernel=kernel), oracle.hamming_topk(codes, queries, k))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("order", ["falling", "rising", "equal"])
def test_the_order_of_distances_does_not_matter(kernel, order):
    n, k = 40_000, 100
    ones = {"falling": np.arange(n)[::-1], "rising": np.arange(n), "equal": np.full(n, n // 2)}[order] * 128 // n
    bits = np.array([(1 << int(x)) - 1 for x in range(129)], object)
    codes = np.stack([bits[ones] & (2**64 - 1), bits[ones] >> 64]).astype(np.uint64)
    queries = np.zeros((9, 2), np.uint64)
    queries[1::2] = 2**64 - 1
    expected = oracle.hamming_topk(codes, queries, k)
    for threads in (1, 4):
        same(native.hamming_topk(codes, queries, k, threads, kernel=kernel), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_more_queries_than_one_pass_and_every_tail_of_a_block(kernel):
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 2**64, (3, 9001), dtype=np.uint64)
    queries = rng.integers(0, 2**64, (135, 3), dtype=np.uint64)
    for n in range(8990, 9001):
        part = np.ascontiguousarray(codes[:, :n])
        same(native.hamming_topk(part, queries, 5, kernel=kernel), oracle.hamming_topk(part, queries, 5))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_longest_code_does_not_overflow_a_byte_counter(kernel):
    codes = np.full((1023, 11), 2**64 - 1, np.uint64)
    codes[:, 3] = 0
    rows, distances = native.hamming_topk(codes, np.zeros((1, 1023), np.uint64), 11, kernel=kernel)
    assert rows[0].tolist() == [3, 0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert distances[0].tolist() == [0] + [65_472] * 10


def test_every_row_comes_back_sorted_where_k_exceeds_their_number():
    codes = np.array([[7, 0, 1, 0]], np.uint64)
    rows, distances = native.hamming_topk(codes, np.zeros((1, 1), np.uint64), 2**40)
    assert rows.tolist() == [[1, 3, 2, 0]]
    assert distances.tolist() == [[0, 0, 1, 3]]


def test_a_read_only_memory_map_is_scanned_in_place(tmp_path):
    np.save(tmp_path / "codes.npy", np.arange(10, dtype=np.uint64)[None])
    codes = np.load(tmp_path / "codes.npy", mmap_mode="r")
    rows, _ = native.hamming_topk(codes, np.array([[5]], np.uint64), 1)
    assert rows.tolist() == [[5]]
