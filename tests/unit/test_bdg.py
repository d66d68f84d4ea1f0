"""The job that makes a binary index: its bytes, what it resumes, what it measures and refuses."""

import json

import numpy as np
import pytest
from ann_kit import publish_embeddings, segment_of, unit_vectors

from trainers.bdg import measure as measuring
from trainers.bdg import shards
from trainers.bdg import train as job
from trainers.bdg.train import Config, Inputs, train
from vitrine.ann import hashing
from vitrine.ann.embeddings import Embeddings
from vitrine.ann.index import BinaryIndex, Options
from vitrine.artifacts import ArtifactError, ArtifactStore

CONFIG = Config(bits=128, over_recall=4)


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    """A store with `embeddings` of 300 pictures."""
    store = ArtifactStore(tmp_path / "store")
    publish_embeddings(store, tmp_path / "embeddings")
    return store


def loaded(store: ArtifactStore) -> tuple[BinaryIndex, Embeddings]:
    index = store.fetch("binary-index", max_schema=2)
    return BinaryIndex.load(index.path), Embeddings.load(store.fetch("embeddings", max_schema=1).path)


def test_the_index_holds_train_and_validation_pictures_and_names_its_embeddings(store, tmp_path, capsys):
    version = train(store, Inputs(), tmp_path / "work", CONFIG)
    index, vectors = loaded(store)
    split = vectors.thumbnails(["split"])["split"].to_numpy(zero_copy_only=False)
    assert np.array_equal(segment_of(index).ids, vectors.ids[split != "test"])
    assert np.array_equal(segment_of(index).vectors, vectors.vectors[split != "test"])
    assert np.array_equal(segment_of(index).codes, index.hashing.encode(segment_of(index).vectors))
    assert (index.bits, index.over_recall) == (128, 4)
    manifest = store.manifest("binary-index")
    assert manifest.parents == {"embeddings": store.resolve("embeddings")}
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["artifacts"] == {"binary-index": version}
    assert line["metrics"].items() >= manifest.metrics.items()


def test_without_splits_every_picture_is_indexed(store, tmp_path):
    train(store, Inputs(), tmp_path / "work", Config(bits=64, splits=()))
    index, vectors = loaded(store)
    assert np.array_equal(segment_of(index).ids, vectors.ids)
    assert store.manifest("binary-index").metrics["queries_held_out"] == 0


def test_the_bytes_depend_on_vectors_parameters_and_seed_alone(store, tmp_path):
    def files(config: Config, work: str) -> dict[str, str]:
        train(store, Inputs(), tmp_path / work, config)
        return {name: entry["sha256"] for name, entry in store.manifest("binary-index").files.items()}

    first = files(CONFIG, "one")
    assert files(CONFIG, "two") == first
    other = files(Config(bits=128, over_recall=4, seed=1), "one")
    assert other["shard-00000/codes.npy"] != first["shard-00000/codes.npy"]
    assert other["shard-00000/ids.npy"] == first["shard-00000/ids.npy"]


def test_finished_tasks_are_not_done_again(store, tmp_path, monkeypatch):
    train(store, Inputs(), tmp_path / "work", CONFIG)
    monkeypatch.setattr(hashing, "fit", lambda *_, **__: pytest.fail("fitted again"))
    monkeypatch.setattr(shards, "encode", lambda *_: pytest.fail("encoded again"))
    again = train(store, Inputs(), tmp_path / "work", CONFIG)
    assert store.resolve("binary-index") == again
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        train(store, Inputs(), tmp_path / "work", Config(bits=64))


def test_a_job_that_ends_early_shows_readers_nothing_and_resumes(store, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(job, "measure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(store, Inputs(), tmp_path / "work", CONFIG)
    assert "binary-index" not in store.names()
    monkeypatch.setattr(hashing, "fit", lambda *_, **__: pytest.fail("fitted again"))
    train(store, Inputs(), tmp_path / "work", CONFIG)
    assert store.manifest("binary-index").metrics["items"] == 240


def test_recall_is_the_share_of_the_exact_ten_nearest(store, tmp_path):
    train(store, Inputs(), tmp_path / "work", Config(bits=64, over_recall=2))
    index, vectors = loaded(store)
    rows = np.flatnonzero(~np.isin(vectors.ids, segment_of(index).ids))
    found = []
    for row in rows:
        segment = segment_of(index)
        exact = segment.ids[np.argsort(-(segment.vectors @ vectors.vectors[row]), kind="stable")[:10]]
        hits = index.search_vectors(vectors.vectors[[row]], Options(10))
        found.append(len(set(hits.ids) & set(exact)) / 10)
    metrics = store.manifest("binary-index").metrics
    assert metrics["recall_at_10"] == pytest.approx(np.mean(found))
    assert 0.2 < metrics["recall_at_10_by_codes"] < metrics["recall_at_10"] < 1


def test_same_category_counts_each_neighbour_of_the_querys_category(store, tmp_path):
    train(store, Inputs(), tmp_path / "work", CONFIG)
    index, vectors = loaded(store)
    category = dict(
        zip(vectors.ids.tolist(), vectors.thumbnails(["category"])["category"].to_pylist(), strict=True)
    )
    asked = [i for i in vectors.ids.tolist() if i not in set(segment_of(index).ids.tolist())]
    hits = index.search_vectors(vectors.vectors[np.searchsorted(vectors.ids, asked)], Options(10))
    found = hits.ids.reshape(-1, 10).tolist()
    same = [category[f] == category[q] for q, row in zip(asked, found, strict=True) for f in row]
    assert store.manifest("binary-index").metrics["search_same_category_at_10"] == pytest.approx(np.mean(same))


@pytest.mark.parametrize("n", [1, 2, 15])
def test_few_items_make_an_index(tmp_path, n):
    store = ArtifactStore(tmp_path / "store")
    publish_embeddings(store, tmp_path / "embeddings", n=n)
    train(store, Inputs(), tmp_path / "work", Config(bits=64, splits=()))
    index, _ = loaded(store)
    assert index.items == n
    assert store.manifest("binary-index").metrics["recall_at_10"] == 1


def test_bounds_are_the_tenth_highest_cosines(monkeypatch):
    monkeypatch.setattr(measuring, "_CHUNK", 7)
    items, queries = unit_vectors(0, 90, 6), unit_vectors(1, 20, 6)
    expected = np.sort(queries @ items.T, axis=1)[:, -10]
    assert np.allclose(
        measuring.exact_bounds([items[:50], items[50:55], items[55:]], queries, 10), expected, atol=1e-6
    )


@pytest.mark.parametrize(
    ("message", "config"),
    [
        ("bits", Config(bits=100)),
        ("dims", Config(dims=33)),
        ("method: 'none' is none of", Config(method="none")),
        ("no picture is in tset; there are test, train, validation", Config(splits=("tset",))),
    ],
)
def test_parameters_that_do_not_fit_are_refused(store, tmp_path, message, config):
    with pytest.raises(ValueError, match=message):
        train(store, Inputs(), tmp_path / "work", config)


@pytest.mark.parametrize("damage", ["missing", "cut", "future"])
def test_embeddings_that_cannot_be_used_are_refused(tmp_path, damage):
    store = ArtifactStore(tmp_path / "store")
    if damage != "missing":
        parent = publish_embeddings(store, tmp_path / "embeddings")
        if damage == "cut":
            file = tmp_path / "store" / "embeddings" / parent.version / "vectors.npy"
            file.write_bytes(file.read_bytes()[:-4])
        else:
            store.publish("embeddings", tmp_path / "embeddings", schema=2)
    with pytest.raises(ArtifactError, match="embeddings"):
        train(store, Inputs(), tmp_path / "work", CONFIG)
    assert "binary-index" not in store.names()


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("thumbnails.parquet does not have the ids", lambda e: np.save(e / "ids.npy", np.load(e / "ids.npy") + 1)),
        ("vectors.npy row 0", lambda e: np.save(e / "vectors.npy", 3 * np.load(e / "vectors.npy"))),
        ("vectors.npy has shape", lambda e: np.save(e / "vectors.npy", np.load(e / "vectors.npy")[1:])),
        ("ids.npy is not ascending", lambda e: np.save(e / "ids.npy", np.load(e / "ids.npy")[::-1])),
        ("thumbnails.parquet cannot be read", lambda e: (e / "thumbnails.parquet").write_bytes(b"PAR1")),
    ],
)
def test_embeddings_whose_files_do_not_fit_are_refused_by_file(tmp_path, message, change):
    store = ArtifactStore(tmp_path / "store")
    publish_embeddings(store, tmp_path / "embeddings")
    change(tmp_path / "embeddings")
    store.publish("embeddings", tmp_path / "embeddings", schema=1)
    with pytest.raises(ArtifactError, match=message):
        train(store, Inputs(), tmp_path / "work", CONFIG)
