"""The index against brute force in numpy, and against damage to its files."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from ann_kit import FIRST_ID, segment_of, small_index, unit_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.ann import found as found_module
from vitrine.ann import index as index_module
from vitrine.ann.index import BinaryIndex, Options
from vitrine.artifacts import ArtifactError
from vitrine.errors import FieldError


def dense(hits):
    """Results of all queries, of which each has as many, one row a query."""
    rows = len(hits.counts)
    arrays = {name: getattr(hits, name) for name in ("ids", "scores", "distances")}
    return SimpleNamespace(**{n: None if a is None else a.reshape(rows, -1) for n, a in arrays.items()})


def cosines(index: BinaryIndex, query: np.ndarray) -> np.ndarray:
    wide = query.astype(np.float64)
    return segment_of(index).vectors.astype(np.float64) @ (wide / np.linalg.norm(wide))


def hamming(index: BinaryIndex, code: np.ndarray) -> np.ndarray:
    """Distances (n,) of a code (words,)."""
    return np.bitwise_count(segment_of(index).codes ^ code[:, None]).astype(np.int64).sum(axis=0)


@settings(deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 120),
    k=st.integers(1, 60),
    over_recall=st.integers(1, 12),
    queries=st.integers(1, 5),
)
def test_search_is_brute_force_over_the_pool_of_nearest_codes(seed, n, k, over_recall, queries):
    index = small_index(seed, n, dim=16)
    asked = unit_vectors(seed + 1, queries, 16)
    hits = dense(index.search_vectors(asked, Options(k, over_recall)))
    assert hits.ids.shape == (queries, min(k, n))
    for query, ids, scores, distances in zip(asked, hits.ids, hits.scores, hits.distances, strict=True):
        away = hamming(index, index.hashing.encode(query[None])[:, 0])
        pool = np.lexsort((np.arange(n), away))[: k * over_recall]
        exact = cosines(index, query)
        best = np.sort(exact[pool])[::-1][:k]
        rows = np.searchsorted(segment_of(index).ids, ids)
        assert np.array_equal(segment_of(index).ids[rows], ids)
        assert set(rows) <= set(pool)
        assert len(set(rows)) == len(rows)
        assert np.abs(exact[rows] - best).max() < 1e-6
        assert np.abs(scores - exact[rows]).max() < 1e-6
        assert (np.diff(scores) <= 0).all()
        assert np.array_equal(distances, away[rows])
        if k * over_recall >= n:
            assert np.abs(np.sort(exact)[::-1][:k] - best).max() < 1e-12


@settings(deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 150), k=st.integers(1, 200), queries=st.integers(1, 5))
def test_search_by_code_is_brute_force_with_ties_to_the_lower_id(seed, n, k, queries):
    index = small_index(seed, n, dim=4, bits=64)  # few dimensions: many ties
    codes = np.random.default_rng(seed).integers(0, 2**64, (queries, 1), np.uint64)
    hits = dense(index.search_codes(codes, Options(k)))
    assert hits.scores is None
    for code, ids, distances in zip(codes, hits.ids, hits.distances, strict=True):
        away = hamming(index, code)
        order = np.lexsort((np.arange(n), away))[:k]
        assert np.array_equal(ids, segment_of(index).ids[order])
        assert np.array_equal(distances, away[order])


def test_equal_items_come_in_order_of_their_ids():
    one = small_index(n=40)
    copies = np.tile(segment_of(one).vectors, (25, 1))
    index = BinaryIndex.of(np.arange(1, 1001, dtype=np.uint64), copies, one.hashing, over_recall=4)
    hits = index.search_vectors(segment_of(one).vectors[[3]], Options(25))
    assert np.array_equal(hits.ids, np.arange(4, 1001, 40))
    assert len(np.unique(hits.scores)) == 1


def test_an_answer_does_not_depend_on_the_batch(monkeypatch):
    monkeypatch.setattr(index_module, "_POOLED", 150)  # three queries of pool 50 a block
    monkeypatch.setattr(found_module, "_COMPARED", 7)
    index, asked = small_index(), unit_vectors(9, 8, 32)
    together = dense(index.search_vectors(asked, Options(5)))
    for row in range(8):
        alone = dense(index.search_vectors(asked[[row]], Options(5)))
        assert np.array_equal(alone.ids[0], together.ids[row])
        assert np.array_equal(alone.scores[0], together.scores[row])


@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1.0, 3e38])
def test_a_query_may_have_any_length(scale):
    index = small_index()
    query = (np.sign(unit_vectors(1, 1, 32)) * np.float32(scale)).astype(np.float32)
    expected = index.search_vectors(np.sign(query), Options(10))
    assert np.array_equal(index.search_vectors(query, Options(10)).ids, expected.ids)


def test_an_indexed_vector_finds_itself():
    index = small_index()
    hits = index.search_vectors(segment_of(index).vectors, Options(1))
    assert np.array_equal(hits.ids, segment_of(index).ids)
    assert not hits.distances.any()


def test_more_than_there_is_returns_all():
    hits = dense(small_index(n=7).search_vectors(unit_vectors(1, 2, 32), Options(1000)))
    assert hits.ids.shape == (2, 7)
    assert (np.sort(hits.ids, axis=1) == np.arange(FIRST_ID, FIRST_ID + 21, 3)).all()


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("vectors", {"queries": np.full((1, 32), np.nan, np.float32)}),
        ("vectors", {"queries": np.full((1, 32), np.inf, np.float32)}),
        ("vectors", {"queries": np.zeros((2, 32), np.float32)}),
        ("vectors", {"queries": np.ones((1, 31), np.float32)}),
        ("vectors", {"queries": np.ones(32, np.float32)}),
        ("k", {"k": 0}),
        ("k", {"k": 1001}),
        ("over_recall", {"over_recall": 0}),
        ("over_recall", {"over_recall": 101}),
    ],
)
def test_a_query_that_means_nothing_is_refused_by_field(field, change):
    arguments = {"queries": unit_vectors(1, 1, 32), "k": 5, "over_recall": 2} | change
    queries = arguments.pop("queries")
    with pytest.raises(FieldError) as refused:
        small_index().search_vectors(queries, Options(**arguments))
    assert refused.value.field == field


def test_the_row_that_is_not_finite_is_named():
    asked = unit_vectors(1, 5, 32)
    asked[3, 7] = np.nan
    with pytest.raises(FieldError, match="row 3"):
        small_index().search_vectors(asked, Options(5))


def test_codes_of_another_length_are_refused():
    with pytest.raises(FieldError, match="codes"):
        small_index().search_codes(np.zeros((1, 3), np.uint64), Options(5))


def test_what_a_stage_raises_ends_the_search():
    def stop(stage: str) -> None:
        raise TimeoutError(stage)

    with pytest.raises(TimeoutError, match="encode"):
        small_index().search_vectors(unit_vectors(1, 5, 32), Options(5), between=stop)


def test_a_written_index_answers_alike(tmp_path):
    index = small_index()
    index.write(tmp_path)
    loaded = BinaryIndex.load(tmp_path)
    loaded.warm_up()
    asked = unit_vectors(1, 5, 32)
    assert np.array_equal(
        loaded.search_vectors(asked, Options(10)).ids, index.search_vectors(asked, Options(10)).ids
    )
    assert (loaded.items, loaded.dim, loaded.bits, loaded.over_recall) == (500, 32, 128, 10)


def place(folder, file):
    """Where a file of a written index lies."""
    return folder / file if file in ("meta.json", "hashing.safetensors") else folder / "shard-00000" / file


FILES = ["codes.npy", "ids.npy", "vectors.npy", "hashing.safetensors", "meta.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "garbage"])
def test_a_damaged_file_is_refused_by_name(tmp_path, file, damage):
    small_index().write(tmp_path)
    path = place(tmp_path, file)
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "garbage": b"\x00" * len(data)}[damage])
    with pytest.raises(ArtifactError, match=file.replace(".", r"\.")):
        BinaryIndex.load(tmp_path)


def edit_ids(change):
    def edit(folder):
        ids = np.load(place(folder, "ids.npy"))
        np.save(place(folder, "ids.npy"), change(ids))

    return edit


def edit_vectors(change):
    def edit(folder):
        vectors = np.load(place(folder, "vectors.npy"))
        np.save(place(folder, "vectors.npy"), change(vectors))

    return edit


def with_nan(vectors):
    vectors[17, 3] = np.nan
    return vectors


def edit_meta(**fields):
    def edit(folder):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | fields))

    return edit


@pytest.mark.parametrize(
    ("message", "edit"),
    [
        ("ids.npy is not ascending", edit_ids(lambda ids: ids[::-1].copy())),
        ("ids.npy is not ascending", edit_ids(lambda ids: np.r_[ids[:1], ids[:-1]])),
        ("ids.npy is not ascending", edit_ids(lambda ids: ids - ids[0])),
        ("ids.npy is int64", edit_ids(lambda ids: ids.astype(np.int64))),
        ("codes.npy has shape", edit_ids(lambda ids: ids[:-1])),
        ("vectors.npy row 17", edit_vectors(with_nan)),
        ("vectors.npy row 0 has length", edit_vectors(lambda v: 2 * v)),
        ("vectors.npy is float64", edit_vectors(lambda v: v.astype(np.float64))),
        ("vectors.npy is float32", edit_vectors(np.asfortranarray)),
        ("vectors.npy has shape", edit_vectors(lambda v: v[:, :-1])),
        ("hashing.safetensors gives", edit_meta(bits=64)),
        ("hashing.safetensors gives", edit_meta(dim=31)),
        ("meta.json has", edit_meta(over_recall=0)),
        ("meta.json has", edit_meta(over_recall=101)),
        ("meta.json has", edit_meta(over_recall="10")),
        ("meta.json has", edit_meta(over_recall=True)),
    ],
)
def test_files_that_do_not_fit_each_other_are_refused(tmp_path, message, edit):
    small_index().write(tmp_path)
    edit(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        BinaryIndex.load(tmp_path)


def test_codes_of_other_vectors_are_refused_at_warm_up(tmp_path):
    small_index(1).write(tmp_path)
    np.save(place(tmp_path, "codes.npy"), segment_of(small_index(2)).codes)
    with pytest.raises(ArtifactError, match=r"codes\.npy"):
        BinaryIndex.load(tmp_path).warm_up()
