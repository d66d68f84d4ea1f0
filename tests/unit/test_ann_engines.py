"""The engine gpu-exact, through faiss-cpu: the same answers as a scan, under filters, deletions and updates."""

import faiss
import numpy as np
import pytest
from ann_kit import FIRST_ID, small_index, unit_vectors

from services.ann import engines, server
from vitrine.ann import filters
from vitrine.ann.attributes import Attributes
from vitrine.ann.hashing import fit
from vitrine.ann.index import BinaryIndex, Options
from vitrine.ann.live import LiveIndex
from vitrine.ann.updates import Update

DIM, BITS, N = 32, 128, 3000
ASKED = unit_vectors(1, 20, DIM)


class Flat(faiss.IndexBinaryFlat):
    """Counts what it is asked for."""

    def __init__(self, bits):
        super().__init__(bits)
        self.asked = []

    def search(self, codes, k):
        self.asked.append(k)
        return super().search(codes, k)


@pytest.fixture(scope="module")
def scanned() -> BinaryIndex:
    """3,000 items, of which every hundredth has `rare`."""
    vectors = unit_vectors(0, N, DIM)
    attributes = Attributes.of([{"n": i, "rare": "yes" if i % 100 == 0 else "no"} for i in range(N)])
    ids = np.arange(FIRST_ID, FIRST_ID + N, dtype=np.uint64)
    return BinaryIndex.of(ids, vectors, fit(vectors, BITS, seed=0), attributes=attributes)


@pytest.fixture
def by_faiss(scanned):
    return engines.with_flat(scanned, Flat)


def flat_of(index: BinaryIndex) -> Flat:
    return index.segments[0].segment.scanner._flat


def check_same(found, expected):
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.distances.tolist() == expected.distances.tolist()


OPTIONS = {
    "plain": Options(10),
    "a page of 1,000": Options(1000, over_recall=1),
    "half of the items": Options(10, filter=filters.Range("n", below=N // 2)),
    "one in a hundred": Options(10, filter=filters.OneOf("rare", frozenset(["yes"]))),
    "more than there are": Options(40, filter=filters.OneOf("rare", frozenset(["yes"]))),
    "nothing": Options(10, filter=filters.Items(frozenset([1]))),
    "groups": Options(2, group_by="rare"),
    "within a radius": Options(10, radius=BITS // 3),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_faiss_finds_what_a_scan_finds(scanned, by_faiss, name):
    options = OPTIONS[name]
    check_same(by_faiss.search_vectors(ASKED, options), scanned.search_vectors(ASKED, options))
    codes = np.ascontiguousarray(scanned.hashing.encode(ASKED).T)
    check_same(by_faiss.search_codes(codes, options), scanned.search_codes(codes, options))
    if name == "plain":
        assert len(flat_of(by_faiss).asked) == 2, "faiss was asked, and once each"


def test_more_than_faiss_can_give_is_scanned_by_the_index_itself(scanned, by_faiss):
    options = Options(20, over_recall=100)
    check_same(by_faiss.search_vectors(ASKED, options), scanned.search_vectors(ASKED, options))
    assert flat_of(by_faiss).asked == []


def test_updates_and_deletions_hold_beside_the_codes_that_faiss_keeps(scanned, by_faiss):
    # An upsert of another vector, a new item, and the nearest of each query deleted.
    nearest = scanned.search_vectors(ASKED, Options(1)).ids
    moved = int(FIRST_ID + N // 2)
    updates = [Update(int(item), None) for item in nearest]
    updates += [Update(moved, ASKED[0], {"n": 1}), Update(5, ASKED[1], {"n": 2})]
    found = []
    for base in (by_faiss, scanned):
        with LiveIndex(base) as live:
            assert not live.apply(updates)
            found.append([live.current.search_vectors(ASKED, options) for options in OPTIONS.values()])
    for one, other in zip(*found, strict=True):
        check_same(one, other)
    assert found[0][0].ids[0] == moved
    assert 5 in found[0][0].ids
    assert not set(nearest.tolist()) - {moved} & set(found[0][0].ids.tolist())


def test_ties_go_to_the_lower_id_where_codes_are_equal():
    vectors = np.repeat(unit_vectors(0, 30, DIM), 50, axis=0)
    ids = np.arange(1, 1501, dtype=np.uint64)
    scanned = BinaryIndex.of(ids, vectors, small_index().hashing)
    codes = np.ascontiguousarray(scanned.hashing.encode(vectors[::50]).T)
    check_same(
        engines.with_flat(scanned, Flat).search_codes(codes, Options(7)), scanned.search_codes(codes, Options(7))
    )


def test_without_a_gpu_the_server_says_what_to_install_and_ends(tmp_path, capsys):
    assert not hasattr(faiss, "GpuIndexBinaryFlat"), "this test is of faiss-cpu"
    assert server.main(["--store", str(tmp_path), "--engine", "gpu-exact"]) == 1
    said = capsys.readouterr().err
    assert "pip install faiss-gpu-cu12" in said
    assert "--engine exact" in said


def test_the_other_engines_leave_the_index_as_it_is(scanned):
    assert engines.with_engine(scanned, "graph") is scanned
    assert engines.with_engine(scanned, "exact") is scanned
