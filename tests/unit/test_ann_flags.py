"""Flags of dead rows: what is out never changes, and arrays that come back are used again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitrine.ann.flags import Flags

ROWS = 12


@given(st.lists(st.tuples(st.sets(st.integers(0, ROWS - 1)), st.booleans(), st.booleans()), max_size=40))
def test_an_array_that_is_out_stays_as_it_was_and_a_new_one_has_all(steps):
    flags, dead, kept = Flags(ROWS), set(), []
    for rows, take, drop in steps:
        fresh = sorted(rows - dead)
        flags.flag(np.array(fresh, np.int64))
        dead |= rows
        if take:
            kept.append((flags.array(), frozenset(dead)))
        if drop:
            del kept[::2]
        for array, expected in kept:
            assert set(np.flatnonzero(array)) == expected
        assert set(np.flatnonzero(flags.array())) == dead
        assert flags.dead == len(dead)
        assert set(flags.alive()) == set(range(ROWS)) - dead


def test_arrays_that_nobody_holds_are_used_again():
    flags = Flags(10_000)
    seen = set()
    for row in range(3_000):
        flags.flag(np.array([row]))
        array = flags.array()
        seen.add(array.__array_interface__["data"][0])
    assert len(seen) <= 3
    assert array.sum() == 3_000


def test_an_array_held_for_long_does_not_keep_the_list_of_flaggings():
    flags = Flags(10_000)
    held = flags.array()
    for row in range(3_000):
        flags.flag(np.array([row]))
        flags.array()
    assert not held.any()
    assert len(flags._flagged) <= 1_025
    assert flags.array().sum() == 3_000
