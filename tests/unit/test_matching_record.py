"""The stored list's bytes."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitrine.api.features.v1.features_pb2 import UserContext
from vitrine.api.matching.v1.matching_pb2 import GetMatchesResponse
from vitrine.matching import answer
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


def answered(stored, k, hidden):
    """The oracle of `answer.from_record`: decoded, and the message filled number by number."""
    rows = [row for row, ad in enumerate(stored.ads.tolist()) if ad not in hidden][:k]
    response = GetMatchesResponse(
        catalog_version=stored.catalog_version,
        towers_version=stored.towers_version,
        context=UserContext(keys=stored.keys.tolist(), weights=stored.weights.tolist()),
    )
    response.ad_ids.extend(stored.ads[rows].tolist())
    response.values.extend(stored.values[rows].tolist())
    response.bids.extend(stored.bids[rows].tolist())
    response.crowd_ids.extend(stored.crowds[rows].tolist())
    return response


@given(stored_lists(), st.integers(1, 250), st.data())
def test_the_answer_made_from_the_bytes_is_that_made_number_by_number(stored, k, data):
    ads = stored.ads.tolist()
    hidden = set(data.draw(st.lists(st.sampled_from([*ads, 1]), max_size=20)))
    response, header = answer.from_record(encode(stored), k, hidden)
    assert response == answered(stored, k, hidden)
    assert response.SerializeToString(deterministic=True) == answered(stored, k, hidden).SerializeToString(
        deterministic=True
    )
    assert (header.revision, header.append_ms) == (stored.revision, stored.append_ms)


def test_columns_longer_than_one_and_two_bytes_of_length_are_answered_whole():
    for n in (0, 1, 31, 32, 4_095, 4_096, 65_535):
        ids, numbers = np.arange(n, dtype=np.uint64), np.arange(n, dtype=np.float32)
        stored = StoredList(1, ids, numbers, ids, numbers, ids, numbers, n, True, 0.0, 0, "c" * 200, "t", 1, 2, 3)
        response, _ = answer.from_record(encode(stored), n + 1, set())
        assert response == answered(stored, n + 1, set())
