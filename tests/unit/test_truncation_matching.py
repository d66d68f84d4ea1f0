"""Ways of matching, against a loop over every user's crowds and postings."""

import numpy as np
import pytest

from experiments.truncation import market as markets
from experiments.truncation.matching import BLOCK, EVERYTHING, Cut, Matcher
from experiments.truncation.model import Model
from experiments.truncation.replay import Replay
from experiments.truncation.settings import Staleness
from tests.truncation_kit import TINY


@pytest.fixture(scope="module")
def warmed():
    market, truth = markets.draw(TINY, 3, Staleness())
    system = Replay(market, truth, EVERYTHING)
    system.warm_up(TINY.warm)
    return market, system.states


@pytest.fixture(scope="module")
def model(warmed):
    market, _ = warmed
    rng = np.random.default_rng(0)
    features = len(market.base.items) + len(market.base.crowds)
    return Model(
        bias=-3.0,
        w=rng.normal(0, 0.1, features).astype(np.float32),
        v=rng.normal(0, 0.3, (features, TINY.dim)).astype(np.float32),
        ad_bias=rng.normal(0, 0.5, market.ads).astype(np.float32),
        ad_vecs=rng.normal(0, 0.5, (market.ads, TINY.dim)).astype(np.float32),
    )


def matched(warmed, model, cut, alive=None, rate=None):
    market, states = warmed
    matcher = Matcher(market, cut)
    matcher.order(model, np.full(market.ads, 0.01) if rate is None else rate)
    matcher.alive(np.ones(market.ads, bool) if alive is None else alive)
    users = np.arange(market.users)
    bias, vecs = model.user(states, users)
    return matcher, matcher.match(states, users, bias, vecs, 20)


def best(warmed, model, read, k=20):
    """Most valuable ads of each user over the (crowd, ad, bid) that `read(crowds by weight, postings)` keeps."""
    market, states = warmed
    found = []
    for user in range(market.users):
        held = np.flatnonzero(states.crowds[user] >= 0)
        crowds = states.crowds[user][held]
        weights = states.crowd_w[user][held]
        heaviest = [int(c) for c in crowds[np.lexsort((crowds, -weights))]]
        rows = {
            c: [
                (int(market.posting_ads[p]), float(market.posting_bids[p]))
                for p in range(market.crowd_indptr[c], market.crowd_indptr[c + 1])
            ]
            for c in heaviest
        }
        bids: dict[int, float] = {}
        for ad, bid in read(heaviest, rows):
            bids[ad] = max(bid, bids.get(ad, 0.0))
        bias, vecs = model.user(states, np.array([user]))
        ads = np.array(sorted(bids), np.int64)
        rate = model.click_rate(bias, vecs, ads[None])[0] if len(ads) else np.empty(0)
        value = np.array([bids[int(a)] for a in ads]) * rate
        found.append(ads[np.lexsort((ads, -value))][:k].tolist())
    return found


def listed(found):
    return [row[row >= 0].tolist() for row in found.ads]


def test_without_a_cut_every_pair_is_read(warmed, model):
    matcher, found = matched(warmed, model, EVERYTHING)
    assert listed(found) == best(warmed, model, lambda crowds, rows: [p for c in crowds for p in rows[c]])
    assert matcher.pairs == markets.pairs_of(warmed[0], warmed[1]).sum()


@pytest.mark.parametrize("way", ["bid", "impact"])
def test_a_cut_reads_the_first_ads_of_the_heaviest_crowds(warmed, model, way):
    rate = np.random.default_rng(1).uniform(0.001, 0.2, warmed[0].ads)
    worth = {"bid": lambda p: p[1], "impact": lambda p: p[1] * rate[p[0]]}[way]

    def read(crowds, rows):
        return [p for c in crowds[:3] for p in sorted(rows[c], key=lambda p: (-worth(p), p[0]))[:4]]

    matcher, found = matched(warmed, model, Cut(way, pairs=12, crowds=3), rate=rate)
    assert listed(found) == best(warmed, model, read)
    assert matcher.pairs <= 12 * warmed[0].users


def test_merged_reads_the_blocks_of_greatest_impact_whatever_their_crowd(warmed, model):
    rate = np.random.default_rng(2).uniform(0.001, 0.2, warmed[0].ads)

    def read(crowds, rows):
        blocks = []
        for c in crowds:
            ordered = sorted(rows[c], key=lambda p: (-p[1] * rate[p[0]], p[0]))
            blocks += [ordered[i : i + BLOCK["merged"]] for i in range(0, len(ordered), BLOCK["merged"])]
        taken = []
        for block in sorted(blocks, key=lambda b: -b[0][1] * rate[b[0][0]]):
            if len(taken) + len(block) > 40:
                break
            taken += block
        return taken

    _, found = matched(warmed, model, Cut("merged", pairs=40), rate=rate)
    assert listed(found) == best(warmed, model, read)


@pytest.mark.parametrize("way", ["merged", "deadline"])
def test_a_deadline_is_kept(warmed, model, way):
    market, _ = warmed
    for pairs in (1, 30, 100):
        matcher, _ = matched(warmed, model, Cut(way, pairs=pairs))
        assert matcher.pairs <= pairs * market.users


def test_a_deadline_that_never_comes_cuts_nothing(warmed, model):
    _, late = matched(warmed, model, Cut("deadline", pairs=10**6))
    _, whole = matched(warmed, model, EVERYTHING)
    np.testing.assert_array_equal(late.ads, whole.ads)
    np.testing.assert_array_equal(late.bids, whole.bids)


@pytest.mark.parametrize("cut", [EVERYTHING, Cut("bid", 12, 3), Cut("merged", 40), Cut("deadline", 60)])
def test_ads_that_are_not_alive_are_found_by_no_way_and_make_room(warmed, model, cut):
    alive = np.arange(warmed[0].ads) % 2 == 0
    _, found = matched(warmed, model, cut, alive=alive)
    ads = found.ads[found.ads >= 0]
    assert len(ads)
    assert alive[ads].all()
