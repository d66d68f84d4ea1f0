"""Columns of integers in as few bits as they need."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.matching import packing


@st.composite
def columns(draw):
    width = draw(st.integers(0, 64))
    n = draw(st.integers(0, 60) | st.sampled_from((256, 257, 600)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return width, [int(v) & ((1 << width) - 1) for v in rng.integers(0, 2**64, n, np.uint64)]


@settings(deadline=None)
@given(columns(), st.binary(max_size=9), st.binary(max_size=9))
def test_a_column_is_read_as_it_was_written_whatever_stands_around_it(column, before, after):
    width, values = column
    packed = packing.pack(values, width)
    assert len(packed) == packing.size_of(len(values), width)
    record = before + packed + after
    assert packing.unpack(record, len(before), len(values), width) == values
    assert packing.unpack_array(record, len(before), len(values), width).tolist() == values


@settings(deadline=None)
@given(columns())
def test_lists_and_arrays_have_the_same_bytes(column):
    width, values = column
    slow = "".join(f"{value:0{width}b}"[::-1] for value in values) if width else ""
    slow = slow.ljust(-(-len(slow) // 8) * 8, "0")
    expected = bytes(int(slow[i : i + 8][::-1], 2) for i in range(0, len(slow), 8))
    assert packing.pack(values, width) == packing.pack_array(np.array(values, np.uint64), width) == expected


@settings(deadline=None)
@given(st.sets(st.integers(0, 2**64 - 1), max_size=300), st.binary(max_size=3))
def test_ids_come_back_in_order_with_the_byte_after_them(ids, before):
    ids = sorted(ids)
    record = before + packing.pack_ids(ids)
    assert packing.unpack_ids(record, len(before), len(ids)) == (ids, len(record))


@pytest.mark.parametrize("values", [[], [0], [0, 0], [5, 0, 2**40]])
def test_counts_come_back_with_the_byte_after_them(values):
    packed = packing.pack_counts(values)
    assert packing.unpack_counts(packed, 0, len(values)) == (values, len(packed))
