"""A market folder reads back what was written into it."""

import json

import numpy as np
import pyarrow as pa
import pytest

from vitrine.data.market import Market, MarketWriter
from vitrine.data.schemas import TABLES, DataError


@pytest.fixture
def folder(tmp_path):
    with MarketWriter(tmp_path, {"name": "two users"}) as market:
        market.write("users", user_id=np.array([1], np.uint64))
        market.write("users", user_id=np.array([2], np.uint64))
        market.write("crowds", crowd_id=[7], name=["seven"])
        market.write("items", item_id=[5, 6], crowd_ids=[[7], []], title=["five", "six"])
        market.write("ads", ad_id=[9], advertiser_id=[1], item_id=[5], title=["nine"])
        market.write("bids", crowd_id=[7], ad_id=[9], bid=[0.25])
        market.write(
            "events",
            user_id=[1, 2],
            time_ms=[10**12, 10**12],
            kind=["view", "join"],
            item_id=[5, None],
            crowd_id=[None, 7],
            ad_id=[None, None],
        )
    return tmp_path


def test_tables_come_back_in_the_schemas_types(folder):
    market = Market(folder)
    assert market.name == "two users"
    assert market.meta["sizes"]["users"] == market.rows("users") == 2
    assert market.table("items").to_pylist() == [
        {"item_id": 5, "crowd_ids": [7], "title": "five"},
        {"item_id": 6, "crowd_ids": [], "title": "six"},
    ]
    assert market.table("events").schema == TABLES["events"].schema


def test_a_write_is_a_row_group_and_batches_are_bounded(folder):
    market = Market(folder)
    assert [batch.num_rows for batch in market.batches("users", rows=1)] == [1, 1]
    assert market.column("users", "user_id").tolist() == [1, 2]


def test_columns_come_in_the_order_asked_for(folder):
    (batch,) = Market(folder).batches("bids", ["bid", "crowd_id"])
    assert batch.schema.names == ["bid", "crowd_id"]
    assert batch.schema.field("bid").type == pa.float32()


def test_null_ids_are_0_in_numpy(folder):
    assert Market(folder).column("events", "item_id").tolist() == [5, 0]


def test_an_optional_table_that_is_absent_is_empty(folder):
    market = Market(folder)
    assert not market.has("holdout")
    assert market.rows("images") == 0
    assert market.table("holdout").schema == TABLES["holdout"].schema


def test_a_market_without_market_json_is_named_after_its_folder(folder):
    (folder / "market.json").unlink()
    assert Market(folder).name == folder.name


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_market_json_that_is_not_an_object_is_refused(folder, text):
    (folder / "market.json").write_text(text)
    with pytest.raises(DataError, match=r"market\.json"):
        Market(folder)


def test_an_interrupted_write_leaves_no_market_json(tmp_path):
    with pytest.raises(KeyError, match="user_id"), MarketWriter(tmp_path, {"name": "x"}) as market:
        market.write("users", user="not a column")
    assert not (tmp_path / "market.json").exists()


def test_writing_again_leaves_nothing_of_the_market_before(folder):
    with MarketWriter(folder, {"name": "empty"}) as market:
        market.write("users", user_id=[3])
    assert not (folder / "bids.parquet").exists()
    assert json.loads((folder / "market.json").read_text())["sizes"] == {"users": 1}
