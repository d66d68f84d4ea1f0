"""Amazon Beauty and the clothing photos as a market."""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vitrine.data import beauty
from vitrine.data.market import Market
from vitrine.data.schemas import DataError
from vitrine.data.validate import validate

SHARED = Path(os.environ.get("VITRINE_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    if not beauty.recognise(SHARED):
        pytest.skip(f"no Beauty data in {SHARED}; VITRINE_SHARED_DATA names another folder")
    out = tmp_path_factory.mktemp("beauty")
    beauty.convert(SHARED, out, seed=3)
    return Market(out)


def test_the_converted_market_is_sound(market):
    validate(market.folder)


def test_users_ads_and_crowds_are_those_of_the_source(market):
    assert market.rows("users") == 22_363
    assert market.rows("ads") == market.rows("items") == 12_101
    assert market.rows("crowds") == 637
    assert market.rows("events") + market.rows("holdout") == 198_502


def test_the_hold_out_is_each_users_last_purchase_and_not_in_the_events(market):
    source = pq.read_table(SHARED / beauty.INTERACTIONS)
    purchases: dict[int, list[int]] = {}
    for row in sorted(source.to_pylist(), key=lambda r: (r["user_id"], r["position"])):
        purchases.setdefault(row["user_id"], []).append(row["item_id"])
    kept: dict[int, list[int]] = {}
    for user, item in zip(*(market.column("events", c).tolist() for c in ("user_id", "item_id")), strict=True):
        kept.setdefault(user, []).append(item)
    held_out = market.table("holdout").to_pylist()
    assert {r["user_id"]: r["item_id"] for r in held_out} == {user: items[-1] for user, items in purchases.items()}
    assert all(r["ad_id"] == r["item_id"] for r in held_out)
    assert kept == {user: items[:-1] for user, items in purchases.items()}


def test_an_ad_bids_on_each_of_its_items_crowds(market):
    lists = market.table("items")
    wanted = {
        (crowd, item)
        for item, crowds in zip(lists["item_id"].to_pylist(), lists["crowd_ids"].to_pylist(), strict=True)
        for crowd in crowds
    }
    bids = market.table("bids")
    assert set(zip(bids["crowd_id"].to_pylist(), bids["ad_id"].to_pylist(), strict=True)) == wanted
    np.testing.assert_array_equal(market.column("ads", "ad_id"), market.column("ads", "item_id"))


def test_photos_keep_their_split_under_ids_apart_from_the_items(market):
    photos = pq.read_table(SHARED / beauty.PHOTOS)
    np.testing.assert_array_equal(market.column("images", "item_id"), photos["image_id"].to_numpy() + 1_000_000_001)
    assert market.table("images")["split"].to_pylist() == photos["split"].to_pylist()
    assert market.column("items", "item_id").max() < 1_000_000_001


def test_the_same_seed_gives_the_same_bids_and_another_seed_others(market, tmp_path):
    beauty.convert(SHARED, tmp_path / "again", seed=3)
    beauty.convert(SHARED, tmp_path / "other", seed=4)
    bids = market.column("bids", "bid")
    np.testing.assert_array_equal(Market(tmp_path / "again").column("bids", "bid"), bids)
    assert not np.array_equal(Market(tmp_path / "other").column("bids", "bid"), bids)


def test_another_folder_is_not_recognised(tmp_path):
    assert not beauty.recognise(tmp_path)
    assert not beauty.recognise(tmp_path / "absent")
    with pytest.raises(DataError, match="not the Beauty data"):
        beauty.convert(tmp_path, tmp_path / "out")
