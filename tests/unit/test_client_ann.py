"""AnnClient: what its arguments send and its answers mean, against a server that notes the request and echoes."""

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import MethodOptions

from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.api.ctr.v1 import ctr_pb2
from vitrine.api.items.v1 import items_pb2
from vitrine.api.matching.v1 import matching_pb2
from vitrine.client import AnnClient, InvalidArgumentError, VitrineError, in_range, items, one_of
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings

BIG = 2**64 - 1
TEXT = items_pb2.Value(text="é")


class Ann(ann_pb2_grpc.AnnServiceServicer):
    """Keeps the last request, and answers with what was set for its method."""

    request = None
    answer = None

    def _answered(self, request, context):
        self.request = request
        if isinstance(self.answer, grpc.StatusCode):
            context.abort(self.answer, "as the test wants")
        return self.answer

    Search = Get = Upsert = Delete = Stats = _answered


@pytest.fixture(scope="module")
def server():
    servicer = Ann()
    process = Process(Settings(), "ann", lambda to: ann_pb2_grpc.add_AnnServiceServicer_to_server(servicer, to))
    process.start()
    yield process, servicer
    process.drain()


@pytest.fixture
def servicer(server):
    return server[1]


@pytest.fixture
def ann(server):
    with AnnClient(server[0].address, timeout_s=10) as client:
        yield client


def test_every_argument_of_a_search_is_a_field_of_the_request(ann, servicer):
    servicer.answer = ann_pb2.SearchResponse(version="i1", counts=[0, 0], cursors=[b"", b""])
    ann.search(
        item_ids=np.array([7, BIG], np.uint64),
        k=3,
        over_recall=4,
        ef=90,
        exact=True,
        filter=one_of("brand", "acme") & in_range("price", below=5),
        group_by="product",
        radius=0,
        cursors=[b"one", b"two"],
        min_sequences={0: 17, 3: 4},
        allow_partial=True,
        index="shoes",
    )
    assert servicer.request == ann_pb2.SearchRequest(
        index="shoes",
        k=3,
        over_recall=4,
        item_ids=[7, BIG],
        ef=90,
        exact=True,
        filter=ann_pb2.Filter(
            all=ann_pb2.Filters(
                filters=[
                    ann_pb2.Filter(one_of=ann_pb2.OneOf(attribute="brand", values=[items_pb2.Value(text="acme")])),
                    ann_pb2.Filter(range=ann_pb2.Range(attribute="price", below=items_pb2.Value(integer=5))),
                ]
            )
        ),
        group_by="product",
        radius=0,
        cursors=[b"one", b"two"],
        min_sequences=[ann_pb2.Sequence(partition=0, offset=17), ann_pb2.Sequence(partition=3, offset=4)],
        allow_partial=True,
    )
    assert servicer.request.HasField("radius")


def test_what_is_not_asked_for_is_not_sent(ann, servicer):
    servicer.answer = ann_pb2.SearchResponse(version="i1", counts=[0])
    found = ann.search([1.0, 0.0])
    assert servicer.request == ann_pb2.SearchRequest(k=10, vectors=np.array([1, 0], "<f4").tobytes())
    assert (found.groups, found.cursors, found.shards) == (None, [], [])


def test_groups_cursors_and_shards_are_split_by_query(ann, servicer):
    servicer.answer = ann_pb2.SearchResponse(
        version="i1",
        counts=[1, 0, 2],
        item_ids=[5, 6, BIG],
        scores=[0.5, 0.25, 0.125],
        distances=[1, 2, 3],
        groups=[TEXT, items_pb2.Value(integer=-3), items_pb2.Value()],
        cursors=[b"x", b"", b"z"],
        shards=[ann_pb2.ShardAnswer(shard=0, version="i1"), ann_pb2.ShardAnswer(shard=1, error="away")],
    )
    found = ann.search(np.eye(3, 4), group_by="product")
    assert [ids.tolist() for ids in found.ids] == [[5], [], [6, BIG]]
    assert found.groups == [["é"], [], [-3, None]]
    assert found.cursors == [b"x", b"", b"z"]
    assert [(each.shard, each.version, each.error) for each in found.shards] == [(0, "i1", ""), (1, "", "away")]


def test_items_are_read_back_as_they_were_written(ann, servicer):
    servicer.answer = ann_pb2.UpsertResponse(sequences=[ann_pb2.Sequence(partition=2, offset=9)], items=2)
    vectors = np.arange(8, dtype=np.float64).reshape(2, 4)
    attributes = [{"price": 1.5, "brand": "acme"}, {"stock": np.int32(7)}]
    written = ann.upsert([3, 4], vectors, embeddings_version="e1", attributes=attributes, index="shoes")
    sent = servicer.request
    assert (sent.index, list(sent.item_ids), sent.embeddings_version) == ("shoes", [3, 4], "e1")
    assert (written.sequences, written.items) == ({2: 9}, 2)

    servicer.answer = ann_pb2.GetResponse(
        version="i1", item_ids=sent.item_ids, vectors=sent.vectors, attributes=sent.attributes
    )
    found = ann.get([3, 9, 4])
    assert np.array_equal(found.vectors, vectors)
    assert found.vectors.dtype == np.float32
    assert found.attributes == [{"price": 1.5, "brand": "acme"}, {"stock": 7}]

    servicer.answer = ann_pb2.GetResponse(version="i1")
    assert len(ann.get([9]).ids) == 0


def test_a_delete_is_by_ids_or_by_filter(ann, servicer):
    servicer.answer = ann_pb2.DeleteResponse(items=2)
    assert ann.delete([1, 2]).items == 2
    assert servicer.request == ann_pb2.DeleteRequest(item_ids=[1, 2])
    ann.delete(filter=~items(5, np.array([6], np.uint64)))
    assert list(getattr(servicer.request.filter, "not").items.item_ids) == [5, 6]
    for wrong in ({}, {"item_ids": [1], "filter": items(1)}):
        with pytest.raises(InvalidArgumentError, match="exactly one"):
            ann.delete(**wrong)


def test_stats_of_a_server_from_before_shards_are_those_of_one(ann, servicer):
    servicer.answer = ann_pb2.StatsResponse(version="i1", items=BIG)
    stats = ann.stats()
    assert (stats.items, stats.shard, stats.shards, stats.visible, stats.attributes) == (BIG, 0, 1, {}, ())


WRONG = {
    "two queries": ("vectors", lambda ann: ann.search([1.0], item_ids=[1])),
    "no query": ("vectors", lambda ann: ann.search()),
    "a negative id": ("item_ids", lambda ann: ann.search(item_ids=[-1])),
    "a negative radius": ("radius", lambda ann: ann.search([1.0], radius=-1)),
    "a filter of a NaN": ("filter", lambda ann: in_range("price", at_most=float("nan"))),
    "a filter of a truth": ("filter", lambda ann: one_of("new", True)),
    "a filter beyond 64 bits": ("filter", lambda ann: one_of("stock", 2**63)),
    "a range without bounds": ("filter", lambda ann: in_range("price")),
    "an attribute that is a list": (
        "attributes",
        lambda ann: ann.upsert([1], [[1.0]], embeddings_version="e1", attributes=[{"sizes": [1]}]),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_sent_is_refused_by_the_fields_name(ann, name):
    field, act = WRONG[name]
    with pytest.raises(InvalidArgumentError) as refused:
        act(ann)
    assert list(refused.value.fields) == [field]


def test_filters_joined_by_words_are_refused_rather_than_misread():
    with pytest.raises(TypeError, match="&"):
        items(1) and items(2)


def test_a_refusal_of_updates_comes_with_its_code(ann, servicer):
    servicer.answer = grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(VitrineError) as refused:
        ann.upsert([1], [[1.0]], embeddings_version="e0")
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_every_method_that_a_client_repeats_may_be_repeated():
    """The channels retry whatever ends in UNAVAILABLE, so all that clients call must bear it."""
    called = {
        ann_pb2: ("AnnService", {"Search", "Get", "Upsert", "Delete", "Stats"}),
        ctr_pb2: ("CtrService", {"Score"}),
        matching_pb2: ("MatchingService", {"GetMatches", "Explain", "Rematch"}),
    }
    for module, (service, names) in called.items():
        methods = module.DESCRIPTOR.services_by_name[service].methods_by_name
        for name in names:
            level = methods[name].GetOptions().idempotency_level
            assert level != MethodOptions.IDEMPOTENCY_UNKNOWN, name
