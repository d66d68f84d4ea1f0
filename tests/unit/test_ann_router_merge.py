"""How the router takes requests apart by shard, and puts the shards' answers together."""

from dataclasses import replace

import numpy as np
import pytest

from services.ann.router import split
from services.ann.router.cursors import Cursor, Place, decode
from services.ann.router.fanout import Leg
from services.ann.router.merge import Part, merge
from services.ann.router.search import joined, search_legs, understood
from services.ann.router.shards import Shard
from tests.ann_kit import FIRST_ID, unit_vectors
from vitrine.ann import hashing
from vitrine.ann.attributes import Attributes
from vitrine.ann.index import BinaryIndex, Options
from vitrine.api.ann.v1 import ann_pb2
from vitrine.api.items.v1 import items_pb2
from vitrine.errors import FieldError
from vitrine.placement import murmur2, shards_of


def test_an_items_shard_is_that_of_its_key():
    ids = np.array([1, 17, 1_000_003, 2**64 - 1], np.uint64)
    expected = [(murmur2(b"%d" % i) & 0x7FFFFFFF) % 3 for i in ids.tolist()]
    assert shards_of(ids, 3).tolist() == expected


# Merging.


def answer_of(rows, *, scores=True, grouped=False):
    """A shard's answer: of each query, rows (score or distance, id, group)."""
    flat = [row for query in rows for row in query]
    return ann_pb2.SearchResponse(
        counts=[len(query) for query in rows],
        item_ids=[item for _, item, _ in flat],
        scores=[key for key, _, _ in flat] if scores else (),
        distances=[7 if scores else int(key) for key, _, _ in flat],
        groups=[items_pb2.Value(text=group) for _, _, group in flat] if grouped else (),
    )


def best(rows, k, *, scores, grouped):
    """The obvious merge: sort, then take, one of a group."""
    ordered = sorted(rows, key=lambda row: (-row[0] if scores else row[0], row[1]))
    if grouped:
        seen: dict = {}
        for row in ordered:
            seen.setdefault(row[2], row)
        ordered = list(seen.values())
    return ordered[:k]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("scores", [True, False])
def test_the_merge_is_what_sorting_everything_gives(scores, grouped):
    rng = np.random.default_rng(3)
    for _ in range(50):
        queries, shards, k = rng.integers(1, 5), rng.integers(1, 4), int(rng.integers(1, 8))
        items = rng.permutation(200)
        found: list = [[[] for _ in range(queries)] for _ in range(shards)]
        for item in items[:60]:
            row = (
                float(rng.integers(0, 6)) / 4 if scores else float(rng.integers(0, 6)),
                int(item + 1),
                str(item % 9),
            )
            found[rng.integers(shards)][rng.integers(queries)].append(row)
        found = [[best(rows, k, scores=scores, grouped=grouped) for rows in shard] for shard in found]
        parts = [Part(answer_of(shard, scores=scores, grouped=grouped), np.arange(queries)) for shard in found]
        merged = merge(parts, int(queries), k, by_score=scores, grouped=grouped)
        expected = [
            best([row for shard in found for row in shard[q]], k, scores=scores, grouped=grouped)
            for q in range(queries)
        ]
        assert merged.counts.tolist() == [len(rows) for rows in expected]
        assert merged.ids.tolist() == [item for rows in expected for _, item, _ in rows]
        keys = merged.scores if scores else merged.distances
        assert keys.tolist() == [key for rows in expected for key, _, _ in rows]
        if grouped:
            assert [value.text for value in merged.groups] == [group for rows in expected for _, _, group in rows]
        assert merged.taken.shape == (shards, queries)
        for number, shard in enumerate(found):
            for query, rows in enumerate(shard):
                kept = {item for _, item, _ in expected[query]}
                assert merged.taken[number, query] == sum(item in kept for _, item, _ in rows)


def test_parts_of_some_queries_are_merged_into_their_places():
    parts = [
        Part(answer_of([[(0.5, 3, "")]]), np.array([1])),
        Part(answer_of([[(0.9, 5, "")], [(0.7, 9, ""), (0.5, 2, "")]]), np.array([0, 1])),
    ]
    merged = merge(parts, 3, 2, by_score=True, grouped=False)
    assert (merged.counts.tolist(), merged.ids.tolist()) == ([1, 2, 0], [5, 9, 2])


def test_nothing_merges_to_nothing():
    merged = merge([], 2, 5, by_score=True, grouped=True)
    assert (merged.counts.tolist(), merged.ids.tolist(), merged.groups) == ([0, 0], [], [])


def test_a_cursor_comes_back_as_it_was_and_damage_is_refused():
    places = (Place("v1", 7), Place("", ended=True), Place("v2", 1), Place("v1"), Place(""))
    cursor = Cursor(-0.25, 2**64 - 1, places)
    data = cursor.encode()
    assert decode(data, 5) == cursor
    assert [place.absent for place in places] == [False, False, False, False, True]
    for damaged in (data[:-1], data + b"x", b"R2" + data[2:], b"R1", b"there"):
        with pytest.raises(FieldError, match="cursors: is no cursor of this router"):
            decode(damaged, 5)
    with pytest.raises(FieldError, match="of an index of 5 shards, here are 2"):
        decode(data, 2)
    ended = Cursor(1.0, 2, (Place("", 3, ended=True),) * 3)
    assert ended.encode() == b""
    assert all(place.ended for place in decode(b"", 3).places)


# Searching, with an index of the library in the place of each shard's servers.


def dealt(shards):
    """One index of random vectors, and the same items dealt to shards; two attributes tell them apart."""
    vectors = unit_vectors(4, 240, 32)
    ids = np.arange(FIRST_ID, FIRST_ID + 3 * 240, 3, dtype=np.uint64)
    function = hashing.fit(vectors, 128, seed=0)
    owners = shards_of(ids, shards)

    def index(rows):
        named = [{"shop": int(i % 11), "size": int(i % 3)} for i in ids[rows].tolist()]
        return replace(
            BinaryIndex.of(ids[rows], vectors[rows], function, attributes=Attributes.of(named)), generation="v1"
        )

    return index(slice(None)), [index(np.flatnonzero(owners == s)) for s in range(shards)]


def answer(index, request):
    """What a shard would say; every pool holds all items, so that nothing depends on how they are dealt."""
    options = Options(
        request.k,
        over_recall=100,
        exact=True,
        group_by=request.group_by or None,
        cursors=list(request.cursors) or None,
    )
    if request.item_ids:
        hits = index.search_items(np.array(request.item_ids, np.uint64), options)
    elif request.codes:
        hits = index.search_codes(np.frombuffer(request.codes, "<u8").reshape(-1, 2), options)
    else:
        hits = index.search_vectors(np.frombuffer(request.vectors, "<f4").reshape(-1, 32), options)
    return ann_pb2.SearchResponse(
        version="v1",
        counts=hits.counts.tolist(),
        item_ids=hits.ids.tolist(),
        scores=[] if hits.scores is None else hits.scores.tolist(),
        distances=hits.distances.tolist(),
        groups=[items_pb2.Value(integer=value) for value in hits.groups or ()],
        cursors=hits.cursors,
    )


def routed(indexes, request, dead=()):
    shards = owned(len(indexes))
    whole = answer_items(indexes, request) if request.item_ids else ()
    asked = understood(request, len(indexes), whole)
    legs = search_legs(shards, asked)
    for leg in legs:
        if leg.shard.number not in dead:
            leg.answer = answer(indexes[leg.shard.number], leg.request)
    return joined(asked, legs, shards)


def answer_items(indexes, request):
    ids = np.array(request.item_ids, np.uint64)
    found = {}
    for index in indexes:
        items = index.get(ids)
        found |= dict(zip(items.ids.tolist(), items.vectors, strict=True))
    return [found[item].tobytes() for item in ids.tolist()]


QUERIES = unit_vectors(9, 5, 32)
KINDS = {
    "vectors": {"vectors": QUERIES.tobytes()},
    "codes": {"codes": np.ascontiguousarray(dealt(1)[0].hashing.encode(QUERIES).T).tobytes()},
    "item_ids": {"item_ids": [FIRST_ID, FIRST_ID + 30, FIRST_ID + 99]},
}


@pytest.mark.parametrize("group_by", ["", "shop"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_together_say_what_one_index_says(kind, group_by):
    one, several = dealt(3)
    request = ann_pb2.SearchRequest(k=7, group_by=group_by, **KINDS[kind])
    expected, got = answer(one, request), routed(several, request)
    for field in ("counts", "item_ids", "distances", "groups"):
        assert list(getattr(got, field)) == list(getattr(expected, field)), field
    assert np.allclose(got.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("k", [1, 7, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_pages_hold_every_item_once_and_in_order(kind, k):
    one, several = dealt(3)
    request = ann_pb2.SearchRequest(k=1000, **KINDS[kind])
    expected = answer(one, request)
    ends = np.cumsum(expected.counts)
    wanted = [part.tolist() for part in np.split(np.array(expected.item_ids), ends[:-1])]
    request.k = k
    pages = [[] for _ in wanted]
    for _ in range(240 // k + 2):
        got = routed(several, request)
        for query, part in enumerate(np.split(np.array(got.item_ids), np.cumsum(got.counts)[:-1])):
            pages[query] += part.tolist()
        if not any(got.cursors):
            break
        request.cursors[:] = got.cursors
    assert pages == wanted
    assert not any(got.cursors)


def test_pages_of_a_partial_answer_go_on_without_the_shard_that_was_missing():
    _, several = dealt(2)
    request = ann_pb2.SearchRequest(k=100, **KINDS["vectors"])
    first = routed(several, request, dead={1})
    request.cursors[:] = first.cursors
    assert understood(request, 2).absent == [1]
    second = routed(several, request)
    assert sum(first.counts) + sum(second.counts) == 5 * several[0].items


def test_a_shard_that_dies_between_pages_is_taken_up_again_where_it_was():
    _, several = dealt(2)
    request = ann_pb2.SearchRequest(k=10, vectors=QUERIES[:1].tobytes())
    seen = list((first := routed(several, request)).item_ids)
    request.cursors[:] = first.cursors
    seen += (second := routed(several, request, dead={0})).item_ids
    request.k, request.cursors[:] = 240, second.cursors
    seen += (third := routed(several, request)).item_ids
    assert len(set(seen)) == len(seen)
    assert list(third.scores) == sorted(third.scores, reverse=True)
    assert third.scores[0] <= second.scores[-1]
    assert set(several[0].segments[0].segment.ids.tolist()) & set(third.item_ids)


def test_cursors_of_another_number_than_the_queries_are_refused():
    _, several = dealt(2)
    request = ann_pb2.SearchRequest(k=10, **KINDS["item_ids"])
    request.cursors[:] = routed(several, request).cursors[:2]
    with pytest.raises(FieldError, match="cursors: has 2; send one a query"):
        understood(request, 2)
    with pytest.raises(FieldError, match="cursors: has 4 where there are 5 queries"):
        joined(
            understood(ann_pb2.SearchRequest(k=1, vectors=bytes(640)), 2),
            [Leg(owned(2)[0], None, range(4), answer=ann_pb2.SearchResponse(counts=[0] * 5))],
            owned(2),
        )


# Writing.


def owned(shards):
    """Shards without servers."""
    return [Shard(i, shards, [], None) for i in range(shards)]


def test_an_upsert_is_split_by_owner_and_put_together_loses_nothing():
    ids = list(range(1, 41))
    vectors = np.arange(80, dtype="<f4").reshape(40, 2)
    attributes = [items_pb2.Attributes() for _ in ids]
    for i, each in enumerate(attributes):
        each.attributes.add(name="n").value.integer = i
    request = ann_pb2.UpsertRequest(
        index="i", item_ids=ids, vectors=vectors.tobytes(), embeddings_version="e", attributes=attributes
    )
    seen = []
    for leg in split.upsert_legs(owned(3), request):
        assert set(shards_of(np.array(leg.request.item_ids, np.uint64), 3)) == {leg.shard.number}
        assert (leg.request.index, leg.request.embeddings_version) == ("i", "e")
        rows = np.frombuffer(leg.request.vectors, "<f4").reshape(-1, 2)
        named = [each.attributes[0].value.integer for each in leg.request.attributes]
        seen += list(zip(leg.request.item_ids, rows[:, 0].tolist(), named, strict=True))
    assert sorted(seen) == [(i, 2.0 * (i - 1), i - 1) for i in ids]


@pytest.mark.parametrize(
    "request_",
    [
        ann_pb2.UpsertRequest(),
        ann_pb2.UpsertRequest(item_ids=[1, 2], vectors=b"xyz"),
        ann_pb2.UpsertRequest(item_ids=[1, 2], vectors=bytes(8), attributes=[items_pb2.Attributes()]),
        ann_pb2.UpsertRequest(item_ids=range(1, 1002), vectors=bytes(4004)),
    ],
)
def test_an_upsert_that_is_wrong_goes_whole_to_a_shard_that_refuses_it(request_):
    (leg,) = split.upsert_legs(owned(2), request_)
    assert leg.request is request_


def test_items_come_back_in_the_order_asked_for():
    one = ann_pb2.GetResponse(
        version="b", item_ids=[5, 3], vectors=b"5555aaaa3333bbbb", attributes=[items_pb2.Attributes()] * 2
    )
    two = ann_pb2.GetResponse(version="a", item_ids=[4], vectors=b"4444cccc", attributes=[items_pb2.Attributes()])
    whole = split.joined_items([3, 4, 99, 5, 3], [one, two])
    assert (list(whole.item_ids), whole.version) == ([3, 4, 5, 3], "a")
    assert whole.vectors == b"3333bbbb4444cccc5555aaaa3333bbbb"
    assert len(whole.attributes) == 4


def test_stats_are_of_the_whole_and_show_what_every_shard_shows():
    place = ann_pb2.Sequence
    whole = split.joined_stats(
        [
            ann_pb2.StatsResponse(
                version="b", items=3, pictures=True, visible=[place(partition=0, offset=9)], dim=8
            ),
            ann_pb2.StatsResponse(
                version="a", items=4, shard=1, visible=[place(partition=0, offset=7), place(partition=1, offset=1)]
            ),
        ]
    )
    assert (whole.version, whole.items, whole.pictures, whole.dim, whole.shard, whole.shards) == (
        "a",
        7,
        False,
        8,
        0,
        2,
    )
    assert [(each.partition, each.offset) for each in whole.visible] == [(0, 7)]
