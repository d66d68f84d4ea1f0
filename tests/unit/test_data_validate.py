"""The validator names the file, the row and the column of every mistake a market can have."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitrine.data.market import Market
from vitrine.data.schemas import TABLES, DataError
from vitrine.data.simulator import write_market
from vitrine.data.validate import MAX_IMAGE_BYTES, MAX_PROBLEMS, validate


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("market")
    write_market(folder, users=40, ads=30, crowds=8, pictures=4, seed=5)
    ads = pq.read_table(folder / "ads.parquet")
    for name, values in OPTIONAL.items():
        kind = TABLES["ads"].schema.field(name).type
        ads = ads.append_column(name, pa.array((values * len(ads))[: len(ads)], kind))
    pq.write_table(ads, folder / "ads.parquet")
    negatives = pa.table([[ads["ad_id"][0].as_py()], [1]], TABLES["negatives"].schema)
    pq.write_table(negatives, folder / "negatives.parquet")
    return folder


OPTIONAL = {
    "placement_groups": [None, 0, 15],
    "max_impressions": [3, None],
    "start_ms": [10**12, None],
    "end_ms": [10**12 + 1, None],
    "daily_budget": [0.5, 0.0, None],
}


@pytest.fixture
def market(sound, tmp_path):
    """A sound market of one's own to spoil."""
    for file in sound.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def spoil(folder, table, row, **values):
    """Set columns of one row, in the schema's types unless an Arrow type is given as (value, type)."""
    path = folder / TABLES[table].file
    data = pq.read_table(path)
    for column, value in values.items():
        kind = data.schema.field(column).type
        if isinstance(value, tuple):
            value, kind = value
        cells = data[column].to_pylist()
        cells[row] = value
        at = data.schema.get_field_index(column)
        data = data.set_column(at, pa.field(column, kind), pa.array(cells, kind))
    pq.write_table(data, path)


def first(folder, table, kind):
    """First row of a kind of event."""
    return pq.read_table(folder / TABLES[table].file)["kind"].to_pylist().index(kind)


def problems(folder):
    with pytest.raises(DataError) as caught:
        validate(folder)
    return caught.value.problems


def test_a_simulated_market_is_sound(sound):
    validate(sound)


def test_progress_ends_at_the_whole_of_every_table(sound):
    seen = {}
    validate(sound, progress=lambda table, fraction: seen.__setitem__(table, fraction))
    assert seen == dict.fromkeys(TABLES, 1.0)


@pytest.mark.parametrize("table", [name for name, t in TABLES.items() if not t.optional])
def test_a_missing_file_is_named_with_its_columns(market, table):
    (market / TABLES[table].file).unlink()
    (problem,) = problems(market)
    assert problem.startswith(f"{table}.parquet: no such file")
    assert TABLES[table].columns[0].name in problem


def test_optional_columns_may_be_absent_and_read_as_null(market):
    path = market / "ads.parquet"
    pq.write_table(pq.read_table(path).drop_columns(list(OPTIONAL)), path)
    validate(market)
    table = Market(market).table("ads")
    assert table.schema == TABLES["ads"].schema
    assert all(table[name].null_count == 30 for name in OPTIONAL)
    assert Market(market).column("ads", "daily_budget").tolist() == [0.0] * 30


@pytest.mark.parametrize("table", ["holdout", "images", "negatives"])
def test_optional_tables_may_be_absent(market, table):
    (market / TABLES[table].file).unlink()
    validate(market)
    assert Market(market).rows(table) == 0


@pytest.mark.parametrize(
    ("table", "column"), [(t.name, c.name) for t in TABLES.values() for c in t.columns if not c.optional]
)
def test_a_missing_column_is_named_with_those_that_are_there(market, table, column):
    path = market / TABLES[table].file
    pq.write_table(pq.read_table(path).drop_columns(column), path)
    (problem,) = problems(market)
    assert problem.startswith(f"{table}.parquet, column {column}: missing; the file has ")
    with pytest.raises(DataError):
        Market(market)


def test_a_file_that_is_not_parquet_is_named(market):
    (market / "bids.parquet").write_bytes(b"crowd_id,ad_id,bid\n1,2,3\n")
    (problem,) = problems(market)
    assert problem.startswith("bids.parquet: cannot be read as Parquet")


def test_a_parquet_file_cut_short_is_named(market):
    whole = (market / "ads.parquet").read_bytes()
    (market / "ads.parquet").write_bytes(whole[: len(whole) // 2])
    assert problems(market)[0].startswith("ads.parquet: cannot be read as Parquet")


def test_a_wrong_type_is_told_with_the_type_wanted(market):
    spoil(market, "ads", 0, advertiser_id=(1.5, pa.float64()))
    assert problems(market) == ["ads.parquet, column advertiser_id: is double; wanted is uint64"]


def test_wider_types_of_the_same_family_are_read_as_the_schema(market):
    for table, column, kind in (
        ("bids", "ad_id", pa.int64()),
        ("bids", "bid", pa.float64()),
        ("events", "kind", pa.dictionary(pa.int32(), pa.string())),
        ("ads", "title", pa.large_string()),
        ("items", "crowd_ids", pa.large_list(pa.int64())),
        ("images", "image", pa.large_binary()),
    ):
        path = market / TABLES[table].file
        data = pq.read_table(path)
        at = data.schema.get_field_index(column)
        pq.write_table(data.set_column(at, pa.field(column, kind), data[column].cast(kind)), path)
    before = {name: Market(market).table(name) for name in TABLES}
    validate(market)
    for name, table in before.items():
        assert table.schema == TABLES[name].schema


BAD_CELLS = [
    ("ads", 3, "placement_groups", 16, "16 is not 1 to 15; null says none"),
    ("ads", 3, "max_impressions", (-1, pa.int64()), "-1 is not 1 to 4,294,967,295; null says none"),
    ("ads", 3, "start_ms", 1_700_000_000, "1700000000 is not 100,000,000,000 to 4,102,444,800,000; null says none"),
    ("ads", 0, "end_ms", 10**12, "1000000000000 is not after start_ms, 1000000000000"),
    ("ads", 3, "daily_budget", float("nan"), "nan is not 1e-06 to 1,000,000,000,000; null says none"),
    ("ads", 3, "daily_budget", -2.0, "-2 is not 1e-06 to 1,000,000,000,000; null says none"),
    ("negatives", 0, "crowd_id", 999, "999 is not in crowds.parquet"),
    ("negatives", 0, "ad_id", 999, "999 is not in ads.parquet"),
    ("users", 3, "user_id", 0, "0 is not an id; ids are whole numbers from 1"),
    ("users", 3, "user_id", (-7, pa.int64()), "-7 is not an id; ids are whole numbers from 1"),
    ("users", 3, "user_id", None, "is null"),
    ("users", 3, "user_id", 1, "1 is there twice"),
    ("crowds", 2, "crowd_id", 1, "1 is there twice"),
    ("crowds", 2, "name", None, "is null"),
    ("items", 4, "item_id", 1, "1 is there twice"),
    ("items", 4, "crowd_ids", None, "is null"),
    ("items", 4, "crowd_ids", [1, 0], "holds 0, which is not an id; ids are whole numbers from 1"),
    ("items", 4, "crowd_ids", [1, None], "holds a null; leave it out"),
    ("items", 4, "crowd_ids", [1, 99], "holds 99, which is not in crowds.parquet"),
    ("items", 4, "crowd_ids", [2, 1, 2], "holds 2, which is there twice"),
    ("ads", 6, "item_id", 77_777, "77777 is not in items.parquet"),
    ("ads", 6, "advertiser_id", 0, "0 is not an id; ids are whole numbers from 1"),
    ("ads", 6, "title", None, "is null"),
    ("bids", 17, "bid", -3.0, "-3.0 is not a finite number > 0"),
    ("bids", 17, "bid", 0.0, "0.0 is not a finite number > 0"),
    ("bids", 17, "bid", float("nan"), "nan is not a finite number > 0"),
    ("bids", 17, "bid", float("inf"), "inf is not a finite number > 0"),
    ("bids", 17, "bid", 5e6, "5000000.0 is above 1,000,000; bids are currency units a click"),
    ("bids", 17, "bid", None, "is null"),
    ("bids", 17, "crowd_id", 4_000, "4000 is not in crowds.parquet"),
    ("bids", 17, "ad_id", 4_000, "4000 is not in ads.parquet"),
    ("events", 9, "user_id", 4_000, "4000 is not in users.parquet"),
    ("events", 9, "user_id", None, "is null"),
    ("events", 9, "time_ms", None, "is null"),
    ("events", 9, "kind", None, "is null"),
    ("events", 9, "kind", "buy", '"buy" is not one of view, purchase, join, leave, impression, click'),
    ("events", 9, "time_ms", 1_750_000_000, "1750000000 is not in the years 1973 to 2100; milliseconds are wanted"),
    ("holdout", 5, "user_id", 1, "1 is there twice"),
    ("holdout", 5, "ad_id", 3, "3 is not in ads.parquet"),
    ("images", 1, "item_id", 1, "1 is there twice"),
    ("images", 1, "split", "dev", '"dev" is not one of train, validation, test'),
    ("images", 1, "category", None, "is null"),
    ("images", 1, "image", None, "is null"),
]


@pytest.mark.parametrize(("table", "row", "column", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_told_by_file_row_and_column(market, table, row, column, value, message):
    spoil(market, table, row, **{column: value})
    assert f"{table}.parquet, row {row}, column {column}: {message}" in problems(market)


@pytest.mark.parametrize(
    ("kind", "column"), [("view", "item_id"), ("purchase", "item_id"), ("join", "crowd_id"), ("click", "ad_id")]
)
def test_an_event_without_the_id_its_kind_needs_is_told(market, kind, column):
    row = first(market, "events", kind)
    spoil(market, "events", row, **{column: None})
    assert problems(market) == [f"events.parquet, row {row}, column {column}: is null; a {kind} needs it"]


@pytest.mark.parametrize("kind", ["view", "impression"])
def test_only_a_click_or_a_purchase_is_held_out(market, kind):
    spoil(market, "holdout", 2, kind=kind)
    assert problems(market) == [
        f'holdout.parquet, row 2, column kind: "{kind}" cannot be held out; click or purchase can'
    ]


def test_a_step_back_in_a_users_time_is_told_wherever_the_users_rows_lie(market):
    path = market / "events.parquet"
    events = pq.read_table(path)
    # Interleave users: rows sorted by time over all users are still sorted within each.
    mixed = events.take(np.argsort(events["time_ms"].to_numpy(), kind="stable"))
    pq.write_table(mixed, path, row_group_size=50)
    validate(market)
    users, times = mixed["user_id"].to_numpy(), mixed["time_ms"].to_numpy()
    row = int(np.flatnonzero(users == users[-1])[-1])
    earliest = int(times[users == users[-1]][0])
    spoil(market, "events", row, time_ms=earliest - 1)
    (problem,) = problems(market)
    assert problem == (
        f"events.parquet, row {row}, column time_ms: {earliest - 1} is before an earlier row of user {users[row]}; "
        "sort each user's by time"
    )


def test_rows_are_counted_over_row_groups_and_batches(market):
    path = market / "bids.parquet"
    data = pq.read_table(path)
    n = 70_000 // data.num_rows + 1  # more rows than one batch of the validator
    big = pa.concat_tables([data] * n)
    crowds = pa.array(np.arange(1, big.num_rows + 1), pa.uint64())
    pq.write_table(big.set_column(0, "crowd_id", crowds), path, row_group_size=1000)
    pq.write_table(pa.table({"crowd_id": crowds, "name": ["a"] * len(crowds)}), market / "crowds.parquet")
    validate(market)
    spoil(market, "bids", 68_123, bid=-1.0)
    assert problems(market) == ["bids.parquet, row 68123, column bid: -1.0 is not a finite number > 0"]


def jpeg(width, height, form="JPEG"):
    out = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(out, form)
    return out.getvalue()


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"", "cannot be decoded as a picture"),
        (b"not a picture", "cannot be decoded as a picture"),
        (jpeg(200, 200)[:-300], "cannot be decoded as a picture"),
        (jpeg(8, 8, "GIF"), "is GIF; wanted is JPEG or PNG"),
        (jpeg(5000, 4000), "5000x4000 is above 16,777,216 pixels; write it smaller"),
        (b"\xff" * (MAX_IMAGE_BYTES + 1), "4,194,305 bytes are more than 4,194,304; write the picture smaller"),
    ],
    ids=["empty", "text", "cut short", "GIF", "too many pixels", "too many bytes"],
)
def test_a_picture_that_cannot_be_used_is_told(market, picture, message):
    spoil(market, "images", 2, image=picture)
    (problem,) = problems(market)
    assert problem.startswith(f"images.parquet, row 2, column image: {message}")


def test_png_pictures_are_fine(market):
    spoil(market, "images", 2, image=jpeg(40, 30, "PNG"))
    validate(market)


def test_the_first_twenty_problems_are_told_and_that_there_are_more(market):
    data = pq.read_table(market / "bids.parquet")
    pq.write_table(data.set_column(2, "bid", pa.array([-1.0] * len(data), pa.float32())), market / "bids.parquet")
    with pytest.raises(DataError, match="and more") as caught:
        validate(market)
    assert len(caught.value.problems) == MAX_PROBLEMS


def test_a_mistake_does_not_hide_those_in_other_files(market):
    spoil(market, "bids", 0, bid=-1.0)
    spoil(market, "images", 0, split="dev")
    assert [p.split(",")[0] for p in problems(market)] == ["bids.parquet", "images.parquet"]


def test_only_the_tables_asked_for_are_checked(market):
    spoil(market, "events", 0, kind="buy")
    (market / "users.parquet").unlink()
    validate(market, ["crowds", "ads", "items", "bids"])


def test_an_ad_may_advertise_no_item(market):
    spoil(market, "ads", 3, item_id=None)
    validate(market)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
def test_the_page_on_data_has_every_column(table):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    section = page.split(f"### {table.file}\n")[1].split("\n#")[0]
    for column in table.columns:
        assert f"| `{column.name}` |" in section
        assert f"| {column.doc} |" in section
    assert ("optional" in section) == table.optional


def test_an_empty_table_is_no_mistake(market):
    for table in ("bids", "events", "holdout", "images"):
        pq.write_table(TABLES[table].schema.empty_table(), market / TABLES[table].file)
    validate(market)
