"""Deletions become tombstones once nothing retained can bring their items back, whoever writes meanwhile."""

from collections.abc import Iterator

import numpy as np
import pytest
from ann_kit import FIRST_ID, publish_embeddings, unit_vectors
from kafka import KafkaProducer
from typer.testing import CliRunner

from vitrine.ann import updates
from vitrine.ann.updates import Update
from vitrine.artifacts import ArtifactStore
from vitrine.cli.topics import app
from vitrine.placement import qualify
from vitrine.runtime import kafka, tombstones, topics
from vitrine.runtime.contained import offsets
from vitrine.runtime.embedded import EmbeddedStack
from vitrine.runtime.tail import Tail

INDEX = "binary-index"
NOBODY = np.empty(0, np.uint64)
LATER = 2**50


class Run:
    """A topic of one partition, and a store whose versions contain the log up to where they say."""

    def __init__(self, url: str, namespace: str, folder) -> None:
        topics.create(url, namespace, 1)
        self.url, self.namespace, self.folder = url, namespace, folder
        self.topic = qualify(namespace, topics.ITEM_UPDATES)
        self.store = ArtifactStore(folder / "store", namespace=namespace)
        self.producer: KafkaProducer = kafka.producer(url)
        (folder / "files").mkdir()
        (folder / "files" / "one").write_text("x")

    def write(self, item_id: int, *, deleted: bool = False) -> None:
        update = Update(item_id, None if deleted else unit_vectors(item_id, 1, 4)[0])
        self.send(item_id, updates.value_of(INDEX, update, "v"))

    def send(self, item_id: int, value: bytes | None) -> None:
        self.producer.send(self.topic, key=updates.key_of(INDEX, item_id), value=value).get(timeout=30)

    def publish(self, contains: int | None) -> None:
        found = None if contains is None else offsets(self.topic, kafka.cluster_id(self.url), {0: contains})
        self.store.publish(INDEX, self.folder / "files", schema=1, offsets=found)

    def bury(self, embedded=NOBODY, **options) -> tuple[int, int]:
        options = {"now_ms": LATER} | options
        done = tombstones.bury(self.url, self.namespace, self.store, np.array(embedded, np.uint64), **options)
        return done.buried, done.needed

    def last(self) -> dict[bytes, bytes | None]:
        """What compaction would leave."""
        found: dict[bytes, bytes | None] = {}

        def take(records) -> int:
            found.update((record.key, record.value) for record in records[0])
            return 0

        tail = Tail(self.url, self.topic, take)
        tail.wait_caught_up(30)
        tail.close()
        return found


@pytest.fixture
def run(stack: EmbeddedStack, namespace: str, tmp_path) -> Iterator[Run]:
    started = Run(stack.kafka_url, namespace, tmp_path)
    yield started
    started.producer.close(timeout=2)


def test_a_deletion_is_buried_once_every_retained_version_contains_it(run):
    run.write(1)
    run.write(1, deleted=True)  # offset 1
    run.write(2)
    assert run.bury() == (0, 1), "an index without a version may be published yet"
    run.publish(contains=1)
    run.publish(contains=2)
    assert run.bury() == (0, 1), "the older version would bring it back"
    run.store.prune(INDEX, keep=1)
    assert run.bury(dry_run=True) == (1, 0)
    assert run.last()[b"binary-index/1"] is not None
    assert run.bury() == (1, 0)
    assert run.last()[b"binary-index/1"] is None
    assert run.last()[b"binary-index/2"] is not None
    assert run.bury() == (0, 0)


def test_a_version_without_offsets_contains_nothing(run):
    run.write(1, deleted=True)
    run.publish(contains=None)
    run.publish(contains=1)
    assert run.bury() == (0, 1)


def test_a_young_deletion_and_one_of_an_item_that_embeddings_still_have_are_kept(run):
    run.write(1, deleted=True)
    run.write(7, deleted=True)
    run.publish(contains=2)
    assert run.bury(now_ms=0) == (0, 2)
    assert run.bury(embedded=[3, 7, 9]) == (1, 1)
    assert run.last()[b"binary-index/7"] is not None


def test_an_upsert_between_the_look_and_the_tombstone_outlives_it(run, monkeypatch):
    run.write(1, deleted=True)
    run.write(2, deleted=True)
    run.publish(contains=2)
    append, times = tombstones._Log._append, []

    def late(log, records):
        times.append(len(records))
        if len(times) == 1:
            run.write(1)  # after the look
        if len(times) == 2:
            run.write(1, deleted=True)  # between the tombstone's look and what is appended again
        append(log, records)

    monkeypatch.setattr(tombstones._Log, "_append", late)
    run.bury()
    assert times == [2, 1, 1]
    last = run.last()
    assert last[b"binary-index/2"] is None
    assert updates.parse(b"binary-index/1", last[b"binary-index/1"], INDEX, "v", 4).vector is None


def test_what_a_killed_run_left_behind_its_tombstone_is_appended_again(run):
    run.publish(contains=0)
    run.write(1)
    run.send(1, None)
    run.bury()
    assert run.last()[b"binary-index/1"] is not None


def test_the_command_buries_what_no_embeddings_have(run):
    run.write(FIRST_ID, deleted=True)
    run.write(7, deleted=True)
    publish_embeddings(run.store, run.folder / "embeddings", n=10, encoder=False)
    run.publish(contains=2)
    command = ["bury", "--kafka-url", run.url, "--namespace", run.namespace, "--store", run.store.root]
    result = CliRunner().invoke(app, [*command, "--older-than-h", "0"])
    assert result.output.split() == ["buried", "1", "needed", "1"], result.output
    assert run.last()[b"binary-index/7"] is None
    assert run.last()[b"binary-index/%d" % FIRST_ID] is not None
    assert CliRunner().invoke(app, command[:-2], env={"VITRINE_STORE": ""}).exit_code == 1
