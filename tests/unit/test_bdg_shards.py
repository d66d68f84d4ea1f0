"""The job's shards and attributes: every item is in its own shard, with what the file says of it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ann_kit import FIRST_ID, publish_embeddings

from trainers.bdg.train import Config, Inputs, Means, train
from vitrine.ann.build import Parameters, Threads
from vitrine.ann.embeddings import Embeddings
from vitrine.ann.index import BinaryIndex, Options, View
from vitrine.artifacts import ArtifactStore
from vitrine.errors import FieldError
from vitrine.placement import shards_of

N = 300
CONFIG = Config(bits=128, splits=(), shards=3, graph=Parameters(leaf=64))


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    store = ArtifactStore(tmp_path / "store")
    publish_embeddings(store, tmp_path / "embeddings", n=N)
    return store


def shards_in(store: ArtifactStore, shards: int) -> list[BinaryIndex]:
    folder = store.fetch("binary-index", max_schema=2).path
    return [BinaryIndex.load(folder, shard=i, shards=shards) for i in range(shards)]


def attributes_file(tmp_path, **columns) -> object:
    """A Parquet file of attributes in no order, for every second item and one that there is not."""
    ids = np.append(np.arange(FIRST_ID, FIRST_ID + N, 2), 7)[::-1]
    table = {"item_id": pa.array(ids, pa.uint64())} | columns
    pq.write_table(pa.table(table), tmp_path / "attributes.parquet")
    return tmp_path / "attributes.parquet"


def test_every_item_is_in_the_shard_of_its_id_and_no_other(store, tmp_path):
    train(store, Inputs(), tmp_path / "work", CONFIG)
    vectors = Embeddings.load(store.fetch("embeddings", max_schema=1).path)
    parts = shards_in(store, 3)
    for number, part in enumerate(parts):
        (view,) = part.segments
        assert np.array_equal(view.segment.ids, vectors.ids[shards_of(vectors.ids, 3) == number])
        assert np.array_equal(view.segment.vectors, vectors.vectors[shards_of(vectors.ids, 3) == number])
        assert view.segment.graph is not None
        part.warm_up()
    whole = BinaryIndex(parts[0].hashing, tuple(View(p.segments[0].segment) for p in parts), 10, 64, "")
    found = whole.search_vectors(vectors.vectors[:20], Options(5, over_recall=100))
    exact = np.argsort(-(vectors.vectors[:20] @ vectors.vectors.T), axis=1)[:, :5]
    assert np.array_equal(found.ids.reshape(20, 5), vectors.ids[exact])
    meta = json.loads((store.fetch("binary-index", max_schema=2).path / "meta.json").read_text())
    assert meta["shards"] == 3
    assert meta["parameters"] == CONFIG.graph.as_dict()


def test_workers_and_memory_do_not_change_an_artifact(store, tmp_path):
    def files(work: str, means: Means) -> dict[str, str]:
        train(store, Inputs(), tmp_path / work, CONFIG, means)
        return {name: entry["sha256"] for name, entry in store.manifest("binary-index").files.items()}

    expected = files("one", Means(Threads(1)))
    assert len(expected) == 2 + 3 * 9
    assert files("two", Means(Threads(2), 1)) == expected
    assert files("four", Means(Threads(4), 10)) == expected


def test_a_shard_without_items_is_refused(store, tmp_path):
    with pytest.raises(FieldError, match=r"shards: 1000 for 300 items leave shard \d empty"):
        train(store, Inputs(), tmp_path / "work", Config(bits=64, splits=(), shards=1000))


def test_items_have_the_attributes_of_the_file(store, tmp_path):
    half = N // 2 + 1
    file = attributes_file(
        tmp_path,
        price=pa.array([None if i % 3 == 0 else i / 4 for i in range(half)], pa.float32()),
        stock=pa.array(range(half), pa.int16()),
        brand=pa.array([f"brand {i % 5}" for i in range(half)]).dictionary_encode(),
    )
    train(store, Inputs(attributes=file), tmp_path / "work", CONFIG)
    expected = {
        row["item_id"]: {n: v for n, v in row.items() if n != "item_id" and v is not None}
        for row in pq.read_table(file).to_pylist()
    }
    for number, part in enumerate(shards_in(store, 3)):
        ids = part.segments[0].segment.ids
        assert set(part.kinds) == {"price", "stock", "brand"}, number
        assert part.get(ids).attributes == [expected.get(i, {}) for i in ids.tolist()]


@pytest.mark.parametrize(
    ("message", "columns"),
    [
        ("has no column item_id", {"item_id": pa.array(["a"] * (N // 2 + 1))}),
        ("row 3: item 1293 is in row 2 already", {"item_id": pa.array([7, 8, 1293, 1293])}),
        ("row 1: item_id is null", {"item_id": pa.array([7, None])}),
        ("row 1: item_id is -1; ids begin at 1", {"item_id": pa.array([7, -1])}),
        ("column Price: attributes: name 'Price'", {"Price": pa.array([1.0] * (N // 2 + 1))}),
        ("column new: bool: is no type of an attribute", {"new": pa.array([True] * (N // 2 + 1))}),
        ("column price: row 9: is not finite", {"price": pa.array([1.0] * 9 + [np.inf] + [None] * (N // 2 - 9))}),
    ],
)
def test_a_file_of_attributes_that_cannot_be_used_is_refused_by_its_place(store, tmp_path, message, columns):
    file = attributes_file(tmp_path)
    table = {"item_id": pq.read_table(file)["item_id"]} | columns
    pq.write_table(pa.table(table), file)
    with pytest.raises(FieldError, match=r"attributes: .*attributes\.parquet.*" + message):
        train(store, Inputs(attributes=file), tmp_path / "work", CONFIG)
    assert "binary-index" not in store.names()
