"""The auction and the budgets, against what they promise."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.truncation.auction import Budgets, second_price
from experiments.truncation.settings import RESERVE, SLOTS


@given(st.integers(0, 10_000), st.integers(1, 6))
def test_the_winner_pays_the_least_that_still_wins(seed, served):
    rng = np.random.default_rng(seed)
    ads = np.argsort(rng.random((4, 8)), axis=1)
    bids, rates = rng.lognormal(0, 1, (4, 8)).astype(np.float32), rng.uniform(0.01, 0.5, (4, 8)).astype(np.float32)
    allowed = rng.random((4, 8)) < 0.6
    sold = second_price(ads, bids, rates, allowed, served)
    for row in range(4):
        entering = np.flatnonzero(allowed[row])[:served]
        if not len(entering):
            assert sold.ad[row] == -1
            assert sold.price[row] == 0
            continue
        value = bids[row, entering].astype(float) * rates[row, entering]
        order = entering[np.argsort(-value)]
        assert sold.ad[row] == ads[row, order[0]]
        second = float(bids[row, order[1]]) * rates[row, order[1]] if len(order) > 1 else 0.0
        wanted = min(max(second / rates[row, order[0]], RESERVE), bids[row, order[0]])
        np.testing.assert_allclose(sold.price[row], wanted, rtol=1e-6)


def budgets(amounts, advertiser=None):
    return Budgets(np.array(amounts, float), np.arange(len(amounts)) if advertiser is None else advertiser, 1, 0)


def test_nobody_pays_more_than_the_budget():
    b = budgets([1.0, 5.0])
    paid = b.bill(np.array([0, 1, 0, 0]), np.array([0.7, 0.7, 0.7, 0.7]))
    np.testing.assert_allclose(paid, [0.7, 0.7, 0.3, 0.0])
    assert b.alive().tolist() == [False, True]
    b.end_day()
    assert b.alive().all()
    assert b.exhausted_days.tolist() == [1, 0]


def test_an_advertisers_ads_share_its_budget():
    b = budgets([1.0, 1.0], advertiser=np.array([0, 0, 1]))
    b.bill(np.array([0]), np.array([1.0]))
    assert b.alive().tolist() == [False, False, True]


def test_who_spends_too_fast_takes_part_less_and_recovers():
    b = budgets([1.0, 1.0])
    b.bill(np.array([0]), np.array([0.9]))
    b.pace(1)
    assert b.rate[0] < 1.0 == b.rate[1]
    requests = np.arange(4_000)
    took_part = b.takes_part(np.tile([0, 1, -1], (4_000, 1)), requests).mean(axis=0)
    assert abs(took_part[0] - b.rate[0]) < 0.05
    assert took_part[1:].tolist() == [1.0, 0.0]
    b.end_day()
    for slot in range(1, SLOTS):
        b.pace(slot)
    assert b.rate[0] == 1.0


def test_whether_an_advertiser_takes_part_belongs_to_the_request():
    a, b = budgets([1.0] * 5), budgets([1.0] * 5)
    a.rate[:] = b.rate[:] = 0.5
    requests = np.arange(50)
    ads = np.tile(np.arange(5), (50, 1))
    other = ads[:, ::-1]
    np.testing.assert_array_equal(a.takes_part(ads, requests)[:, ::-1], b.takes_part(other, requests))
