"""Every field of a search over gRPC: what it does, how it is refused; and company changes no byte of an answer."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from ann_kit import FIRST_ID, unit_vectors

from services.ann.coalesce import batch_calls
from services.ann.loading import Served
from services.ann.servicer import AnnServicer
from services.ann.updates import Shard
from vitrine.ann import filters
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters
from vitrine.ann.hashing import fit
from vitrine.ann.index import BinaryIndex, Options, View
from vitrine.ann.live import LiveIndex
from vitrine.ann.segment import Segment
from vitrine.ann.updates import Update
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.api.items.v1.items_pb2 import Value
from vitrine.client import AnnClient, NotFoundError, VitrineError, in_range, items, one_of
from vitrine.runtime.server import Process
from vitrine.runtime.settings import Settings

DIM, BITS, N = 32, 128, 3000
ASKED = unit_vectors(1, 6, DIM)
NEW = 7  # an item of the live tail


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """3,000 items with a graph and attributes, one of them deleted since and one added."""
    vectors = unit_vectors(0, N, DIM)
    attributes = Attributes.of(
        [
            {"price": i / 10, "stock": i % 7, "brand": f"b{i % 50}"} | ({"hue": "red"} if i % 3 else {})
            for i in range(N)
        ]
    )
    ids = np.arange(FIRST_ID, FIRST_ID + N, dtype=np.uint64)
    function = fit(vectors, BITS, seed=0)
    folder: Path = tmp_path_factory.mktemp("build")
    segment = Segment.build(ids, vectors, function, attributes, Parameters(), folder)
    with LiveIndex(BinaryIndex(function, (View(segment),), 10, generation="v1")) as made:
        assert not made.apply([Update(FIRST_ID, None), Update(NEW, ASKED[0], {"price": 1.5, "brand": "new"})])
        yield made


@pytest.fixture(scope="module")
def server(live):
    """One search at a time, so that calls gather."""
    served = Served("shoes", "v1", "e1", live, None, None, Shard(0, 1))
    servicer = AnnServicer(lambda name: served, batches=1)
    process = Process(
        Settings(max_workers=64), "ann", lambda to: ann_pb2_grpc.add_AnnServiceServicer_to_server(servicer, to)
    )
    process.start()
    yield process
    process.drain()


@pytest.fixture
def ann(server):
    with AnnClient(server.address, timeout_s=20) as client:
        yield client


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield ann_pb2_grpc.AnnServiceStub(channel)


FIELDS = {
    "ef": ({"ef": 500}, Options(10, ef=500)),
    "over_recall": ({"over_recall": 2}, Options(10, over_recall=2)),
    "exact": ({"exact": True}, Options(10, exact=True)),
    "radius": ({"radius": BITS // 4}, Options(10, radius=BITS // 4)),
    "radius of 0": ({"radius": 0}, Options(10, radius=0)),
    "group_by": ({"group_by": "brand"}, Options(10, group_by="brand")),
    "filter": (
        {"filter": in_range("price", at_least=3, below=200.5) & ~one_of("brand", "b1", "b2")},
        Options(
            10,
            filter=filters.All(
                (
                    filters.Range("price", at_least=3, below=200.5),
                    filters.Not(filters.OneOf("brand", frozenset(["b1", "b2"]))),
                )
            ),
        ),
    ),
}


def check(answer, expected):
    assert [ids.tolist() for ids in answer.ids] == [expected.ids[at].tolist() for at in expected.slices()]
    assert [row.tolist() for row in answer.distances] == [
        expected.distances[at].tolist() for at in expected.slices()
    ]
    if answer.scores is not None:
        assert np.concatenate(answer.scores).tolist() == expected.scores.tolist()
    assert answer.cursors == list(expected.cursors)


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_does_over_the_wire_what_it_does_in_the_library(ann, live, name):
    fields, options = FIELDS[name]
    answer, expected = ann.search(ASKED, k=10, **fields), live.current.search_vectors(ASKED, options)
    check(answer, expected)
    if options.group_by:
        assert [value for row in answer.groups for value in row] == expected.groups
        assert all(len(set(row)) == 10 for row in answer.groups)
    codes = np.ascontiguousarray(live.current.hashing.encode(ASKED).T)
    check(ann.search(codes=codes, k=10, **fields), live.current.search_codes(codes, options))


def test_a_server_of_the_exact_engine_compares_with_all_codes_whatever_is_asked(live):
    served = Served("shoes", "v1", "e1", live, None, None, Shard(0, 1))
    servicer = AnnServicer(lambda name: served, exact=True)
    process = Process(Settings(), "ann", lambda to: ann_pb2_grpc.add_AnnServiceServicer_to_server(servicer, to))
    process.start()
    try:
        with AnnClient(process.address, timeout_s=20) as client:
            check(client.search(ASKED, k=10), live.current.search_vectors(ASKED, Options(10, exact=True)))
    finally:
        process.drain()


def test_the_live_tail_is_searched_and_the_deleted_are_not(ann):
    assert ann.search(ASKED[0], k=1).ids[0].tolist() == [NEW]
    assert ann.search(ASKED[0], k=5, filter=items(FIRST_ID, FIRST_ID + 1)).ids[0].tolist() == [FIRST_ID + 1]
    assert ann.search(ASKED[0], k=1000, filter=one_of("brand", "new")).ids[0].tolist() == [NEW]


def test_items_are_queries_and_not_their_own_answers(ann, live):
    asked = np.array([NEW, FIRST_ID + 5], np.uint64)
    answer = ann.search(item_ids=asked, k=3)
    check(answer, live.current.search_items(asked, Options(3)))
    assert not set(asked.tolist()) & {int(answer.ids[0][0]), int(answer.ids[1][0])}
    with pytest.raises(NotFoundError, match=f"item_ids: .*{FIRST_ID}"):
        ann.search(item_ids=[FIRST_ID])


def test_pages_follow_each_other_without_repeating_until_there_are_none(ann):
    few = in_range("price", below=2.5) & one_of("hue", "red")
    whole = ann.search(ASKED[:2], k=1000, filter=few)
    seen, cursors = [[], []], ()
    for _ in range(10):
        page = ann.search(ASKED[:2], k=4, filter=few, cursors=cursors)
        for query in range(2):
            seen[query] += page.ids[query].tolist()
        cursors = page.cursors
    assert seen == [row.tolist() for row in whole.ids], "in the order of one large page"
    assert cursors == [b"", b""]
    assert [len(row) for row in page.ids] == [0, 0], "an empty cursor has nothing behind it"


def test_a_cursor_of_another_version_is_a_failed_precondition(ann, live):
    other = BinaryIndex(live.current.hashing, live.current.segments, 10, generation="v0")
    old = list(other.search_vectors(ASKED[:1], Options(3)).cursors)
    with pytest.raises(VitrineError) as refused:
        ann.search(ASKED[0], k=3, cursors=old)
    assert refused.value.code is grpc.StatusCode.FAILED_PRECONDITION


def test_stats_tell_what_can_be_asked_for(ann):
    stats = ann.stats()
    assert (stats.index, stats.shard, stats.shards, stats.items) == ("shoes", 0, 1, N)
    assert stats.attributes == ("brand", "hue", "price", "stock")
    assert stats.ef > 0
    assert stats.visible == {}


ONE = ASKED[:1].tobytes()
NAN, TEXT = Value(number=float("nan")), Value(text="b1")


def brands(*values: Value) -> ann_pb2.Filter:
    return ann_pb2.Filter(one_of=ann_pb2.OneOf(attribute="brand", values=values))


def prices(**bounds: Value) -> ann_pb2.Filter:
    return ann_pb2.Filter(range=ann_pb2.Range(attribute="price", **bounds))


def every(*conditions: ann_pb2.Filter) -> ann_pb2.Filter:
    return ann_pb2.Filter(all=ann_pb2.Filters(filters=conditions))


BAD = {
    "ef of 10,001": ("ef", {"ef": 10_001}),
    "radius beyond the code": ("radius", {"radius": BITS + 1}),
    "group_by of an unknown attribute": ("group_by", {"group_by": "size"}),
    "items beside vectors": ("item_ids", {"item_ids": [1]}),
    "too many items": ("item_ids", {"vectors": b"", "item_ids": range(1, 258)}),
    "a cursor that is none": ("cursors", {"cursors": [b"x"]}),
    "two cursors for one query": ("cursors", {"cursors": [b"", b""]}),
    "sequences without a log": ("min_sequences", {"min_sequences": [ann_pb2.Sequence(partition=0, offset=1)]}),
    "a filter without a condition": ("filter", {"filter": ann_pb2.Filter()}),
    "an inner filter without a condition": (
        "filter.all.filters[1]",
        {"filter": every(brands(TEXT), ann_pb2.Filter())},
    ),
    "an unknown attribute": (
        "filter",
        {"filter": ann_pb2.Filter(one_of=ann_pb2.OneOf(attribute="size", values=[TEXT]))},
    ),
    "a value without a type": ("filter.one_of.values[1]", {"filter": brands(TEXT, Value())}),
    "a value of another type": ("filter", {"filter": brands(Value(integer=1))}),
    "a value that is no number": ("filter.range.above", {"filter": prices(above=NAN)}),
    "a text as a bound": ("filter.range.at_most", {"filter": prices(at_most=TEXT)}),
    "a range of text": (
        "filter",
        {"filter": ann_pb2.Filter(range=ann_pb2.Range(attribute="brand", above=Value(integer=1)))},
    ),
    "a long text": ("filter.one_of.values[0]", {"filter": brands(Value(text="é" * 513))}),
    "65 conditions": ("filter", {"filter": every(*[brands(TEXT)] * 64)}),
    "100,001 items": (
        "filter.not.items.item_ids",
        {"filter": ann_pb2.Filter(**{"not": ann_pb2.Filter(items=ann_pb2.ItemIds(item_ids=range(1, 100_002)))})},
    ),
    "10,001 values": ("filter.one_of.values", {"filter": brands(*[Value(text=str(i)) for i in range(10_001)])}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_field_is_named(stub, name):
    field, fields = BAD[name]
    with pytest.raises(grpc.RpcError) as refused:
        stub.Search(ann_pb2.SearchRequest(**({"vectors": ONE, "k": 5} | fields)), timeout=20)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(f"{field}: "), refused.value.details()


def requests_of_all_kinds(live: LiveIndex) -> list[ann_pb2.SearchRequest]:
    """Eight different queries of each of several options, so that many are alike and many are not."""
    rows = unit_vectors(5, 8, DIM)
    codes = np.ascontiguousarray(live.current.hashing.encode(rows).T)
    options = [
        {"k": 10},
        {"k": 10, "exact": True},
        {"k": 10, "filter": (in_range("price", below=250) & one_of("hue", "red")).message},
        {"k": 10, "filter": in_range("price", below=3).message},
        {"k": 10, "group_by": "brand"},
        {"k": 10, "radius": BITS // 4},
    ]
    found = []
    for fields in options:
        for i, row in enumerate(rows):
            found.append(ann_pb2.SearchRequest(vectors=row.tobytes(), **fields))
            found.append(ann_pb2.SearchRequest(vectors=rows[i : i + 3].tobytes(), **fields))
            found.append(ann_pb2.SearchRequest(codes=codes[i].tobytes(), **fields))
            found.append(ann_pb2.SearchRequest(item_ids=[FIRST_ID + 1 + i, NEW], **fields))
    return found


def test_a_crowd_gets_byte_for_byte_what_each_gets_alone(stub, live):
    asked = requests_of_all_kinds(live)
    alone = [stub.Search(each, timeout=20).SerializeToString(deterministic=True) for each in asked]
    searches, calls = (batch_calls.collect()[0].samples[at].value for at in (-2, -1))
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(len(asked)), 3))
    wrong = ann_pb2.SearchRequest(vectors=np.full(DIM, np.nan, "<f4").tobytes(), k=10)
    ended, failures = threading.Event(), []

    def disturb() -> None:
        """Wrong and impatient callers among the others."""
        while not ended.is_set():
            for request, timeout in ((wrong, 20), (asked[0], 0.001)):
                try:
                    stub.Search(request, timeout=timeout)
                except grpc.RpcError as error:
                    failures.append(error.code())

    with ThreadPoolExecutor(24) as pool:
        noise = [pool.submit(disturb) for _ in range(2)]
        together = list(
            pool.map(lambda i: (i, stub.Search(asked[i], timeout=20).SerializeToString(deterministic=True)), order)
        )
        ended.set()
        for each in noise:
            each.result(20)
    assert all(answer == alone[i] for i, answer in together)
    assert set(failures) <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert grpc.StatusCode.INVALID_ARGUMENT in failures
    more_searches, more_calls = (batch_calls.collect()[0].samples[at].value for at in (-2, -1))
    assert more_calls - calls > more_searches - searches, "some were searched together"
