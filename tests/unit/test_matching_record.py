"""The stored list's bytes."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitrine.matching.events import RecordError
from vitrine.matching.record import StoredList, decode, encode

u64 = st.integers(0, 2**64 - 1)
f32 = st.floats(width=32, allow_nan=False)


@st.composite
def stored_lists(draw):
    n, m = draw(st.integers(0, 200)), draw(st.integers(0, 120))
    ids = lambda size: draw(hnp.arrays(np.uint64, size, elements=u64, fill=u64))  # noqa: E731
    floats = lambda size: draw(hnp.arrays(np.float32, size, elements=f32, fill=f32))  # noqa: E731
    return StoredList(
        draw(u64), ids(n), floats(n), ids(n), floats(n), ids(m), floats(m), draw(st.integers(0, 1000)),
        draw(st.booleans()), draw(f32), draw(u64), draw(st.text(max_size=40)), draw(st.text(max_size=40)),
        draw(u64), draw(u64), draw(st.integers(-1, 2**62)),
    )  # fmt: skip


@given(stored_lists())
def test_a_list_is_read_as_it_was_written(stored):
    again = decode(encode(stored))
    for each in fields(StoredList):
        one, other = getattr(stored, each.name), getattr(again, each.name)
        assert one.tobytes() == other.tobytes() if isinstance(one, np.ndarray) else one == other
    assert encode(again) == encode(stored)


@given(stored_lists(), st.data())
def test_a_record_cut_short_or_altered_is_refused_not_misread(stored, data):
    record = encode(stored)
    with pytest.raises(RecordError):
        decode(record[: data.draw(st.integers(0, len(record) - 1))])
    at = data.draw(st.integers(0, len(record) - 1))
    with pytest.raises(RecordError):
        decode(record[:at] + bytes([record[at] ^ 0x10]) + record[at + 1 :])


@given(stored_lists())
def test_a_newer_schema_is_refused(stored):
    record = encode(stored)
    with pytest.raises(RecordError, match="schema 2; this reader knows 1"):
        decode(record[:4] + b"\x02\x00" + record[6:])
