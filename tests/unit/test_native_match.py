"""Brute-force matching equals a dictionary and a sort: ads, values, crowds and bids to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import native_oracles as oracle
from tests.unit.test_native_tower import ramp
from vitrine import native

KERNELS = native.supported_kernels()
NAMES = ("counts", "ads", "values", "crowds", "bids", "eligible")


def same(found, expected):
    for name, got, want in zip(NAMES, found, expected, strict=True):
        assert got.dtype == want.dtype, name
        assert got.tobytes() == want.tobytes(), name


def one_user(postings, crowds, ad_bias, k=10):
    """postings: a list of {ad: bid} a crowd; towers of no dimensions."""
    none, ads = np.zeros((len(ad_bias), 0), np.float32), [ad for crowd in postings for ad in crowd]
    found = native.match_topk(
        np.zeros(1, np.float32),
        none[:1],
        np.array([0, len(crowds)]),
        np.array(crowds, np.uint32),
        np.cumsum([0, *map(len, postings)]),
        np.array(ads, np.uint32),
        np.array([bid for crowd in postings for bid in crowd.values()], np.float32),
        np.array(ad_bias, np.float32),
        none,
        k,
    )
    return dict(zip(NAMES, (x[0] for x in found), strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    shape=st.fixed_dictionaries(
        {
            "users": st.integers(0, 5),
            "crowds": st.integers(0, 9),
            "ads": st.integers(1, 60),
            "d": st.integers(0, 19),
            "postings": st.integers(0, 300),
        }
    ),
    k=st.integers(1, 80),
    threads=st.integers(1, 3),
)
def test_lists_are_those_of_a_dictionary_and_a_sort(kernel, seed, shape, k, threads):
    market = oracle.market(np.random.default_rng(seed), **shape)
    same(native.match_topk(*market, k, threads, kernel=kernel), oracle.match_topk(*market, k))


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_market_of_many_ads_with_more_of_them_than_the_selection_holds(kernel):
    rng = np.random.default_rng(3)
    market = oracle.market(
        rng, users=4, crowds=20, ads=3000, d=16, postings=15_000, crowds_a_user=15, bid_levels=50
    )
    same(native.match_topk(*market, 100, 2, kernel=kernel), oracle.match_topk(*market, 100))


@pytest.mark.parametrize("kernel", KERNELS)
def test_golden_bits(kernel):
    ads, crowds = 40, 6
    postings = [np.arange(c, ads, c + 2) for c in range(crowds)]
    bids = (ramp(sum(map(len, postings))) + 2) * np.float32(0.5)
    counts, best, values, won, paid, eligible = native.match_topk(
        ramp(1) - np.float32(3),
        ramp(1, 10),
        np.array([0, 4]),
        np.array([0, 2, 3, 5], np.uint32),
        np.cumsum([0, *map(len, postings)]),
        np.concatenate(postings).astype(np.uint32),
        bids,
        ramp(ads),
        ramp(ads, 10),
        6,
        kernel=kernel,
    )
    assert (counts.tolist(), eligible.tolist()) == ([6], GOLDEN["eligible"])
    assert best[0].tolist() == GOLDEN["ads"]
    assert won[0].tolist() == GOLDEN["crowds"]
    assert [f"{x:08x}" for x in values[0].view(np.uint32)] == GOLDEN["values"]
    assert [f"{x:08x}" for x in paid[0].view(np.uint32)] == GOLDEN["bids"]


GOLDEN = {
    "eligible": [43],
    "ads": [0, 28, 33, 22, 5, 34],
    "crowds": [0, 3, 3, 0, 5, 2],
    "values": ["3f318c5e", "3f167cb7", "3eeb6601", "3ec60294", "3ebe23d0", "3ea45d1b"],
    "bids": ["3f8f1bbc", "3f489e4a", "3fb36ae2", "3f6a99b4", "3fac48c9", "3fba8cfb"],
}


def test_the_greatest_bid_wins_and_equal_bids_go_to_the_lower_crowd():
    found = one_user([{0: 1, 1: 5}, {0: 3, 1: 5}, {0: 2, 1: 4}], [0, 1, 2], [0, 0])
    assert found["ads"][:2].tolist() == [1, 0]
    assert found["bids"][:2].tolist() == [5, 3]
    assert found["crowds"][:2].tolist() == [0, 1]
    assert found["eligible"] == 6


def test_equal_values_go_to_the_lower_ad_and_the_tail_is_zeros():
    found = one_user([{2: 1, 4: 1, 7: 1}, {0: 9}], [0], np.zeros(8), k=5)
    assert found["counts"] == 3
    assert found["ads"].tolist() == [2, 4, 7, 0, 0]
    assert found["values"].tolist() == [0.5, 0.5, 0.5, 0, 0]


def test_values_that_are_zero_keep_the_order_of_ads():
    found = one_user([{0: 0.0, 1: -0.0, 2: 0.0}], [0], np.zeros(3))
    assert found["ads"][:3].tolist() == [0, 1, 2]


def test_a_value_is_the_bid_times_what_tower_pctr_says():
    market = oracle.market(np.random.default_rng(5), users=4, ads=50, d=11, postings=200)
    counts, ads, values, _, bids, _ = native.match_topk(*market, 20)
    for user, count in enumerate(counts):
        pctr = native.tower_pctr(float(market[0][user]), market[1][user], ads[user, :count], market[7], market[8])
        assert (bids[user, :count] * pctr).tobytes() == values[user, :count].tobytes()


def test_matches_of_catalogs_of_different_size_do_not_disturb_each_other():
    small = oracle.market(np.random.default_rng(1), ads=10, postings=30)
    large = oracle.market(np.random.default_rng(2), ads=500, postings=900)
    for _ in range(3):
        for market in (small, large):
            same(native.match_topk(*market, 10), oracle.match_topk(*market, 10))
