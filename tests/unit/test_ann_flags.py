"""What is alive of a segment: arrays that are out never change, and those that come back are used again."""

from pathlib import Path

import numpy as np
import pytest
from ann_kit import unit_vectors
from hypothesis import given
from hypothesis import strategies as st

from vitrine.ann import hashing
from vitrine.ann.attributes import Attributes
from vitrine.ann.build import Parameters
from vitrine.ann.flags import Flags
from vitrine.ann.segment import Segment

ROWS = 12


def segment(rows: int, *, alike: int = 1) -> Segment:
    """Random items without a graph; with one where `alike` rows each have the same code."""
    vectors = np.repeat(unit_vectors(0, rows // alike, 8), alike, axis=0)
    function = hashing.fit(vectors, 64, seed=0)
    ids = np.arange(1, rows + 1, dtype=np.uint64)
    if alike == 1:
        return Segment(ids, function.encode(vectors), vectors, Attributes.none(rows))
    return Segment.build(ids, vectors, function, Attributes.none(rows), Parameters(), FOLDER)


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    global FOLDER
    FOLDER = Path(tmp_path_factory.mktemp("graph"))


@given(st.lists(st.tuples(st.sets(st.integers(0, ROWS - 1)), st.booleans(), st.booleans()), max_size=40))
def test_what_is_out_stays_as_it_was_and_what_is_new_has_all(steps):
    of = segment(ROWS, alike=3)
    flags, dead, kept = Flags(of), set(), []
    for rows, take, drop in steps:
        flags.flag(np.array(sorted(rows - dead), np.int64))
        dead |= rows
        if take and dead:
            kept.append((flags.allowed(), frozenset(dead)))
        if drop:
            del kept[::2]
        for allowed, gone in kept:
            assert set(np.flatnonzero(allowed.rows)) == set(range(ROWS)) - gone
            assert allowed.count == ROWS - len(gone)
            alive_nodes = {of.graph.node_of[row] for row in set(range(ROWS)) - gone}
            assert set(np.flatnonzero(allowed.nodes)) == alive_nodes
        assert flags.dead == len(dead)
        assert set(flags.alive()) == set(range(ROWS)) - dead


def test_arrays_that_nobody_holds_are_used_again():
    flags, seen = Flags(segment(10_000)), set()
    for row in range(3_000):
        flags.flag(np.array([row]))
        allowed = flags.allowed()
        seen.add(allowed.rows.__array_interface__["data"][0])
    assert len(seen) <= 3
    assert allowed.rows.sum() == 7_000


def test_arrays_held_for_long_do_not_keep_the_list_of_flaggings():
    flags = Flags(segment(10_000))
    flags.flag(np.array([9_999]))
    held = flags.allowed()
    for row in range(3_000):
        flags.flag(np.array([row]))
        flags.allowed()
    assert held.rows.sum() == 9_999
    assert len(flags._flagged) <= 1_025
    assert flags.allowed().rows.sum() == 6_999
