"""The job and the log: an index contains what item-updates says up to now, and names how far that is."""

import json

import numpy as np
import pytest
from ann_kit import FIRST_ID, publish_embeddings, unit_vectors

from trainers.bdg import log
from trainers.bdg import train as job
from trainers.bdg.train import Config, Inputs, train
from vitrine.ann import updates
from vitrine.ann.index import BinaryIndex
from vitrine.ann.updates import Update
from vitrine.artifacts import ArtifactStore
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics

CONFIG = Config(bits=64, splits=())
INDEX = "photos"
N = 60


class Run:
    """A store with embeddings of 60 items, and the log."""

    def __init__(self, url: str, namespace: str, folder) -> None:
        self.url, self.namespace, self.folder = url, namespace, folder
        topics.create(url, namespace, 4)
        self.topic = qualify(namespace, topics.ITEM_UPDATES)
        self.store = ArtifactStore(folder / "store", namespace=namespace)
        self.version = publish_embeddings(self.store, folder / "embeddings", n=N, encoder=False).version

    def append(self, *batch: Update, version: str = "") -> None:
        producer = kafka.producer(self.url)
        for update in batch:
            key, value = (
                updates.key_of(INDEX, update.item_id),
                updates.value_of(INDEX, update, version or self.version),
            )
            producer.send(self.topic, key=key, value=value)
        producer.flush()
        producer.close()

    def train(self, config: Config = CONFIG) -> BinaryIndex:
        train(self.store, Inputs(updates=self.url), self.folder / "work", config, name=INDEX)
        return BinaryIndex.load(self.store.fetch(INDEX, max_schema=2).path, shards=config.shards)


@pytest.fixture
def run(stack, namespace, tmp_path) -> Run:
    return Run(stack.kafka_url, namespace, tmp_path)


def test_an_index_contains_the_log_up_to_now_and_names_how_far(run):
    new = unit_vectors(5, 3, 32)
    run.append(
        Update(FIRST_ID, None),
        Update(FIRST_ID + 1, new[0], {"price": 2.5, "brand": "a"}),
        Update(5, new[1], {"price": 3}),
        Update(6, new[1]),
        Update(6, None),
    )
    run.append(Update(FIRST_ID + 2, new[2]), version="20200101T000000000000-00000000")
    index = run.train()
    ids = [5, *range(FIRST_ID + 1, FIRST_ID + N)]
    assert index.segments[0].segment.ids.tolist() == ids
    got = index.get(np.array(ids, np.uint64))
    assert np.array_equal(got.vectors[:2], new[[1, 0]])
    assert np.array_equal(got.vectors[2:], unit_vectors(0, N, 32)[2:])
    assert got.attributes[:3] == [{"price": 3.0}, {"price": 2.5, "brand": "a"}, {}]
    manifest = run.store.manifest(INDEX)
    assert manifest.kind == "binary-index"
    assert manifest.offsets["cluster"] == kafka.cluster_id(run.url)
    assert sum(manifest.offsets["topics"][run.topic].values()) == 6
    assert sorted(manifest.offsets["topics"][run.topic]) == [0, 1, 2, 3]
    assert (manifest.metrics["updates"], manifest.metrics["updates_refused"]) == (4, 1)

    run.append(Update(FIRST_ID, new[2]))
    index = run.train()
    assert index.items == N + 1
    assert sum(run.store.manifest(INDEX).offsets["topics"][run.topic].values()) == 7


def test_a_job_that_resumes_goes_on_from_the_updates_that_it_had_read(run, monkeypatch):
    run.append(Update(FIRST_ID, None))
    with monkeypatch.context() as broken:
        broken.setattr(job, "measure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.train()
    run.append(Update(FIRST_ID + 1, None))
    with monkeypatch.context() as alone:
        alone.setattr(log, "read", lambda *_: pytest.fail("read again"))
        assert run.train().items == N - 1
    assert run.train().items == N - 2


def test_updates_of_another_kind_of_attribute_are_left_out(run):
    vectors = unit_vectors(5, 2, 32)
    run.append(Update(5, vectors[0], {"price": 1.5}), Update(6, vectors[1], {"price": "cheap"}))
    index = run.train()
    assert index.items == N + 1
    assert run.store.manifest(INDEX).metrics["updates_refused"] == 1


def test_an_index_whose_items_are_all_deleted_is_refused(run):
    run.append(*(Update(FIRST_ID + i, None) for i in range(N)))
    with pytest.raises(ValueError, match="updates: every item is deleted"):
        run.train()
    assert INDEX not in run.store.names()


def test_updates_without_an_upsert_survive_being_saved(tmp_path):
    logged = log.Logged({3: Update(3, None)}, {"cluster": "c", "topics": {"t": {0: 4, 1: 0}}}, 2)
    log.save(logged, INDEX, "v", tmp_path)
    assert log.load(tmp_path, INDEX, "v", 8) == logged
    assert json.loads((tmp_path / "offsets.json").read_text())["refused"] == 2
