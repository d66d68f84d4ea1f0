"""The catalog: built from a market, read back, looked up as a plain dictionary would, and refused where damaged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.catalog import postings
from trainers.catalog.numbers import going_on
from trainers.catalog.train import Options, train
from trainers.runtime.tasks import Tasks
from vitrine.artifacts import ArtifactStore
from vitrine.data.market import Market
from vitrine.data.schemas import TABLES, DataError
from vitrine.data.simulator import write_market
from vitrine.matching.catalog import (
    ALL_GROUPS,
    CROWD_NAMES_FILE,
    CROWD_NAMES_SCHEMA,
    FILES,
    META_FILE,
    SCHEMA,
    TITLES_FILE,
    TITLES_SCHEMA,
    Catalog,
    CatalogError,
    build_item_crowds,
    build_postings,
    read_names,
)

REPOSITORY = Path(__file__).parents[2]
HALF_LIFE_MS = 1_000

ids = st.integers(1, 2**64 - 1)


def catalog_of(crowds, ads, bids, items):
    """crowds: ids; ads: {ad: (advertiser, item)}; bids: {(crowd, ad): bid}; items: {item: crowds}."""
    crowd_ids = np.array(sorted(crowds), np.uint64)
    ad_ids = np.array(sorted(ads), np.uint64)
    pairs = list(bids)
    indptr, posting_ads, posting_bids = build_postings(
        crowd_ids,
        ad_ids,
        np.array([c for c, _ in pairs], np.uint64),
        np.array([a for _, a in pairs], np.uint64),
        np.array([bids[pair] for pair in pairs], np.float32),
    )
    item_ids = sorted(items)
    item_indptr, item_crowds = build_item_crowds(
        crowd_ids,
        np.array([len(items[i]) for i in item_ids], np.int64),
        np.array([c for i in item_ids for c in items[i]], np.uint64),
    )
    return Catalog(
        crowds=crowd_ids,
        crowd_indptr=indptr,
        posting_ads=posting_ads,
        posting_bids=posting_bids,
        ads=ad_ids,
        ad_advertisers=np.array([ads[a][0] for a in sorted(ads)], np.uint64),
        ad_items=np.array([ads[a][1] for a in sorted(ads)], np.uint64),
        items=np.array(item_ids, np.uint64),
        item_indptr=item_indptr,
        item_crowd_ordinals=item_crowds,
        half_life_ms=HALF_LIFE_MS,
    )


def assert_same(one, other):
    for name in FILES:
        if name not in ("ad_indptr", "ad_crowds", "ad_bids"):  # which a catalog makes when it is asked for them
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for mine, theirs in zip(one.ad_postings, other.ad_postings, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert one.meta == other.meta


@st.composite
def markets(draw):
    crowds = draw(st.lists(ids, max_size=6, unique=True))
    ads = draw(st.dictionaries(ids, st.tuples(ids, st.integers(0, 9)), max_size=6))
    bids = {}
    if crowds and ads:
        pair = st.tuples(st.sampled_from(crowds), st.sampled_from(sorted(ads)))
        bids = draw(st.dictionaries(pair, st.floats(0.015625, 100.0, width=32), max_size=15))
    some_crowds = st.lists(st.sampled_from(crowds), unique=True, max_size=4) if crowds else st.just([])
    items = draw(st.dictionaries(ids, some_crowds, max_size=6))
    return crowds, ads, bids, items


@given(markets(), ids)
def test_lookups_agree_with_the_dictionaries_it_was_built_from(market, stranger):
    crowds, ads, bids, items = market
    catalog = catalog_of(*market)
    for crowd in [*crowds, stranger]:
        found_ads, found_bids = catalog.postings(crowd)
        found = dict(zip(catalog.ads[found_ads].tolist(), found_bids.tolist(), strict=True))
        assert found == {a: bid for (c, a), bid in bids.items() if c == crowd}
    for ad in [*ads, stranger]:
        found_crowds, found_bids = catalog.bids_of(ad)
        assert found_crowds.tolist() == sorted(c for c, a in bids if a == ad)
        assert found_bids.tolist() == [bids[c, ad] for c in found_crowds.tolist()]
        assert catalog.item_of(ad) == ads.get(ad, (0, 0))[1]
    for item in [*items, stranger]:
        assert catalog.item_crowds(item).tolist() == sorted(items.get(item, []))
    wanted = [stranger, *crowds, stranger]
    ordinals, known = catalog.crowd_ordinals(wanted)
    assert known.tolist() == [c in crowds for c in wanted]
    assert catalog.crowds[ordinals].tolist() == [c for c in wanted if c in crowds]
    assert catalog.ad_ordinals(sorted(ads))[0].tolist() == list(range(len(ads)))


@given(markets())
@settings(max_examples=30)
def test_what_is_written_is_loaded_again(tmp_path_factory, market):
    catalog = catalog_of(*market)
    folder = tmp_path_factory.mktemp("catalog")
    catalog.write(folder)
    again = Catalog.load(folder)
    for name, (_, dtype) in FILES.items():
        assert getattr(again, name).dtype == dtype
    assert_same(again, catalog)
    assert again.half_life_ms == HALF_LIFE_MS


@pytest.fixture
def folder(tmp_path):
    """Crowds 10, 20, 30; ads 1, 2; items 5, 6."""
    bids = {(10, 1): 1.0, (10, 2): 2.0, (30, 2): 3.0}
    catalog_of([10, 20, 30], {1: (7, 5), 2: (7, 6)}, bids, {5: [10, 30], 6: []}).write(tmp_path)
    return tmp_path


def test_crowd_sizes_count_bids(folder):
    assert Catalog.load(folder).crowd_sizes.tolist() == [2, 0, 1]


DAMAGE = [
    ("crowds.npy", np.uint64, [10, 30, 20], "ids must be above 0 and strictly ascending"),
    ("crowds.npy", np.uint64, [0, 20, 30], "ids must be above 0"),
    ("ads.npy", np.uint64, [2, 2], "strictly ascending"),
    ("ad_items.npy", np.uint64, [5], "1 entries for 2 ads"),
    ("ad_advertisers.npy", np.uint64, [7, 7, 7], "3 entries for 2 ads"),
    ("crowd_indptr.npy", np.int64, [0, 2, 1, 3], "must have 4 entries that rise from 0 to 3"),
    ("crowd_indptr.npy", np.int64, [0, 2, 3], "must have 4 entries"),
    ("crowd_indptr.npy", np.int64, [1, 2, 2, 3], "rise from 0"),
    ("crowd_indptr.npy", np.int64, [0, 2, 2, 2], "rise from 0 to 3"),
    ("posting_ads.npy", np.uint32, [0, 2, 1], "ordinal 2 is out of range; there are 2"),
    ("posting_ads.npy", np.uint32, [1, 0, 1], "ascending inside a row"),
    ("posting_ads.npy", np.uint32, [1, 1, 1], "ascending inside a row, each once"),
    ("posting_bids.npy", np.float32, [1, np.nan, 3], "bids must be finite and above 0"),
    ("posting_bids.npy", np.float32, [1, 0, 3], "bids must be finite and above 0"),
    ("posting_bids.npy", np.float32, [1, 2], "2 bids for 3 posting ads"),
    ("item_indptr.npy", np.int64, [], "must have 3 entries"),
    ("item_crowds.npy", np.uint32, [0, 3], "ordinal 3 is out of range; there are 3"),
    ("ad_groups.npy", np.uint8, [0, 1], "masks must be 1 to 15"),
    ("ad_groups.npy", np.uint8, [1, 16], "masks must be 1 to 15"),
    ("ad_budgets.npy", np.float64, [1, np.nan], "budgets must be finite, 0 or more"),
    ("ad_caps.npy", np.uint32, [1], "1 entries for 2 ads"),
    ("ad_schedule.npy", np.int64, [[0, 0, 0]] * 2, "rows of 3; wanted are rows of 2"),
    ("ad_numbers.npy", np.uint32, [1, 1], "numbers must be below 2 and each of one ad"),
    ("crowd_numbers.npy", np.uint32, [0, 1, 7], "numbers must be below 3 and each of one crowd"),
    ("neg_indptr.npy", np.int64, [0, 0, 1], "must have 3 entries that rise from 0 to 0"),
    ("ad_crowds.npy", np.uint32, [0, 0, 3], "ordinal 3 is out of range; there are 3"),
    ("items.npy", np.int64, [5, 6], "holds int64 of 1 dimensions; wanted is one dimension of uint64"),
    ("items.npy", np.uint64, [[5, 6]], "of 2 dimensions"),
]


@pytest.mark.parametrize(("file", "dtype", "values", "message"), DAMAGE)
def test_a_damaged_array_is_refused_by_its_files_name(folder, file, dtype, values, message):
    np.save(folder / file, np.array(values, dtype))
    with pytest.raises(CatalogError, match=message) as caught:
        Catalog.load(folder)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("file", [file for file, _ in FILES.values()])
def test_a_missing_or_cut_file_is_refused_by_its_name(folder, file):
    whole = (folder / file).read_bytes()
    for kept in (len(whole) - 1, 20, 0):
        (folder / file).write_bytes(whole[:kept])
        with pytest.raises(CatalogError, match=file):
            Catalog.load(folder)
    (folder / file).unlink()
    with pytest.raises(CatalogError, match=f"{file}: missing"):
        Catalog.load(folder)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"half_life_ms": "soon"}', '{"half_life_ms": 0}'])
def test_a_meta_without_a_half_life_is_refused(folder, text):
    (folder / META_FILE).unlink()
    if text is not None:
        (folder / META_FILE).write_text(text)
    with pytest.raises(CatalogError, match=META_FILE):
        Catalog.load(folder)


def test_a_pickle_is_not_loaded(folder):
    np.save(folder / "ads.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(CatalogError, match=r"ads\.npy: not a readable npy file"):
        Catalog.load(folder)


def test_reading_a_catalog_imports_no_torch(folder):
    script = (
        "import sys; from vitrine.matching.catalog import Catalog; Catalog.load(sys.argv[1]);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, cwd=REPOSITORY)


# The job.


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    out = tmp_path_factory.mktemp("market")
    write_market(out, users=20, ads=60, crowds=12, pictures=0, seed=8)
    return out


def publish(market, tmp_path, namespace="", **options):
    options = Options(**{"half_life_ms": HALF_LIFE_MS} | options)
    return train(market, str(tmp_path / "store"), namespace=namespace, work=tmp_path / "work", options=options)


def loaded(tmp_path, version="stable"):
    return Catalog.load(ArtifactStore(str(tmp_path / "store")).fetch("catalog", version, max_schema=SCHEMA).path)


def test_the_published_catalog_is_that_of_the_market(market, tmp_path):
    publish(market, tmp_path, namespace="shop")
    local = ArtifactStore(str(tmp_path / "store"), namespace="shop").fetch("catalog", max_schema=SCHEMA)
    catalog, tables = Catalog.load(local.path), Market(market)
    ads, bids, items = tables.table("ads"), tables.table("bids"), tables.table("items")
    wanted = catalog_of(
        tables.column("crowds", "crowd_id").tolist(),
        {r["ad_id"]: (r["advertiser_id"], r["item_id"]) for r in ads.to_pylist()},
        {(r["crowd_id"], r["ad_id"]): r["bid"] for r in bids.to_pylist()},
        {r["item_id"]: r["crowd_ids"] for r in items.to_pylist()},
    )
    assert_same(catalog, wanted)
    assert catalog.half_life_ms == HALF_LIFE_MS
    assert read_names(local.path / TITLES_FILE, TITLES_SCHEMA) == {r["ad_id"]: r["title"] for r in ads.to_pylist()}
    assert len(read_names(local.path / CROWD_NAMES_FILE, CROWD_NAMES_SCHEMA)) == 12
    metrics = local.manifest.metrics
    assert (metrics["ads"], metrics["crowds"], metrics["postings"]) == (60, 12, bids.num_rows)
    assert metrics["crowd_size_median"] == np.median(catalog.crowd_sizes)


def test_bids_that_do_not_fit_at_once_make_the_same_catalog(market, tmp_path, monkeypatch):
    whole = loaded(tmp_path, publish(market, tmp_path))
    monkeypatch.setattr(postings, "ROWS", 7)
    shutil.rmtree(tmp_path / "work")
    assert_same(loaded(tmp_path, publish(market, tmp_path)), whole)


def with_optional(market, folder):
    """The market with bounds on ads 1 and 2 in its order, and negatives of the first."""
    shutil.copytree(market, folder)
    ads = pq.read_table(folder / "ads.parquet")
    some = {"placement_groups": [2], "max_impressions": [3], "start_ms": [10**12], "daily_budget": [0.5]}
    for name, values in some.items():
        kind = TABLES["ads"].schema.field(name).type
        ads = ads.append_column(name, pa.array(values + [None] * (len(ads) - 1), kind))
    pq.write_table(ads, folder / "ads.parquet")
    first = ads["ad_id"][0].as_py()
    negatives = pa.table([[first] * 2, [5, 3]], TABLES["negatives"].schema)
    pq.write_table(negatives, folder / "negatives.parquet")
    return first


def test_bounds_and_negatives_of_a_market_come_into_its_catalog(market, tmp_path):
    first = with_optional(market, tmp_path / "market")
    publish(tmp_path / "market", tmp_path, groups=("feed", "side"), cap_window_ms=5)
    catalog = loaded(tmp_path)
    assert (catalog.groups, catalog.cap_window_ms, catalog.offset) == (("feed", "side"), 5, 0)
    assert catalog.ads[0] == first
    assert catalog.negatives_of(0).tolist() == [3, 5]
    assert catalog.negatives_of(1).tolist() == []
    assert (catalog.ad_groups[:2].tolist(), catalog.ad_caps[:2].tolist()) == ([2, ALL_GROUPS], [3, 0])
    assert catalog.ad_schedule[:2].tolist() == [[10**12, 0], [0, 0]]
    assert catalog.ad_budgets[:2].tolist() == [0.5, 0]


def test_numbers_stay_an_ads_and_a_crowds_own_from_catalog_to_catalog(market, tmp_path):
    one = loaded(tmp_path, publish(market, tmp_path))
    smaller = tmp_path / "smaller"
    shutil.copytree(market, smaller)
    ads, bids = pq.read_table(smaller / "ads.parquet"), pq.read_table(smaller / "bids.parquet")
    gone = ads["ad_id"].to_pylist()[-20:]
    pq.write_table(ads.slice(0, len(ads) - 20), smaller / "ads.parquet")
    pq.write_table(bids.filter(pc.invert(pc.is_in(bids["ad_id"], pa.array(gone)))), smaller / "bids.parquet")
    two = loaded(tmp_path, publish(smaller, tmp_path))
    three = loaded(tmp_path, publish(market, tmp_path))  # the twenty come back
    ArtifactStore(str(tmp_path / "store")).rollback("catalog")
    four = loaded(tmp_path, publish(market, tmp_path))  # after a rollback the newest still has the numbers
    assert two.next_ad_number == one.next_ad_number == 60
    assert two.ads_of_numbers(one.ad_numbers[:40])[0].tolist() == one.ads[:40].tolist()
    assert two.ads_of_numbers(one.ad_numbers)[1].tolist() == [True] * 40 + [False] * 20
    assert three.ad_numbers.tolist() == [*range(40), *range(60, 80)]  # never again what others may still hold
    assert four.ad_numbers.tolist() == three.ad_numbers.tolist()
    assert four.crowd_numbers.tolist() == one.crowd_numbers.tolist()
    assert four.crowds_of_numbers([3, 99, 0])[0].tolist() == [four.crowds[3], four.crowds[0]]


@given(st.lists(st.lists(ids, unique=True, max_size=8), max_size=6))
def test_no_number_is_given_twice(generations):
    known, numbers, following = np.empty(0, np.uint64), np.empty(0, np.uint32), 0
    owner = {}
    for generation in generations:
        each = np.array(sorted(generation), np.uint64)
        given_now, following = going_on(each, known, numbers, following)
        before = dict(zip(known.tolist(), numbers.tolist(), strict=True))
        for id, number in zip(each.tolist(), given_now.tolist(), strict=True):
            assert number == before.get(id, number)
            assert number in before.values() or number not in owner
            owner[number] = id
        known, numbers = each, given_now


def test_a_catalog_of_the_schema_before_is_read_with_no_bounds(folder):
    new = Catalog.load(folder)
    for name in FILES.keys() - {"crowds", "crowd_indptr", "posting_ads", "posting_bids", "ads", "ad_advertisers"}:
        if not name.startswith(("item", "ad_items")):
            (folder / FILES[name][0]).unlink()
    (folder / META_FILE).write_text(json.dumps({"half_life_ms": HALF_LIFE_MS}))
    assert_same(Catalog.load(folder), new)


def test_a_catalog_of_a_later_schema_is_refused(folder):
    (folder / META_FILE).write_text(json.dumps({"schema": 3, "half_life_ms": HALF_LIFE_MS}))
    with pytest.raises(CatalogError, match=r"meta\.json: schema 3; this reader knows 1 to 2: upgrade it"):
        Catalog.load(folder)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"groups": []}, "groups are"),
        ({"groups": ["a", "a"]}, "groups are"),
        ({"groups": list("abcde")}, "wanted are 1 to 4 names"),
        ({"groups": "ab"}, "no list of names"),
        ({"cap_window_ms": 0}, "cap_window_ms is 0"),
        ({"offset": -1}, "offset is -1"),
        ({"next_ad_number": 1}, "ad_numbers.npy: numbers must be below 1"),
    ],
)
def test_a_meta_that_is_wrong_is_refused_by_its_field(folder, fields, told):
    meta = json.loads((folder / META_FILE).read_text())
    (folder / META_FILE).write_text(json.dumps(meta | fields))
    with pytest.raises(CatalogError, match=told):
        Catalog.load(folder)


@given(markets(), st.lists(st.tuples(ids, ids), max_size=5))
def test_bids_of_pairs_are_those_of_the_dictionary(market, strangers):
    crowds, ads, bids, _ = market
    pairs = [(ad, crowd) for ad in ads for crowd in crowds] + strangers
    found = catalog_of(*market).pair_bids([ad for ad, _ in pairs], [crowd for _, crowd in pairs])
    wanted = np.array([bids.get((crowd, ad), np.nan) for ad, crowd in pairs], np.float32)
    np.testing.assert_array_equal(found, wanted)


def test_rows_in_any_order_make_the_same_catalog(market, tmp_path):
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    rng = np.random.default_rng(0)
    for file in market.iterdir():
        if file.suffix == ".parquet":
            table = pq.read_table(file)
            order = rng.permutation(len(table)) if file.stem in ("crowds", "ads", "bids", "items") else slice(None)
            pq.write_table(table.take(np.arange(len(table))[order]), shuffled / file.name)
    store = ArtifactStore(str(tmp_path / "store"))
    one = store.fetch("catalog", publish(market, tmp_path), max_schema=SCHEMA)
    two = store.fetch("catalog", publish(shuffled, tmp_path), max_schema=SCHEMA)
    for file, _ in FILES.values():
        assert one.manifest.files[file] == two.manifest.files[file]


def test_an_ad_of_no_item_has_item_0(market, tmp_path):
    folder = tmp_path / "market"
    shutil.copytree(market, folder)
    ads = pq.read_table(folder / "ads.parquet")
    items = pa.array([None, *ads["item_id"].to_pylist()[1:]], pa.uint64())
    pq.write_table(ads.set_column(2, "item_id", items), folder / "ads.parquet")
    publish(folder, tmp_path)
    catalog = Catalog.load(ArtifactStore(str(tmp_path / "store")).fetch("catalog", max_schema=SCHEMA).path)
    assert [catalog.item_of(int(ad)) for ad in catalog.ads[:2]] == [0, 2]


def last_result(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_finished_tasks_are_not_done_again(market, tmp_path, capsys):
    first = publish(market, tmp_path)
    assert last_result(capsys)["metrics"]["tasks_resumed"] == 0
    second = publish(market, tmp_path)
    again = last_result(capsys)
    assert again["metrics"]["tasks_resumed"] == 3
    assert again["artifacts"] == {"catalog": second}
    assert second != first


def test_what_changed_is_done_again_and_nothing_else(market, tmp_path, capsys):
    publish(market, tmp_path)
    publish(market, tmp_path, half_life_ms=2 * HALF_LIFE_MS)
    assert last_result(capsys)["metrics"]["tasks_resumed"] == 3  # only the assembly has the half-life in it


def test_a_task_that_fails_leaves_nothing_that_looks_finished(tmp_path):
    tasks = Tasks(tmp_path)

    def half(out):
        (out / "part").write_text("half")
        raise OSError("disk full")

    def whole(out):
        (out / "part").write_text("whole")

    with pytest.raises(OSError, match="disk full"):
        tasks.run("write", ["input"], half)
    assert (tasks.run("write", ["input"], whole) / "part").read_text() == "whole"
    assert (tasks.run("write", ["input"], half) / "part").read_text() == "whole"
    assert tasks.run("write", ["another input"], whole) != tasks.run("write", ["input"], half)


def test_a_wrong_market_is_not_published(market, tmp_path):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(market, spoilt)
    pq.write_table(pq.read_table(spoilt / "bids.parquet").drop_columns("bid"), spoilt / "bids.parquet")
    with pytest.raises(DataError, match=r"bids\.parquet, column bid: missing"):
        publish(spoilt, tmp_path)
    assert not ArtifactStore(str(tmp_path / "store")).list("catalog")


def test_the_command_says_what_is_wrong_and_fails(market, tmp_path):
    (tmp_path / "file").touch()
    for flags, told in (
        ({"--market": tmp_path, "--store": tmp_path / "s"}, "bids.parquet: no such file"),
        ({"--market": market, "--store": tmp_path / "file"}, "Not a directory"),
        ({"--market": market, "--store": tmp_path / "s", "--work": tmp_path / "file"}, "File exists"),
        ({"--market": market, "--store": tmp_path / "s", "--updates": "nonsense"}, "kafka://"),
        ({"--market": market, "--store": tmp_path / "s", "--group": ""}, "groups are ['']"),
    ):
        command = [sys.executable, "-m", "trainers.catalog", *(str(x) for pair in flags.items() for x in pair)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPOSITORY)
        assert done.returncode == 1
        assert told in done.stderr
        assert "Traceback" not in done.stderr
