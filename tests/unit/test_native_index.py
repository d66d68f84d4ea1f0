"""The matching index equals brute force to the bit: lists, additions above a floor, chosen pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import native_oracles as oracle
from tests.unit.test_native_tower import ramp
from vitrine import native

KERNELS = native.supported_kernels()
NAMES = ("counts", "ads", "values", "crowds", "bids", "eligible")


def split(market):
    """(users' arrays, index's arrays) of the arguments of match_topk."""
    return market[:4], market[4:]


def same(found, expected, names=NAMES):
    for name, got, want in zip(names, found, expected, strict=False):
        assert got.dtype == want.dtype, name
        assert got.tobytes() == want.tobytes(), name


def worth(market, user):
    """ad -> (value, bid, crowd) over all crowds of a user, by brute force."""
    (bias, vecs, indptr, crowds), (crowd_indptr, ads, bids, ad_bias, ad_vecs) = split(market)
    best = {}
    for crowd in crowds[indptr[user] : indptr[user + 1]]:
        for p in range(crowd_indptr[crowd], crowd_indptr[crowd + 1]):
            if ads[p] not in best or bids[p] > best[ads[p]][0]:
                best[ads[p]] = (bids[p], crowd)
    touched = np.array(sorted(best), np.uint32)
    pctr = oracle.tower_pctr(bias[user], vecs[user], touched, ad_bias, ad_vecs)
    return {ad: (best[ad][0] * p, *best[ad]) for ad, p in zip(touched, pctr, strict=True)}


def ranked(market, user, masks=None, excluded=(), advertisers=None, cap=0):
    """[(ad, value, crowd, bid)], best first, of the ads that no rule keeps out."""
    rows, taken = [], {}
    for ad, (value, bid, crowd) in sorted(worth(market, user).items(), key=lambda x: (-x[1][0], x[0])):
        if ad in excluded or (masks is not None and not masks[ad]):
            continue
        if cap:
            taken[advertisers[ad]] = taken.get(advertisers[ad], 0) + 1
            if taken[advertisers[ad]] > cap:
                continue
        rows.append((ad, value, crowd, bid))
    return rows


def lists(found, user):
    counts, ads, values, crowds, bids = (x[user] for x in found[:5])
    assert not any(x[counts:].any() for x in (ads, values, crowds, bids))
    return list(zip(*(x[:counts] for x in (ads, values, crowds, bids)), strict=True))


shapes = st.fixed_dictionaries(
    {
        "users": st.integers(0, 5),
        "crowds": st.integers(0, 9),
        "ads": st.integers(1, 90),
        "d": st.integers(0, 19),
        "postings": st.integers(0, 500),
        "bid_levels": st.sampled_from([1, 4, 1000]),
    }
)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), shape=shapes, k=st.integers(1, 100), threads=st.integers(1, 3))
def test_lists_are_those_of_brute_force(kernel, seed, shape, k, threads):
    market = oracle.market(np.random.default_rng(seed), **shape)
    users, index = split(market)
    found = native.MatchIndex(*index, threads=threads).match(*users, k, kernel=kernel)
    same(found, oracle.match_topk(*market, k))


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), shape=shapes, k=st.integers(1, 100), cap=st.integers(0, 3))
def test_rules_keep_ads_out_and_the_next_ones_move_up(kernel, seed, shape, k, cap):
    rng = np.random.default_rng(seed)
    market = oracle.market(rng, **shape)
    users, index = split(market)
    masks = rng.integers(0, 3, shape["ads"]).astype(np.uint8)
    excluded = [np.sort(rng.choice(shape["ads"], shape["ads"] // 3)) for _ in range(shape["users"])]
    advertisers = rng.integers(0, 5, shape["ads"]).astype(np.uint32)
    found = native.MatchIndex(*index).match(
        *users,
        k,
        masks=masks,
        exclude_indptr=np.cumsum([0, *map(len, excluded)]).astype(np.int64),
        exclude_ads=np.concatenate([np.zeros(0, int), *excluded]).astype(np.uint32),
        advertisers=advertisers,
        advertiser_cap=cap,
        kernel=kernel,
    )
    for user in range(shape["users"]):
        want = ranked(market, user, masks, set(excluded[user]), advertisers, cap)
        assert lists(found, user) == want[:k]


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), shape=shapes, at=st.floats(0, 1))
def test_above_a_floor_are_the_ads_at_or_before_it(kernel, seed, shape, at):
    rng = np.random.default_rng(seed)
    market = oracle.market(rng, **shape)
    users, index = split(market)
    every = [ranked(market, user) for user in range(shape["users"])]
    floors = [rows[int(at * (len(rows) - 1))][:2] if rows else (0, 0) for rows in every]
    keys = np.array([ad for ad, _ in floors], np.uint32)
    values = np.array([value for _, value in floors], np.float32)
    found = native.MatchIndex(*index, threads=2).above(*users, values, keys, kernel=kernel)
    for user, rows in enumerate(every):
        mine = slice(found[0][user], found[0][user + 1])
        got = list(zip(*(x[mine] for x in found[1:]), strict=True))
        assert got == rows[: int(at * (len(rows) - 1)) + 1]


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), shape=shapes)
def test_best_is_the_greatest_shared_bid_of_a_pair(kernel, seed, shape):
    market = oracle.market(np.random.default_rng(seed), **shape)
    users, index = split(market)
    pairs = [(user, ad) for user in range(shape["users"]) for ad in range(shape["ads"])]
    pair_users, pair_ads = (np.array([pair[i] for pair in pairs], np.uint32) for i in (0, 1))
    found = native.MatchIndex(*index).best(
        users[0], users[1], pair_users, pair_ads, users[2], users[3], kernel=kernel
    )
    every = [worth(market, user) for user in range(shape["users"])]
    for (user, ad), value, crowd, bid in zip(pairs, *found, strict=True):
        want = every[user].get(ad)
        assert (value, bid, crowd) == want if want else value < 0


def large(rng, sigma=1.0, d=16, spread=0.7, bias=-3.0, **shape):
    """A market of crowds of thousands, where most blocks are never read."""
    market = list(oracle.market(rng, **{"users": 6, "crowds": 30, "ads": 6000, "postings": 60_000} | shape, d=d))
    ads, postings = len(market[7]), len(market[5])
    market[0] = np.full(len(market[0]), bias, np.float32)
    market[6] = rng.lognormal(0, sigma, postings).astype(np.float32)
    market[7] = rng.normal(0, 0.3, ads).astype(np.float32)
    market[8] = rng.normal(0, spread / 4, (ads, d)).astype(np.float32)
    return tuple(market)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bias", [-3.0, 1.0, 30.0])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0, 2.0])
def test_large_markets_are_matched_exactly(kernel, sigma, bias):
    market = large(np.random.default_rng(11), sigma, bias=bias)
    users, index = split(market)
    found = native.MatchIndex(*index, threads=2).match(*users, 200, threads=2, kernel=kernel)
    same(found, native.match_topk(*market, 200))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[8].__setitem__(slice(None, None, 7), np.float32(1e30)),
        lambda m: m[8].__setitem__(3, np.float32(np.inf)),
        lambda m: m[8].__setitem__(3, np.float32(np.nan)),
        lambda m: m[7].__setitem__(slice(None, None, 9), np.float32(-np.inf)),
        lambda m: m[7].__setitem__(5, np.float32(np.nan)),
        lambda m: m[1].__setitem__(0, np.float32(np.nan)),
        lambda m: m[1].__setitem__(0, np.float32(3e38)),
        lambda m: m[0].__setitem__(0, np.float32(np.inf)),
        lambda m: m[0].__setitem__(slice(None), np.float32(-200)),
        lambda m: m[6].__setitem__(slice(None), m[6] * np.float32(1e-38)),
        lambda m: m[6].__setitem__(slice(None), m[6] * np.float32(1e36)),
        lambda m: m[6].__setitem__(slice(None, None, 2), np.float32(0)),
        lambda m: m[6].__setitem__(slice(None), np.float32(-0.0)),
        lambda m: m[8].__setitem__((slice(None), slice(4, None)), np.float32(0)),
        lambda m: m[8].__setitem__(slice(None), np.float32(0)),
        lambda m: m[8].__setitem__(slice(None, None, 1000), m[8][::1000] * np.float32(50)),
    ],
)
def test_numbers_at_the_edge_are_matched_exactly(kernel, change):
    market = large(np.random.default_rng(12), postings=20_000)
    change(market)
    users, index = split(market)
    same(native.MatchIndex(*index).match(*users, 50, kernel=kernel), native.match_topk(*market, 50))


def test_counters_are_the_same_on_every_instruction_set_and_pruning_reads_a_small_part():
    market = large(np.random.default_rng(13), ads=20_000, postings=300_000)
    users, index = split(market)
    first, *others = (native.MatchIndex(*index).match(*users, 50, kernel=kernel) for kernel in KERNELS)
    for other in others:
        assert [a.tobytes() for a in first] == [a.tobytes() for a in other]
    eligible, read, scored = (x.sum() for x in first[5:])
    assert scored < read < eligible / 2
    assert 50 * len(users[0]) <= scored < eligible / 10


def test_an_advertiser_cap_in_a_large_market_goes_as_deep_as_it_must():
    market = large(np.random.default_rng(14))
    users, index = split(market)
    rng = np.random.default_rng(1)
    advertisers = rng.zipf(1.3, len(market[7])).clip(0, 400).astype(np.uint32)
    found = native.MatchIndex(*index).match(*users, 100, advertisers=advertisers, advertiser_cap=2)
    for user in range(len(users[0])):
        assert lists(found, user) == ranked(market, user, advertisers=advertisers, cap=2)[:100]


def test_a_mask_may_change_between_calls():
    market = large(np.random.default_rng(15))
    users, index = split(market)
    matcher, masks = native.MatchIndex(*index), np.ones(len(market[7]), np.uint8)
    before = matcher.match(*users, 20, masks=masks)
    masks[before[1][0, 0]] = 0
    after = matcher.match(*users, 20, masks=masks)
    assert lists(after, 0)[:-1] == lists(before, 0)[1:]


@pytest.mark.parametrize("kernel", KERNELS)
def test_golden_bits(kernel):
    """The market of test_native_match's golden values."""
    ads, crowds = 40, 6
    postings = [np.arange(c, ads, c + 2) for c in range(crowds)]
    index = native.MatchIndex(
        np.cumsum([0, *map(len, postings)]),
        np.concatenate(postings).astype(np.uint32),
        (ramp(sum(map(len, postings))) + 2) * np.float32(0.5),
        ramp(ads),
        ramp(ads, 10),
    )
    user = ramp(1) - np.float32(3), ramp(1, 10), np.array([0, 4]), np.array([0, 2, 3, 5], np.uint32)
    _, best, values, won, paid, *_ = index.match(*user, 6, kernel=kernel)
    assert best[0].tolist() == [0, 28, 33, 22, 5, 34]
    assert won[0].tolist() == [0, 3, 3, 0, 5, 2]
    assert [f"{x:08x}" for x in values[0].view(np.uint32)] == GOLDEN_VALUES
    floor = values[0, 3:4], best[0, 3:4]
    indptr, above, worth_, *_ = index.above(*user, *floor, kernel=kernel)
    assert (indptr.tolist(), above.tolist()) == ([0, 4], best[0, :4].tolist())
    assert [f"{x:08x}" for x in worth_.view(np.uint32)] == GOLDEN_VALUES[:4]
    chosen, crowd, bid = index.best(*user[:2], np.zeros(6, np.uint32), best[0].copy(), *user[2:], kernel=kernel)
    assert [f"{x:08x}" for x in chosen.view(np.uint32)] == GOLDEN_VALUES
    assert (crowd.tolist(), bid.tolist()) == (won[0].tolist(), paid[0].tolist())


GOLDEN_VALUES = ["3f318c5e", "3f167cb7", "3eeb6601", "3ec60294", "3ebe23d0", "3ea45d1b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"posting_bids": [1, -1, 1]}, "posting_bids: entry 1 is -1"),
        ({"posting_bids": [1, 1, np.inf]}, "posting_bids: entry 2 is inf"),
        ({"posting_bids": [np.nan, 1, 1]}, "posting_bids: entry 0 is (-)?nan"),
        ({"posting_ads": [1, 0, 0]}, "posting_ads: entries of crowd row 0 must ascend, but entry 1 does not"),
        ({"posting_ads": [0, 1, 2]}, "posting_ads: entry 2 is 2, but ad_bias has 2 ads"),
        ({"crowd_indptr": [0, 2, 1]}, "crowd_indptr: expected to start at 0 and end at 3"),
        ({"user_crowds": [1, 0]}, "user_crowds: entries of user row 0 must ascend"),
        ({"user_crowds": [0, 2]}, "user_crowds: entry 1 is 2, but crowd_indptr has 2 crowds"),
        ({"user_vecs": np.zeros((1, 4))}, r"user_vecs: expected shape \(1, 3\)"),
        ({"masks": [1]}, r"masks: expected shape \(2,\)"),
        ({"exclude_ads": [1]}, "exclude_indptr: given together with exclude_ads"),
        ({"exclude_indptr": [0, 2], "exclude_ads": [1, 0]}, "exclude_ads: entries of user row 0 must ascend"),
        ({"advertiser_cap": 1}, "advertisers: needed where advertiser_cap is set"),
        ({"advertiser_cap": -1}, "advertiser_cap: expected 0"),
        ({"k": 0}, "k: expected at least 1"),
        ({"threads": 0}, "threads: expected at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    index = {
        "crowd_indptr": ([0, 2, 3], np.int64),
        "posting_ads": ([0, 1, 0], np.uint32),
        "posting_bids": ([1, 1, 1], np.float32),
        "ad_bias": (np.zeros(2), np.float32),
        "ad_vecs": (np.zeros((2, 3)), np.float32),
    }
    call = {
        "user_bias": ([0], np.float32),
        "user_vecs": (np.zeros((1, 3)), np.float32),
        "user_indptr": ([0, 2], np.int64),
        "user_crowds": ([0, 1], np.uint32),
    }
    types = {"masks": np.uint8, "exclude_indptr": np.int64, "exclude_ads": np.uint32}

    def filled(arguments):
        return {name: np.array(changes.get(name, value), dtype) for name, (value, dtype) in arguments.items()}

    rest = {name: changes[name] for name in changes if name not in index and name not in call}
    rest = {"k": 1} | {
        name: np.array(value, types[name]) if name in types else value for name, value in rest.items()
    }
    with pytest.raises(ValueError, match=f"^{message}"):
        native.MatchIndex(**filled(index)).match(**filled(call), **rest)
