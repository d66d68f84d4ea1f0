"""The stored list's bytes."""

import dataclasses
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from matching_kit import small_catalog

from vitrine.matching.catalog import NO_NUMBER
from vitrine.matching.events import RecordError
from vitrine.matching.record import Ranking, StoredList, decode, encode, encode_many, open_record, restamp

CATALOG = small_catalog(crowds=40)
NO_KEYS, NO_WEIGHTS = np.empty(0, np.uint64), np.empty(0, np.float32)
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


@settings(deadline=None)
@given(stored_lists())
def test_a_list_is_read_as_it_was_written(stored):
    record = encode(stored, CATALOG)
    again = decode(record, CATALOG)
    assert same(again, stored)
    assert encode(again, CATALOG) == record
    header = open_record(record)
    assert (header.user_id, header.revision, header.position) == (stored.user_id, stored.revision, stored.position)


@settings(deadline=None)
@given(stored_lists(), stored_lists())
def test_a_record_stamped_anew_has_the_bytes_of_the_list_made_anew(stored, later):
    stamp = {name: getattr(later, name) for name in ("revision", "offset", "append_ms", "position", "epoch")}
    newer = dataclasses.replace(stored, **stamp)
    assert restamp(encode(stored, CATALOG), newer) == encode(newer, CATALOG)
    with pytest.raises(RecordError):
        restamp(b"someone else's", newer)


@settings(deadline=None)
@given(st.lists(stored_lists(), max_size=4))
def test_lists_encoded_together_have_the_bytes_that_they_have_alone(lists):
    assert encode_many(lists, CATALOG) == [encode(stored, CATALOG) for stored in lists]


@settings(deadline=None)
@given(stored_lists(), st.data())
def test_a_record_cut_short_or_altered_is_refused_not_misread(stored, data):
    record = encode(stored, CATALOG)
    with pytest.raises(RecordError):
        decode(record[: data.draw(st.integers(0, len(record) - 1))], CATALOG)
    at = data.draw(st.integers(0, len(record) - 1))
    with pytest.raises(RecordError):
        decode(record[:at] + bytes([record[at] ^ 0x10]) + record[at + 1 :], CATALOG)


@settings(deadline=None)
@given(stored_lists())
def test_a_newer_schema_is_refused(stored):
    record = encode(stored, CATALOG)
    with pytest.raises(RecordError, match="schema 3; this reader knows 2"):
        decode(record[:4] + b"\x03\x00" + record[6:], CATALOG)


@settings(deadline=None)
@given(rankings())
def test_a_catalog_that_grew_reads_the_same_ads_and_an_older_one_leaves_out_what_it_lacks(ranking):
    """Numbers are permanent: ordinals shift as ids come between, numbers do not."""
    grown = small_catalog(crowds=40, ads=150)
    stored = StoredList(7, (ranking,), NO_KEYS, NO_WEIGHTS, 10, "c1", "t1")
    shuffled = np.random.default_rng(5).permutation(len(CATALOG.ads)).astype(np.uint32)
    newer = dataclasses.replace(grown, ad_numbers=shuffled)
    assert same(decode(encode(stored, newer), newer), stored)
    hidden = shuffled[:50]
    older = dataclasses.replace(
        grown, ad_numbers=np.where(np.isin(shuffled, hidden), NO_NUMBER, shuffled).astype(np.uint32)
    )
    read = decode(encode(stored, newer), older).rankings[0]
    lost = np.isin(ranking.ads, newer.ads[np.isin(shuffled, hidden)])
    assert read.ads.tolist() == ranking.ads[~lost].tolist()
    assert read.values.tolist() == ranking.values[~lost].tolist()
    assert read.crowds.tolist() == ranking.crowds[~lost].tolist()


def test_a_list_of_schema_1_is_read_without_its_bids():
    ads, values = np.array([9, 6], np.uint64), np.array([2, 1], np.float32)
    header = struct.pack("<4sHHQQQqQfHHHHH", b"VMLS", 1, 1, 7, 3, 12, 99, 0, 0.0, 10, 2, 1, 2, 2)
    body = header + ads.tobytes() + ads.tobytes() + NO_KEYS.tobytes() + struct.pack("<Q", 5)
    body += values.tobytes() + values.tobytes() + struct.pack("<f", 0.5) + b"c1t1"
    old = body + struct.pack("<I", zlib.crc32(body))
    read = decode(old, CATALOG)
    assert (read.user_id, read.revision, read.offset, read.append_ms, read.served) == (7, 3, 12, 99, 10)
    assert (read.position, read.epoch, read.arm) == (0, -1, "a")
    (ranking,) = read.rankings
    assert (ranking.ads.tolist(), ranking.crowds.tolist(), ranking.values.tolist()) == ([9, 6], [9, 6], [2.0, 1.0])
    assert ranking.complete
    assert (read.keys.tolist(), read.weights.tolist()) == ([5], [0.5])
    assert open_record(old).revision == 3
    with pytest.raises(RecordError):
        decode(old[:-1], CATALOG)


@pytest.mark.parametrize("values", [[1.0, 2.0], [-1.0], [float("nan")], [float("inf"), 1.0]])
def test_values_that_are_no_ranking_are_never_written(values):
    n = len(values)
    ids = np.arange(1, n + 1, dtype=np.uint64)
    wrong = Ranking(ids, np.array(values, np.float32), ids, True, 0.0, 0)
    with pytest.raises(ValueError, match="non-increasing"):
        encode(StoredList(7, (wrong,), NO_KEYS, NO_WEIGHTS, 10, "c1", "t1"), CATALOG)


def test_a_list_of_200_ads_under_a_catalog_of_millions_takes_at_most_1800_bytes():
    rng = np.random.default_rng(1)
    ads, crowds = 5_000_000, 20_000_000
    catalog = SimpleNamespace(  # the part of a catalog that records need, without its postings
        ads=np.arange(1, ads + 1, dtype=np.uint64) * 7,
        crowds=np.arange(1, crowds + 1, dtype=np.uint64),
        ad_numbers=np.arange(ads, dtype=np.uint32),
        crowd_numbers=np.arange(crowds, dtype=np.uint32),
    )
    values = np.sort(rng.lognormal(-3, 1, 100_000).astype(np.float32))[::-1][:200]
    won = rng.choice(catalog.crowds, 64)
    ranking = Ranking(
        rng.choice(catalog.ads, 200), values, won[rng.integers(0, 64, 200)], False, float(values[-1]), 2**60
    )
    version = "20261124-180000-abcdef0123"
    stored = StoredList(2**63, (ranking,), NO_KEYS, NO_WEIGHTS, 100, version, version, "b", 2**40, 2**40)
    assert len(encode(stored, catalog)) <= 1_800
