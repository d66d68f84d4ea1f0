"""Bad arguments are refused by name before anything runs; good ones run with the GIL released."""

import sys
import threading

import numpy as np
import pytest

from tests.unit import native_oracles as oracle
from vitrine import native

CODES, QUERIES = np.zeros((2, 6), np.uint64), np.zeros((3, 2), np.uint64)
NAMES = (
    "user_bias",
    "user_vecs",
    "user_indptr",
    "user_crowds",
    "crowd_indptr",
    "posting_ads",
    "posting_bids",
    "ad_bias",
    "ad_vecs",
)


def market():
    arrays = dict(zip(NAMES, oracle.market(np.random.default_rng(4), users=3, crowds=5, ads=9, d=4), strict=True))
    arrays["user_crowds"] = np.array([0, 1, 2, 3, 4, 1], np.uint32)
    arrays["user_indptr"] = np.array([0, 3, 5, 6])
    return arrays


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"codes": [[1]]}, TypeError, "codes: expected a C-contiguous uint64 array of 2 dimensions, got list"),
        ({"codes": None}, TypeError, "codes: .* got NoneType"),
        ({"codes": CODES.astype(np.int64)}, TypeError, "codes: .* got int64"),
        ({"codes": CODES.astype(">u8")}, TypeError, "codes: "),
        ({"codes": CODES[0]}, ValueError, "codes: .* 2 dimensions, got 1"),
        ({"codes": np.zeros((6, 2), np.uint64).T}, ValueError, "codes: .*ascontiguousarray"),
        ({"codes": np.zeros((2, 12), np.uint64)[:, ::2]}, ValueError, "codes: .*ascontiguousarray"),
        ({"codes": np.zeros((1024, 1), np.uint64)}, ValueError, "codes: at most 1,023 words"),
        ({"queries": QUERIES[:, :1].copy()}, ValueError, r"queries: expected shape \(3, 2\) .* got \(3, 1\)"),
        ({"queries": QUERIES.astype(np.float32)}, TypeError, "queries: .* got float32"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"k": -5}, ValueError, "k: expected at least 1, got -5"),
        ({"threads": 0}, ValueError, "threads: expected at least 1, got 0"),
        ({"kernel": "neon"}, ValueError, "kernel: this machine has no kernel 'neon'; it runs .*portable"),
    ],
)
def test_hamming_topk_names_the_bad_argument(changes, error, message):
    with pytest.raises(error, match=f"^{message}"):
        native.hamming_topk(**{"codes": CODES, "queries": QUERIES, "k": 1} | changes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"user_vecs": np.zeros((3, 5), np.float32)}, ValueError, r"user_vecs: expected shape \(3, 4\)"),
        ({"user_vecs": np.zeros((2, 4), np.float32)}, ValueError, r"user_vecs: expected shape \(3, 4\)"),
        ({"ad_vecs": np.zeros((8, 4), np.float32)}, ValueError, r"ad_vecs: expected shape \(9, 4\)"),
        ({"ad_bias": np.zeros(9)}, TypeError, "ad_bias: .* got float64"),
        ({"user_indptr": np.array([0, 3, 6])}, ValueError, r"user_indptr: expected shape \(4,\)"),
        ({"user_indptr": np.array([0, 3, 5, 7])}, ValueError, "user_indptr: expected to start at 0 and end at 6"),
        ({"user_indptr": np.array([0, 5, 3, 6])}, ValueError, "user_indptr: entries 1 and 2 are 5 and 3"),
        ({"user_indptr": np.array([0, 9, 5, 6])}, ValueError, "user_indptr: entries 0 and 1 are 0 and 9"),
        ({"user_indptr": np.array([0, -3, 5, 6])}, ValueError, "user_indptr: entries 0 and 1 are 0 and -3"),
        ({"user_indptr": np.array([0, 3, 5, 6], np.int32)}, TypeError, "user_indptr: .* got int32"),
        ({"user_crowds": np.array([0, 1, 2, 3, 5, 1], np.uint32)}, ValueError, "user_crowds: entry 4 is 5"),
        ({"user_crowds": np.array([0, 1, 1, 3, 4, 1], np.uint32)}, ValueError, "user_crowds: .* row 0 must ascend"),
        ({"user_crowds": np.array([0, 1, 2, 4, 3, 1], np.uint32)}, ValueError, "user_crowds: .* row 1 must ascend"),
        ({"crowd_indptr": np.zeros(0, np.int64)}, ValueError, "crowd_indptr: expected one entry more"),
        ({"crowd_indptr": np.array([1, 2])}, ValueError, "crowd_indptr: expected to start at 0"),
        ({"posting_bids": np.zeros(3, np.float32)}, ValueError, "posting_bids: expected shape"),
        ({"k": 0}, ValueError, "k: expected at least 1"),
        ({"k": 2**60}, ValueError, "k: a result of shape .* does not fit in memory"),
        ({"threads": -1}, ValueError, "threads: expected at least 1"),
    ],
)
def test_match_topk_names_the_bad_argument(change, error, message):
    with pytest.raises(error, match=f"^{message}"):
        native.match_topk(**market() | {"k": 3} | change)


def test_match_topk_refuses_an_indptr_that_falls():
    arrays = market()
    arrays["crowd_indptr"][2] = arrays["crowd_indptr"][1] - 1
    with pytest.raises(ValueError, match=r"^crowd_indptr: entries 1 and 2 are"):
        native.match_topk(**arrays, k=3)


@pytest.mark.parametrize("threads", [1, 3])
def test_match_topk_names_the_posting_without_an_ad(threads):
    arrays = market()
    at = int(arrays["crowd_indptr"][3])
    arrays["posting_ads"][at] = 9
    with pytest.raises(ValueError, match=f"^posting_ads: entry {at} is 9, but ad_bias has 9 ads"):
        native.match_topk(**arrays, k=3, threads=threads)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"user_vec": np.zeros(3, np.float32)}, ValueError, r"user_vec: expected shape \(4,\)"),
        ({"ads": np.array([0, 9], np.uint32)}, ValueError, "ads: entry 1 is 9, but ad_bias has 9 ads"),
        ({"ads": np.array([0])}, TypeError, "ads: .* got int64"),
        ({"ad_vecs": np.zeros(36, np.float32)}, ValueError, "ad_vecs: .* 2 dimensions, got 1"),
    ],
)
def test_tower_pctr_names_the_bad_argument(change, error, message):
    arrays = market()
    good = {"user_vec": np.zeros(4, np.float32), "ads": np.zeros(1, np.uint32)}
    good |= {name: arrays[name] for name in ("ad_bias", "ad_vecs")}
    with pytest.raises(error, match=f"^{message}"):
        native.tower_pctr(0.0, **good | change)


def test_murmur2_decimal_names_the_bad_argument():
    with pytest.raises(TypeError, match=r"^ids: .* got int64"):
        native.murmur2_decimal(np.arange(3))


def empty_market():
    none = np.zeros(0, np.float32)
    flat, start = np.zeros(0, np.uint32), np.zeros(1, np.int64)
    return none, none.reshape(0, 4), start, flat, start, flat, none, none, none.reshape(0, 4)


def test_empty_inputs_give_empty_answers():
    assert [x.shape for x in native.hamming_topk(np.zeros((2, 0), np.uint64), QUERIES, 5)] == [(3, 0), (3, 0)]
    assert [x.shape for x in native.hamming_topk(CODES, QUERIES[:0], 5)] == [(0, 5), (0, 5)]
    assert native.match_topk(*empty_market(), 7, 4)[1].shape == (0, 7)
    assert native.murmur2_decimal(np.zeros(0, np.uint64)).shape == (0,)


def kernel_calls():
    rng = np.random.default_rng(6)
    codes, queries = (
        rng.integers(0, 2**64, (8, 100_000), dtype=np.uint64),
        rng.integers(0, 2**64, (8, 8), dtype=np.uint64),
    )
    arrays = oracle.market(rng, users=200, crowds=10, ads=2000, d=16, postings=20_000)
    ads = np.tile(np.arange(2000, dtype=np.uint32), 100)
    return {
        "hamming_topk": lambda: native.hamming_topk(codes, queries, 10),
        "match_topk": lambda: native.match_topk(*arrays, 50),
        "tower_pctr": lambda: native.tower_pctr(0.0, arrays[1][0], ads, arrays[7], arrays[8]),
        "murmur2_decimal": lambda: native.murmur2_decimal(codes[0]),
    }


@pytest.mark.parametrize("name", ["hamming_topk", "match_topk", "tower_pctr", "murmur2_decimal"])
def test_another_thread_runs_while_the_kernel_does(name):
    call = kernel_calls()[name]
    go, ran = threading.Event(), []
    other = threading.Thread(target=lambda: (go.wait(), ran.append(True)))
    other.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # the other thread gets the GIL only where this one lets it go
    try:
        go.set()
        assert not ran
        for _ in range(1000):
            call()
            if ran:
                break
        assert ran
    finally:
        sys.setswitchinterval(interval)
        other.join()
