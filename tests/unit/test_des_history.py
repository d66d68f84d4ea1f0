"""What the model trains on is what serving computes: the vectorised builder against the state's own fold."""

import numpy as np
import pytest
from des_kit import DAY_MS, write_market

from trainers.des import examples, inputs
from trainers.des.history import Bags, ragged
from vitrine.data.market import Market
from vitrine.data.replay import user_events
from vitrine.data.schemas import DataError
from vitrine.matching import state
from vitrine.matching.catalog import Catalog, build_item_crowds, build_postings

LATER_MS = 4_000_000_000_000


def _catalog(market: Market, half_life_ms: int) -> Catalog:
    crowds = np.sort(market.column("crowds", "crowd_id"))
    ads = np.sort(market.column("ads", "ad_id"))
    indptr, posting_ads, bids = build_postings(
        crowds, ads, *(market.column("bids", c) for c in ("crowd_id", "ad_id", "bid"))
    )
    lists = market.table("items", ["crowd_ids"])["crowd_ids"].to_pylist()
    item_indptr, item_crowds = build_item_crowds(
        crowds, np.array([len(c) for c in lists]), np.array([c for each in lists for c in each], np.uint64)
    )
    return Catalog(
        crowds=crowds, crowd_indptr=indptr, posting_ads=posting_ads, posting_bids=bids, ads=ads,
        ad_advertisers=np.ones(len(ads), np.uint64), ad_items=market.column("ads", "item_id"),
        items=np.sort(market.column("items", "item_id")), item_indptr=item_indptr,
        item_crowd_ordinals=item_crowds, half_life_ms=half_life_ms,
    )  # fmt: skip


def _folded(market: Market, half_life_ms: int):
    """By the fold: ([features before each event that is an example], {user: features at the end})."""
    table = state.EventTable(_catalog(market, half_life_ms))
    states: dict[int, state.UserState] = {}
    before = []
    for event in user_events(market.path("events")):
        user = states.setdefault(event.user_id, state.UserState(event.user_id))
        if event.WhichOneof("kind") == "item" and user.items | user.crowds:
            before.append((event.user_id, event.item.item_id, *state.features(user)))
        state.fold(user, event, LATER_MS, 0, table)
    return before, {user_id: state.features(s) for user_id, s in states.items()}


def _as_dict(keys, x):
    return dict(zip(keys.tolist(), x.tolist(), strict=True))


@pytest.mark.parametrize(
    ("half_life_ms", "sizes", "kinds"),
    [
        (30 * DAY_MS, {}, None),
        (DAY_MS // 3, {}, None),  # landmarks move and old weights vanish
        (30 * DAY_MS, {"users": 6, "items": 400, "crowds": 150, "most_events": 300}, None),  # bounds put out
        (
            9 * DAY_MS,
            {"users": 6, "items": 60, "crowds": 150, "most_events": 300},
            {"purchase": 0.1, "view": 0.1, "join": 0.75, "leave": 0.05},  # more joined than a state holds
        ),
    ],
)
def test_examples_have_the_features_that_the_state_had_before_them(tmp_path, half_life_ms, sizes, kinds):
    market = Market(write_market(tmp_path / "market", kinds=kinds, **sizes))
    before, after = _folded(market, half_life_ms)
    read = inputs.read(market)
    built = examples.build(read, half_life_ms, seed=0)
    bag = {b: _as_dict(built.keys[built.bags.ids[s]], built.bags.x[s]) for b, s in _slices(built.bags)}

    got = sorted((int(built.ads[ad]) - 1000, tuple(sorted(bag[e].items()))) for e, ad in enumerate(built.ad))
    wanted = sorted((item, tuple(sorted(_as_dict(keys, x).items()))) for _, item, keys, x in before)
    assert [item for item, _ in got] == [item for item, _ in wanted]
    for (_, mine), (_, theirs) in zip(got, wanted, strict=True):
        assert [key for key, _ in mine] == [key for key, _ in theirs]
        assert np.array([x for _, x in mine]) == pytest.approx(np.array([x for _, x in theirs]), abs=1e-6)

    held_users = market.column("holdout", "user_id").tolist()
    for number, user_id in zip(built.held_bags(), sorted(held_users), strict=True):
        assert bag[int(number)] == pytest.approx(_as_dict(*after[user_id]), abs=1e-6)


def _slices(bags: Bags):
    return [(b, slice(bags.indptr[b], bags.indptr[b + 1])) for b in range(len(bags))]


def test_a_click_labels_the_impression_before_it_and_counts_once(tmp_path):
    kind = {name: number for number, name in enumerate(inputs.KINDS)}
    story = [  # user, kind, ad -> label
        (0, "impression", 1, 1),
        (0, "impression", 2, 0),
        (0, "click", 1, -1),
        (0, "click", 1, 1),  # no impression is left for it
        (0, "impression", 1, 0),
        (0, "view", -1, -1),
        (0, "view", 2, 1),
        (0, "purchase", 3, 1),
        (0, "purchase", -1, -1),  # nobody advertises what was bought
        (1, "click", 1, 1),  # the impression was another user's
        (1, "impression", 1, 0),
        (1, "impression", 1, 1),
        (1, "click", 1, -1),
    ]
    user, kinds, ad, label = (np.array(column) for column in zip(*story, strict=True))
    zero = np.zeros(len(story), np.int32)
    rows = inputs.Rows(user, np.array([kind[k] for k in kinds]), zero.astype(np.int64), zero, zero, ad)
    assert examples.labels(rows).tolist() == label.tolist()


def test_a_users_last_example_weighs_most_and_the_mean_is_one():
    user, at = np.array([0, 1, 0, 0]), np.array([3, 9, 1, 2])
    weight = examples.recency(user, at)
    assert weight.mean() == pytest.approx(1)
    assert (weight / weight[1]).tolist() == pytest.approx([1, 1, 1 / 3, 1 / 2])


def test_rows_of_a_csr_are_taken_in_the_order_asked_with_repeats_and_empties():
    indptr = np.array([0, 2, 2, 5])
    taken, at = ragged(indptr, np.array([2, 1, 0, 2]))
    assert taken.tolist() == [0, 3, 3, 5, 8]
    assert at.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]


def test_a_market_with_nothing_to_learn_from_is_refused(tmp_path):
    market = Market(write_market(tmp_path / "market", kinds={"view": 1.0}))
    with pytest.raises(DataError, match="clicks or buys"):
        examples.build(inputs.read(market), DAY_MS, seed=0)
