"""Get, Upsert and Delete as callers see them, on a server that follows the log."""

import secrets

import grpc
import numpy as np
import pytest
from ann_kit import unit_vectors
from ann_live import DIM, INDEX, AnnLive, Replica, ann_live
from kafka import KafkaProducer

from tests.waiting import wait_for
from vitrine.ann import updates
from vitrine.ann.updates import Update
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.api.items.v1.items_pb2 import Attribute, Attributes, Value
from vitrine.runtime import kafka


class Serving:
    """One replica of a small index, and calls whose status counts."""

    def __init__(self, run: AnnLive, replica: Replica) -> None:
        self.run, self.replica = run, replica
        replica.call("Stats", ann_pb2.StatsRequest())
        self.stub = ann_pb2_grpc.AnnServiceStub(replica._channel)

    def upsert(self, items: list[int], **fields: object) -> ann_pb2.UpsertResponse:
        given = {
            "vectors": unit_vectors(1, len(items), DIM).tobytes(),
            "embeddings_version": self.run.embeddings.version,
        }
        return self.stub.Upsert(ann_pb2.UpsertRequest(item_ids=items, **(given | fields)), timeout=20)

    def get(self, *items: int) -> ann_pb2.GetResponse:
        return self.stub.Get(ann_pb2.GetRequest(item_ids=items), timeout=20)


@pytest.fixture(scope="module")
def serving(stack, tmp_path_factory):
    """One for all tests here: each has items and attributes of its own."""
    with ann_live(stack, f"t{secrets.token_hex(5)}", tmp_path_factory.mktemp("ann")) as run:
        run.model = {item: row.tobytes() for item, row in enumerate(unit_vectors(0, 50, DIM), 1)}
        run.publish(seed=0)
        yield Serving(run, run.replica())


def attributes(**values: object) -> Attributes:
    return updates.to_message(values)


def refused(call) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def test_an_upsert_is_visible_when_it_returns_and_replaces_the_item_whole(serving):
    before = serving.stub.Stats(ann_pb2.StatsRequest()).items
    vectors = 3 * unit_vectors(7, 2, DIM)
    given = [attributes(price=3, brand="apex"), attributes(brand="acme")]
    done = serving.upsert([900, 7], vectors=vectors.tobytes(), attributes=given)
    assert done.items == 2
    assert done.sequences
    got = serving.get(7, 5_000, 900)
    assert list(got.item_ids) == [7, 900]
    rows = np.frombuffer(got.vectors, "<f4").reshape(2, DIM)
    assert np.abs(rows - vectors[::-1] / 3).max() < 1e-6
    assert [updates.from_message(each) for each in got.attributes] == [
        {"brand": "acme"},
        {"price": 3, "brand": "apex"},
    ]
    serving.upsert([900])
    assert updates.from_message(serving.get(900).attributes[0]) == {}
    assert serving.stub.Stats(ann_pb2.StatsRequest()).items == before + 1


def test_a_deleted_item_is_gone_and_deleting_it_again_is_no_error(serving):
    for _ in range(2):
        done = serving.stub.Delete(ann_pb2.DeleteRequest(item_ids=[3, 4, 3, 700]), timeout=20)
        assert done.items == 3
        assert list(serving.get(3, 4, 5).item_ids) == [5]


def test_a_deletion_by_filter_removes_what_it_holds_for(serving):
    serving.upsert([101, 102, 103], attributes=[attributes(colour=colour) for colour in ("acme", "apex", "acme")])
    wanted = ann_pb2.Filter(one_of=ann_pb2.OneOf(attribute="colour", values=[Value(text="acme")]))
    done = serving.stub.Delete(ann_pb2.DeleteRequest(filter=wanted), timeout=20)
    assert done.items == 2
    assert list(serving.get(101, 102, 103).item_ids) == [102]


@pytest.mark.parametrize(
    ("code", "named", "fields"),
    [
        ("FAILED_PRECONDITION", "embeddings_version", {"embeddings_version": "20200101T000000000000-00000000"}),
        ("FAILED_PRECONDITION", "embeddings_version", {"embeddings_version": ""}),
        ("INVALID_ARGUMENT", "vectors", {"vectors": bytes(4 * DIM)}),
        ("INVALID_ARGUMENT", "vectors", {"vectors": bytes(4 * DIM - 4)}),
        ("INVALID_ARGUMENT", "vectors", {"vectors": np.full(DIM, np.nan, "<f4").tobytes()}),
        ("INVALID_ARGUMENT", "item_ids", {"item_ids": [0]}),
        ("INVALID_ARGUMENT", "item_ids", {"item_ids": []}),
        ("INVALID_ARGUMENT", "item_ids", {"item_ids": [5, 5]}),
        ("INVALID_ARGUMENT", "attributes", {"attributes": [Attributes(), Attributes()]}),
        ("INVALID_ARGUMENT", "attributes", {"attributes": [Attributes(attributes=[Attribute(name="Size")])]}),
        ("NOT_FOUND", "index", {"index": "hats"}),
    ],
)
def test_a_bad_upsert_names_its_field_and_writes_nothing(serving, code, named, fields):
    request = {
        "item_ids": [5],
        "vectors": unit_vectors(1, 1, DIM).tobytes(),
        "embeddings_version": serving.run.embeddings.version,
    }
    before = serving.get(5)
    error = refused(lambda: serving.stub.Upsert(ann_pb2.UpsertRequest(**(request | fields)), timeout=20))
    assert error.code() is grpc.StatusCode[code]
    assert error.details().startswith(f"{named}: ")
    assert serving.get(5) == before


def test_an_attribute_of_another_kind_is_refused(serving):
    serving.upsert([5], attributes=[attributes(size=3.5)])
    serving.upsert([6], attributes=[attributes(size=3)])  # a whole number stands for a number
    error = refused(lambda: serving.upsert([8], attributes=[attributes(size="large")]))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "size" in error.details()


def test_a_search_waits_for_its_sequences_and_no_longer_than_its_deadline(serving):
    query = unit_vectors(77, 1, DIM).tobytes()
    done = serving.upsert([910], vectors=query)
    found = serving.stub.Search(ann_pb2.SearchRequest(vectors=query, k=1, min_sequences=done.sequences), timeout=20)
    assert list(found.item_ids) == [910]
    later = ann_pb2.Sequence(partition=done.sequences[0].partition, offset=done.sequences[0].offset + 10)
    search = ann_pb2.SearchRequest(vectors=query, k=1, min_sequences=[later])
    assert refused(lambda: serving.stub.Search(search, timeout=0.5)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    search = ann_pb2.SearchRequest(vectors=query, k=1, min_sequences=[ann_pb2.Sequence(partition=99, offset=0)])
    error = refused(lambda: serving.stub.Search(search, timeout=20))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith("min_sequences: ")


def test_records_that_are_no_updates_of_the_index_are_counted_and_passed_over(serving):
    producer: KafkaProducer = kafka.producer(serving.run.stack.kafka_url)
    good = Update(920, unit_vectors(1, 1, DIM)[0])
    counted = ("vitrine_ann_updates_total", "vitrine_tail_skipped_records_total")
    before = [serving.replica.service.metric(name) for name in counted]

    def send(item: int, value: bytes | None, index: str = INDEX) -> None:
        producer.send(serving.run.topic, key=updates.key_of(index, item), value=value).get(timeout=30)

    version = serving.run.embeddings.version
    send(1, b"\xff\xff")
    send(920, updates.value_of(INDEX, good, "another"))
    send(920, updates.value_of("hats", good, version), "hats")
    send(2, None)
    send(920, updates.value_of(INDEX, good, version))
    producer.close(timeout=5)
    wait_for(lambda: list(serving.get(920).item_ids) == [920])
    assert list(serving.get(1, 2).item_ids) == [1, 2]
    after = [serving.replica.service.metric(name) for name in counted]
    assert [now - then for now, then in zip(after, before, strict=True)] == [3, 2]


def test_a_server_without_kafka_takes_no_updates(stack, namespace, tmp_path):
    with ann_live(stack, namespace, tmp_path) as run:
        run.model = {item: row.tobytes() for item, row in enumerate(unit_vectors(0, 50, DIM), 1)}
        run.publish(seed=0)
        serving = Serving(run, run.replica(kafka_url=""))
        assert refused(lambda: serving.upsert([5])).code() is grpc.StatusCode.FAILED_PRECONDITION
        assert list(serving.get(5).item_ids) == [5]
