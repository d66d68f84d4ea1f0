"""The stored list's bytes."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matching_kit import small_catalog

from vitrine.api.features.v1.features_pb2 import UserContext
from vitrine.api.matching.v1.matching_pb2 import GetMatchesResponse
from vitrine.matching import answer
from vitrine.matching.events import RecordError
from vitrine.matching.record import Ranking, StoredList, decode, encode, encode_many, open_record

CATALOG = small_catalog(crowds=40)
u64 = st.integers(0, 2**64 - 1)
f32 = st.floats(0, width=32, allow_nan=False, allow_infinity=False)


def ids(known: np.ndarray, size: int):
    """Ids of the catalog, and others that it does not know."""
    return hnp.arrays(np.uint64, size, elements=st.sampled_from(known.tolist()) | st.integers(1, 2**64 - 1))


@st.composite
def rankings(draw):
    n = draw(st.integers(0, 60) | st.just(200))
    values = np.sort(draw(hnp.arrays(np.float32, n, elements=f32)))[::-1]
    return Ranking(
        draw(ids(CATALOG.ads, n)), values, draw(ids(CATALOG.crowds, n)), draw(st.booleans()), draw(f32), draw(u64)
    )


@st.composite
def stored_lists(draw):
    m = draw(st.integers(0, 120))
    return StoredList(
        draw(u64), tuple(draw(st.lists(rankings(), max_size=4))), draw(hnp.arrays(np.uint64, m, elements=u64)),
        draw(hnp.arrays(np.float32, m, elements=f32)), draw(st.integers(0, 1000)), draw(st.text(max_size=40)),
        draw(st.text(max_size=40)), draw(st.sampled_from("ab")), draw(st.integers(-1, 2**62)),
        draw(st.integers(-1, 2**62)), draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**62)),
        draw(st.integers(-1, 2**62)),
    )  # fmt: skip


def same(one: object, other: object) -> bool:
    """Equal to the bit, arrays too."""
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes()
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    return one == other


@given(stored_lists())
def test_a_list_is_read_as_it_was_written(stored):
    record = encode(stored, CATALOG)
    again = decode(record, CATALOG)
    assert same(again, stored)
    assert encode(again, CATALOG) == record
    header = open_record(record)
    assert (header.user_id, header.revision, header.position) == (stored.user_id, stored.revision, stored.position)


@given(st.lists(stored_lists(), max_size=4))
def test_lists_encoded_together_have_the_bytes_that_they_have_alone(lists):
    assert encode_many(lists, CATALOG) == [encode(stored, CATALOG) for stored in lists]


@given(stored_lists(), st.data())
def test_a_record_cut_short_or_altered_is_refused_not_misread(stored, data):
    record = encode(stored, CATALOG)
    with pytest.raises(RecordError):
        decode(record[: data.draw(st.integers(0, len(record) - 1))], CATALOG)
    at = data.draw(st.integers(0, len(record) - 1))
    with pytest.raises(RecordError):
        decode(record[:at] + bytes([record[at] ^ 0x10]) + record[at + 1 :], CATALOG)


@given(stored_lists())
def test_a_newer_schema_is_refused(stored):
    record = encode(stored, CATALOG)
    with pytest.raises(RecordError, match="schema 3; this reader knows 2"):
        decode(record[:4] + b"\x03\x00" + record[6:], CATALOG)


def answered(stored, k, hidden):
    """The oracle of `answer.from_record`: the message filled entry by entry."""
    ranking = stored.rankings[0]
    rows = [row for row, ad in enumerate(ranking.ads.tolist()) if ad not in hidden][:k]
    response = GetMatchesResponse(
        catalog_version=stored.catalog_version,
        towers_version=stored.towers_version,
        context=UserContext(keys=stored.keys.tolist(), weights=stored.weights.tolist()),
    )
    response.ad_ids.extend(ranking.ads[rows].tolist())
    response.values.extend(ranking.values[rows].tolist())
    response.crowd_ids.extend(ranking.crowds[rows].tolist())
    return response


@given(stored_lists(), st.integers(1, 250), st.data())
def test_the_answer_has_what_is_not_hidden_in_its_order(stored, k, data):
    if not stored.rankings:
        return
    ads = stored.rankings[0].ads.tolist()
    hidden = set(data.draw(st.lists(st.sampled_from([*ads, 1]), max_size=20)))
    response, header = answer.from_record(encode(stored, CATALOG), k, hidden, CATALOG)
    response.ClearField("bids")
    assert response == answered(stored, k, hidden)
    assert (header.revision, header.append_ms) == (stored.revision, stored.append_ms)
