"""A search over several segments, with filters, groups, radius and pages, against plain loops over items."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from ann_kit import unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.ann import hashing
from vitrine.ann import nearest as nearest_module
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters
from vitrine.ann.coarse import Coarse
from vitrine.ann.cursor import GenerationError
from vitrine.ann.filters import All, Any, Items, Not, OneOf, Range
from vitrine.ann.index import BinaryIndex, Options, View
from vitrine.ann.segment import ATTRIBUTES_FILE, COARSE_FILE, GRAPH_FILES, Allowed, Segment
from vitrine.artifacts import ArtifactError
from vitrine.errors import FieldError, NotFoundError

DIM, BITS = 8, 64
SHAPES = ("hat", "shoe", "skirt")


def attributes_of(item: int) -> dict:
    """Some items have no shape, some no price."""
    found: dict = {"lot": item % 7}
    if item % 4:
        found["shape"] = SHAPES[item % 3]
    if item % 5:
        found["price"] = (item * 37 % 100) / 4
    return found


class Plain:
    """The index as a dict: item -> (vector, code, attributes), searched by looking at all of it."""

    def __init__(self, function) -> None:
        self.function = function
        self.items: dict = {}

    def put(self, ids, vectors) -> None:
        codes = self.function.encode(vectors).T
        for item, vector, code in zip(ids, vectors, codes, strict=True):
            self.items[int(item)] = (vector, code, attributes_of(int(item)))

    def holds(self, wanted, item: int) -> bool:
        _, _, has = self.items[item]
        match wanted:
            case None:
                return True
            case All(filters):
                return all(self.holds(each, item) for each in filters)
            case Any(filters):
                return any(self.holds(each, item) for each in filters)
            case Not(inner):
                return not self.holds(inner, item)
            case Items(ids):
                return item in ids
            case OneOf(name, values):
                return name in has and has[name] in values
        value = has.get(wanted.attribute)
        return value is not None and all(
            (
                wanted.at_least is None or value >= wanted.at_least,
                wanted.at_most is None or value <= wanted.at_most,
                wanted.above is None or value > wanted.above,
                wanted.below is None or value < wanted.below,
            )
        )

    def ranked(self, query, options: Options, *, by_code: bool) -> list[int]:
        """All results there can be, in their order."""
        code = query if by_code else self.function.encode(query[None])[:, 0]
        found = []
        for item, (vector, own, _) in self.items.items():
            away = int(np.bitwise_count(own ^ code).sum())
            key = away if by_code else -float(np.einsum("nd,d->n", vector[None], query)[0])
            if self.holds(options.filter, item) and (options.radius is None or away <= options.radius):
                found.append((key, item))
        seen, kept = set(), []
        for _, item in sorted(found):
            group = self.items[item][2].get(options.group_by) if options.group_by else item
            if group is None or group in seen:
                continue
            seen.add(group)
            kept.append(item)
        return kept

    def page(self, query, options: Options, before: list[int], without: int = 0) -> list[int]:
        """Results of a vector after those before, re-ranking as many candidates as the index does."""
        code = self.function.encode(query[None])[:, 0]
        nearest = []
        for item, (vector, own, has) in self.items.items():
            if self.holds(options.filter, item) and (options.group_by is None or options.group_by in has):
                score = float(np.einsum("nd,d->n", vector[None], query)[0])
                nearest.append((int(np.bitwise_count(own ^ code).sum()), item, -score))
        nearest.sort()
        total = len(nearest)
        last = next(((key, item) for _, item, key in nearest if before and item == before[-1]), (-np.inf, 0))
        nearest = [each for each in nearest if each[1] != without]
        count = min((options.k + len(before)) * options.over_recall, total)
        while True:
            pool = [each for each in nearest[:count] if options.radius is None or each[0] <= options.radius]
            seen, results = set(), []
            for key, item in sorted((key, item) for _, item, key in pool):
                group = self.items[item][2].get(options.group_by) if options.group_by else item
                if group not in seen:
                    seen.add(group)
                    results += [item] if (key, item) > last else []
            if len(results) >= options.k or count >= total or len(pool) < len(nearest[:count]):
                return results[: options.k]
            count = min(total, 4 * count)


FUNCTION = hashing.fit(unit_vectors(0, 300, DIM), BITS, seed=0)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    made = iter(range(10_000))

    def segment(ids, vectors, graph: bool) -> Segment:
        attributes = Attributes.of([attributes_of(int(item)) for item in ids])
        if not graph:
            return Segment(ids, FUNCTION.encode(vectors), vectors, attributes)
        folder: Path = tmp_path_factory.mktemp("graph") / str(next(made))
        return Segment.build(ids, vectors, FUNCTION, attributes, Parameters(leaf=32), folder)

    return segment


@pytest.fixture(scope="module")
def whole(build):
    """Three segments, two with graphs, one of them with several items a code; rows of the first two are dead."""
    index_of = {}
    for seed in range(3):
        plain, views = Plain(FUNCTION), []
        draws = np.random.default_rng(seed)
        everything = draws.permutation(np.arange(1, 701, dtype=np.uint64))
        later: set = set()
        for number, (size, graph) in enumerate(((400, True), (200, True), (60, False))):
            ids = np.sort(everything[:size])
            vectors = unit_vectors(seed * 10 + number, size, DIM)
            if number == 1:
                vectors[50:] = vectors[np.arange(150) % 50]  # four items a code
            views.append([build(ids, vectors, graph), ids, vectors])
            everything = np.concatenate([everything[size // 2 :], everything[: size // 4]])
        snapshot = []
        for segment, ids, vectors in reversed(views):
            alive = np.array([int(item) not in later and draws.random() < 0.9 for item in ids])
            later |= {int(item) for item in ids}
            plain.put(ids[alive], vectors[alive])
            nodes = None
            if segment.graph is not None:
                nodes = np.logical_or.reduceat(alive[segment.graph.node_items], segment.graph.starts[:-1])
            snapshot.append(View(segment, Allowed(alive, int(alive.sum()), nodes)))
        index_of[seed] = BinaryIndex(FUNCTION, tuple(reversed(snapshot)), 4, generation="v1"), plain
    return index_of


def walking():
    """However small a segment is, its graph is walked."""
    return patch.object(nearest_module, "_WALK_NS", 0)


conditions = st.one_of(
    st.frozensets(st.integers(1, 700), max_size=60).map(Items),
    st.frozensets(st.sampled_from([*SHAPES, "boat"]), max_size=2).map(lambda v: OneOf("shape", v)),
    st.frozensets(st.integers(0, 8), max_size=3).map(lambda v: OneOf("lot", v)),
    st.builds(
        Range,
        st.sampled_from(["price", "lot"]),
        st.none() | st.floats(0, 25),
        st.none() | st.floats(0, 25),
        st.none() | st.floats(0, 25),
        st.none() | st.floats(0, 25),
    ),
)
wanted = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda f: All(tuple(f))),
        st.lists(inner, max_size=3).map(lambda f: Any(tuple(f))),
        inner.map(Not),
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2),
    query=st.integers(0, 500),
    k=st.integers(1, 40),
    filter_=st.none() | wanted,
    group=st.sampled_from([None, None, "lot", "shape"]),
    radius=st.none() | st.integers(0, 40),
    by_code=st.booleans(),
    pages=st.integers(1, 3),
)
def test_an_exact_search_is_a_loop_over_the_items(whole, seed, query, k, filter_, group, radius, by_code, pages):
    index, plain = whole[seed]
    vector = unit_vectors(1000 + query, 1, DIM)
    asked = np.ascontiguousarray(FUNCTION.encode(vector).T) if by_code else vector
    # All are re-ranked, so that by vectors too the answer is the loop's.
    options = Options(k, 100, exact=True, filter=filter_, group_by=group, radius=radius)
    expected = plain.ranked(asked[0], options, by_code=by_code)
    found, cursors = [], None
    for page in range(pages):
        search = index.search_codes if by_code else index.search_vectors
        hits = search(asked, replace(options, cursors=cursors))
        ids = hits.ids.tolist()
        if k * 100 >= 700 or by_code:
            assert ids == expected[page * k : (page + 1) * k]
        assert not set(ids) & set(found)
        assert hits.counts.tolist() == [len(ids)]
        if group is not None:
            assert hits.groups == [plain.items[item][2][group] for item in ids]
        found += ids
        if not hits.cursors[0]:
            assert len(found) == len(expected)
            break
        cursors = hits.cursors


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2),
    query=st.integers(0, 500),
    k=st.integers(1, 12),
    over_recall=st.integers(1, 8),
    filter_=st.none() | wanted,
    group=st.sampled_from([None, None, "lot", "shape"]),
    radius=st.none() | st.integers(0, 40),
    pages=st.integers(1, 3),
)
def test_an_exact_search_ranks_the_nearest_codes_by_real_vectors(
    whole, seed, query, k, over_recall, filter_, group, radius, pages
):
    index, plain = whole[seed]
    asked = unit_vectors(1000 + query, 1, DIM)
    options = Options(k, over_recall, exact=True, filter=filter_, group_by=group, radius=radius)
    found, cursors = [], None
    for _ in range(pages):
        hits = index.search_vectors(asked, replace(options, cursors=cursors))
        assert hits.ids.tolist() == plain.page(asked[0], options, found)
        found += hits.ids.tolist()
        cursors = hits.cursors
        if not cursors[0]:
            break


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2),
    query=st.integers(0, 500),
    k=st.integers(1, 30),
    filter_=st.none() | wanted,
    group=st.sampled_from([None, None, "lot", "shape"]),
    ef=st.integers(1, 100),
)
def test_the_graph_gives_as_many_results_as_there_can_be_and_all_of_them_allowed(
    whole, seed, query, k, filter_, group, ef
):
    index, plain = whole[seed]
    asked = unit_vectors(1000 + query, 1, DIM)
    options = Options(k, ef=ef, filter=filter_, group_by=group)
    with walking():
        hits = index.search_vectors(asked, options)
    expected = plain.ranked(asked[0], options, by_code=False)
    assert len(hits.ids) == min(k, len(expected))
    assert len(set(hits.ids.tolist())) == len(hits.ids)
    assert set(hits.ids.tolist()) <= set(plain.items if group else expected)
    assert (np.diff(hits.scores) <= 0).all()


def test_the_graph_finds_what_an_exact_search_does(whole):
    index, _ = whole[0]
    asked = unit_vectors(7, 50, DIM)
    for filter_ in (None, Range("lot", at_most=3), OneOf("shape", frozenset(["hat"]))):
        exact = index.search_vectors(asked, Options(10, exact=True, filter=filter_))
        with walking():
            walked = index.search_vectors(asked, Options(10, ef=60, filter=filter_))
        same = sum(
            len(set(exact.ids[one].tolist()) & set(walked.ids[other].tolist()))
            for one, other in zip(exact.slices(), walked.slices(), strict=True)
        )
        assert same >= 0.98 * len(exact.ids)


@pytest.mark.parametrize(
    "options",
    [
        Options(5),
        Options(5, 2, filter=Range("lot", at_most=3)),
        Options(3, group_by="shape"),
        Options(5, radius=25),
        Options(2, 20, exact=True),
    ],
    ids=str,
)
def test_an_answer_depends_neither_on_the_batch_nor_on_threads(whole, options):
    for index in (whole[0][0], BinaryIndex(FUNCTION, whole[0][0].segments[:1], 4)):
        asked = unit_vectors(8, 20, DIM)
        with walking():
            together = index.search_vectors(asked, options, threads=3).split([1] * 20)
            for i, expected in enumerate(together):
                alone = index.search_vectors(asked[i : i + 1], options)
                assert np.array_equal(alone.ids, expected.ids)
                assert np.array_equal(alone.scores, expected.scores)
                assert np.array_equal(alone.distances, expected.distances)
                assert list(alone.cursors) == list(expected.cursors)
                assert alone.groups == expected.groups


def test_pages_of_a_walk_never_repeat_an_item_and_reach_all(whole):
    index, plain = whole[1]
    asked = unit_vectors(3, 1, DIM)
    found, cursors = [], None
    while True:
        with walking():
            hits = index.search_vectors(asked, Options(37, 10, cursors=cursors))
        found += hits.ids.tolist()
        cursors = hits.cursors
        if not cursors[0]:
            break
    assert len(set(found)) == len(found)
    assert len(found) >= 0.9 * len(plain.items)


def test_an_item_finds_others_but_not_itself(whole):
    index, plain = whole[2]
    items = np.array(list(plain.items)[:20], np.uint64)
    hits = index.search_items(items, Options(5, 100, exact=True))
    for item, part in zip(items.tolist(), hits.slices(), strict=True):
        expected = plain.ranked(plain.items[item][0], Options(6), by_code=False)
        assert hits.ids[part].tolist() == [other for other in expected if other != item][:5]
    filtered = index.search_items(items, Options(5, 100, exact=True, filter=Range("lot", at_most=2)))
    assert not any(item in filtered.ids[part] for item, part in zip(items.tolist(), filtered.slices(), strict=True))
    with pytest.raises(NotFoundError, match="99999"):
        index.search_items(np.array([99999], np.uint64), Options(5))


def test_get_gives_vectors_and_attributes_of_those_that_are_there(whole):
    index, plain = whole[0]
    assert index.items == len(plain.items)
    asked = np.arange(0, 800, dtype=np.uint64)
    got = index.get(asked)
    assert got.ids.tolist() == [item for item in range(800) if item in plain.items]
    for item, vector, has in zip(got.ids.tolist(), got.vectors, got.attributes, strict=True):
        assert np.array_equal(vector, plain.items[item][0])
        assert has == attributes_of(item)


def test_matching_is_all_that_a_filter_holds_for(whole):
    index, plain = whole[1]
    for filter_ in (Range("price", above=10), All(()), Any(()), Not(OneOf("lot", frozenset([1])))):
        expected = sorted(item for item in plain.items if plain.holds(filter_, item))
        assert index.matching(filter_).tolist() == expected


def test_a_written_index_with_graph_and_attributes_is_read_as_it_was(build, tmp_path):
    ids = np.arange(1, 301, dtype=np.uint64)
    segment = build(ids, unit_vectors(1, 300, DIM), True)
    index = BinaryIndex(FUNCTION, (View(segment),), 4, ef=33)
    index.write(tmp_path)
    loaded = BinaryIndex.load(tmp_path, generation="v7")
    loaded.warm_up()
    assert (loaded.ef, loaded.generation, loaded.kinds) == (33, "v7", index.kinds)
    asked = unit_vectors(2, 5, DIM)
    options = Options(10, filter=Range("price", at_least=3.5), group_by="lot")
    one, other = index.search_vectors(asked, options), loaded.search_vectors(asked, options)
    assert np.array_equal(one.ids, other.ids)
    assert one.groups == other.groups
    assert loaded.get(ids).attributes == [attributes_of(int(item)) for item in ids]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *((file, "gone") for file in GRAPH_FILES),
        *itertools.product([*GRAPH_FILES, ATTRIBUTES_FILE, COARSE_FILE], ["empty", "cut", "garbage"]),
    ],
)
def test_a_damaged_file_of_a_segment_is_refused_by_name(build, tmp_path, file, damage):
    segment = build(np.arange(1, 101, dtype=np.uint64), unit_vectors(1, 100, DIM), True)
    BinaryIndex(FUNCTION, (View(segment),), 4).write(tmp_path)
    path = tmp_path / "shard-00000" / file
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "garbage": b"\x00" * len(data)}[damage])
    with pytest.raises(ArtifactError, match=file.replace(".", r"\.")):
        BinaryIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("message", "file", "change"),
    [
        ("graph_edges.npy does not fit", "graph_edges", lambda edges: edges + np.uint32(99)),
        ("graph_edges.npy has shape", "graph_edges", lambda edges: edges[1:]),
        ("graph_entries.npy does not fit", "graph_entries", lambda entries: entries + np.uint32(1000)),
        ("graph_codes.npy has shape", "graph_codes", lambda codes: np.concatenate([codes, codes], axis=1)),
        ("node_items.npy does not name each", "node_items", lambda items: np.zeros_like(items)),
        ("node_starts.npy does not ascend", "node_starts", lambda starts: starts[::-1].copy()),
    ],
)
def test_files_of_a_graph_that_do_not_fit_each_other_are_refused(build, tmp_path, message, file, change):
    segment = build(np.arange(1, 101, dtype=np.uint64), unit_vectors(1, 100, DIM), True)
    BinaryIndex(FUNCTION, (View(segment),), 4).write(tmp_path)
    path = tmp_path / "shard-00000" / f"{file}.npy"
    np.save(path, change(np.load(path)))
    with pytest.raises(ArtifactError, match=message):
        BinaryIndex.load(tmp_path)


def test_re_rank_codes_of_other_items_are_refused(build, tmp_path):
    segment = build(np.arange(1, 101, dtype=np.uint64), unit_vectors(1, 100, DIM), True)
    BinaryIndex(FUNCTION, (View(segment),), 4).write(tmp_path)
    Coarse.encode(unit_vectors(1, 99, DIM)).save(tmp_path / "shard-00000" / COARSE_FILE)
    with pytest.raises(ArtifactError, match=r"coarse\.safetensors has 99 codes"):
        BinaryIndex.load(tmp_path)


def test_an_artifact_of_another_number_of_shards_is_refused(build, tmp_path):
    segment = build(np.arange(1, 101, dtype=np.uint64), unit_vectors(1, 100, DIM), True)
    BinaryIndex(FUNCTION, (View(segment),), 4).write(tmp_path)
    with pytest.raises(ArtifactError, match=r"meta\.json has 1 shards, and this server is of 2"):
        BinaryIndex.load(tmp_path, shard=1, shards=2)


def test_schema_1_is_read_and_searched_exactly(tmp_path):
    vectors = unit_vectors(4, 200, DIM)
    np.save(tmp_path / "ids.npy", np.arange(1, 201, dtype=np.uint64))
    np.save(tmp_path / "codes.npy", FUNCTION.encode(vectors))
    np.save(tmp_path / "vectors.npy", vectors)
    FUNCTION.save(tmp_path / "hashing.safetensors")
    (tmp_path / "meta.json").write_text(json.dumps({"bits": BITS, "dim": DIM, "over_recall": 7}))
    index = BinaryIndex.load(tmp_path)
    index.warm_up()
    assert (index.items, index.over_recall, index.segments[0].segment.graph) == (200, 7, None)
    assert index.search_vectors(vectors, Options(1)).ids.tolist() == list(range(1, 201))


@pytest.mark.parametrize("graph", [False, True])
def test_an_index_of_one_item_and_one_of_none_answer(build, graph):
    one = BinaryIndex(FUNCTION, (View(build(np.array([7], np.uint64), unit_vectors(1, 1, DIM), graph)),), 4)
    asked = unit_vectors(2, 3, DIM)
    codes = np.ascontiguousarray(FUNCTION.encode(asked).T)
    for options in (Options(5), Options(5, exact=True), Options(5, filter=Not(Items(frozenset([8]))))):
        assert one.search_vectors(asked, options).ids.tolist() == [7, 7, 7]
        assert one.search_codes(codes, options).counts.tolist() == [1, 1, 1]
    assert one.search_items(np.array([7], np.uint64), Options(5)).counts.tolist() == [0]
    assert one.search_vectors(asked, Options(5, filter=Items(frozenset([8])))).counts.tolist() == [0, 0, 0]
    none = BinaryIndex.of(np.empty(0, np.uint64), np.empty((0, DIM), np.float32), FUNCTION)
    for index in (none, replace(one, segments=())):
        assert index.search_vectors(asked, Options(5)).counts.tolist() == [0, 0, 0]
        assert list(index.search_codes(codes, Options(5)).cursors) == [b"", b"", b""]
        assert len(index.get(np.array([7], np.uint64)).ids) == 0


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("filter", Options(5, filter=OneOf("colour", frozenset(["red"])))),
        ("filter", Options(5, filter=OneOf("shape", frozenset([3])))),
        ("filter", Options(5, filter=OneOf("lot", frozenset(["three"])))),
        ("filter", Options(5, filter=Range("shape", at_least=3))),
        ("filter", Options(5, filter=All(tuple([Range("lot", at_least=i) for i in range(70)])))),
        ("group_by", Options(5, group_by="colour")),
        ("radius", Options(5, radius=65)),
        ("ef", Options(5, ef=0)),
        ("ef", Options(5, ef=10_001)),
        ("cursors", Options(5, cursors=[b"", b""])),
        ("cursors", Options(5, cursors=[b"anything"])),
    ],
)
def test_what_means_nothing_is_refused_by_field(whole, field, options):
    with pytest.raises(FieldError) as refused:
        whole[0][0].search_vectors(unit_vectors(1, 1, DIM), options)
    assert refused.value.field == field


def test_a_cursor_of_another_generation_is_refused(whole):
    index, _ = whole[0]
    asked = unit_vectors(1, 1, DIM)
    hits = index.search_vectors(asked, Options(5))
    with pytest.raises(GenerationError, match="v2"):
        replace(index, generation="v2").search_vectors(asked, Options(5, cursors=hits.cursors))


def test_one_constant_on_every_code_changes_nothing(build):
    ids, vectors = np.arange(1, 301, dtype=np.uint64), unit_vectors(5, 300, DIM)
    plain = build(ids, vectors, True)
    constant = np.uint64(0x123456789ABCDEF0)
    turned = replace(
        plain, codes=plain.codes ^ constant, graph=replace(plain.graph, codes=plain.graph.codes ^ constant)
    )
    codes = np.ascontiguousarray(FUNCTION.encode(unit_vectors(6, 20, DIM)).T)
    for exact in (False, True):
        with walking():
            one = BinaryIndex(FUNCTION, (View(plain),), 4).search_codes(codes, Options(10, exact=exact))
            other = BinaryIndex(FUNCTION, (View(turned),), 4).search_codes(
                codes ^ constant, Options(10, exact=exact)
            )
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.distances, other.distances)


def test_an_indexed_code_finds_itself(build):
    ids, vectors = np.arange(1, 501, dtype=np.uint64), unit_vectors(5, 500, DIM)
    index = BinaryIndex(FUNCTION, (View(build(ids, vectors, True)),), 4)
    codes = np.ascontiguousarray(FUNCTION.encode(vectors).T)
    with walking():
        hits = index.search_codes(codes, Options(1))
    assert (hits.distances == 0).all()
    assert np.array_equal(hits.ids, ids)


def test_a_hundred_thousand_identical_codes_are_one_node(build):
    n = 100_000
    vectors = np.tile(unit_vectors(1, 1, DIM), (n, 1))
    vectors[-1] = -vectors[0]
    segment = build(np.arange(1, n + 1, dtype=np.uint64), vectors, True)
    assert segment.graph.nodes == 2
    index = BinaryIndex(FUNCTION, (View(segment),), 1)
    hits = index.search_vectors(vectors[:1], Options(20))
    assert hits.ids.tolist() == list(range(1, 21))
    everything = Not(Items(frozenset(range(2, n))))
    assert index.search_vectors(vectors[:1], Options(20, filter=everything)).ids.tolist() == [1, n]
