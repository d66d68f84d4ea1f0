"""Filters on columns of attributes, and attributes in files and batches, against dicts of items."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrine.ann import filters
from vitrine.ann.attributes import Attributes, kind_of
from vitrine.ann.cursor import Cursor, GenerationError, decode
from vitrine.ann.filters import All, Any, Has, Items, Not, OneOf, Range
from vitrine.ann.segment import Segment
from vitrine.artifacts import ArtifactError
from vitrine.errors import FieldError

whole = st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3) | st.sampled_from([2**53, 2**53 + 1])
number = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float)
text = st.text(max_size=5) | st.sampled_from(["hat", "shoe"])
items = st.lists(
    st.fixed_dictionaries({}, optional={"lot": whole, "price": number, "shape": text}), min_size=1, max_size=30
)


def segment_of(rows: list[dict]) -> Segment:
    kinds = {"lot": "integer", "price": "number", "shape": "text"}
    n = len(rows)
    return Segment(
        np.arange(1, n + 1, dtype=np.uint64),
        np.zeros((1, n), np.uint64),
        np.zeros((n, 1), np.float32),
        Attributes.of(rows, kinds),
    )


def bounds_of(value) -> st.SearchStrategy:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(("at_least", "at_most", "above", "below"), value))


@settings(deadline=None)
@given(rows=items, name=st.sampled_from(["lot", "price"]), bounds=bounds_of(whole | number))
def test_a_range_compares_as_python_does(rows, name, bounds):
    found = filters.mask(Range(name, **bounds), segment_of(rows))
    for row, holds in zip(rows, found, strict=True):
        value = row.get(name)
        if name == "price":  # of which float64 is all there is
            bounds = {key: float(bound) for key, bound in bounds.items()}
        assert holds == (
            value is not None
            and value >= bounds.get("at_least", value)
            and value <= bounds.get("at_most", value)
            and ("above" not in bounds or value > bounds["above"])
            and ("below" not in bounds or value < bounds["below"])
        )


@settings(deadline=None)
@given(rows=items, name=st.sampled_from(["lot", "price", "shape"]), data=st.data())
def test_one_of_is_membership(rows, name, data):
    there = [row[name] for row in rows if name in row]
    other = text if name == "shape" else whole if name == "lot" else number
    values = frozenset(data.draw(st.lists((st.sampled_from(there) if there else other) | other, max_size=5)))
    found = filters.mask(OneOf(name, values), segment_of(rows))
    assert found.tolist() == [name in row and row[name] in values for row in rows]


def test_whole_numbers_are_found_by_equal_numbers_alone():
    segment = segment_of([{"lot": 2**53}, {"lot": 2**53 + 1}, {"lot": 3}])
    assert filters.mask(OneOf("lot", frozenset([float(2**53), 3.5, 1e300])), segment).tolist() == [
        True,
        False,
        False,
    ]
    assert filters.mask(Range("lot", above=2.5, at_most=3.5), segment).tolist() == [False, False, True]


@given(rows=items)
def test_attributes_survive_a_file_and_cuts(rows, tmp_path_factory):
    file = tmp_path_factory.mktemp("attributes") / "attributes.arrow"
    attributes = segment_of(rows).attributes
    attributes.write(file)
    loaded = Attributes.load(file, len(rows))
    assert [loaded.row(i) for i in range(len(rows))] == rows
    order = np.arange(len(rows))[::-1]
    taken = Attributes.concat([loaded.take(order), Attributes.none(2), loaded])
    assert [taken.row(i) for i in range(taken.rows)] == [*rows[::-1], {}, {}, *rows]


def test_an_attribute_has_one_kind():
    assert kind_of("price", 3, "number") == "number"
    with pytest.raises(FieldError, match=r"attributes: lot is integer, not text: 'x'"):
        kind_of("lot", "x", "integer")
    with pytest.raises(FieldError, match=r"lot is number here and integer there"):
        Attributes.concat([Attributes.of([{"lot": 1}]), Attributes.of([{"lot": 1.5}])])


@pytest.mark.parametrize("damage", ["gone", "cut", "rows", "type"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "attributes.arrow"
    segment_of([{"lot": 3}, {"shape": "hat"}]).attributes.write(file)
    if damage == "gone":
        file.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:200])
    elif damage == "type":
        table = pa.table({"lot": pa.array([1, 2], pa.int16())})
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(ArtifactError, match=r"attributes\.arrow"):
        Attributes.load(file, 3 if damage == "rows" else 2)


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("'colour'.*there are: lot, price, shape", Has("colour")),
        ("'colour'", Not(Any((Range("colour", above=1),)))),
        ("shape is text, which 3 is not", OneOf("shape", frozenset([3]))),
        ("shape is text; ranges", Range("shape", above=1)),
        ("lot is compared with nan", Range("lot", above=float("nan"))),
        ("price is compared with inf", OneOf("price", frozenset([float("inf")]))),
        ("more than 64 conditions", All(tuple(Has("lot") for _ in range(64)))),
    ],
)
def test_a_filter_that_means_nothing_is_refused_with_its_attribute(message, wanted):
    with pytest.raises(FieldError, match=message) as refused:
        filters.check(wanted, {"lot": "integer", "price": "number", "shape": "text"})
    assert refused.value.field == "filter"


def test_ids_beyond_64_bits_are_refused():
    with pytest.raises(FieldError, match="filter: has an item id beyond 64 bits"):
        filters.mask(Items(frozenset([2**64])), segment_of([{}]))


def test_masks_are_made_once_for_a_filter_and_the_oldest_forgotten():
    segment = segment_of([{"lot": 1}, {"lot": 2}])
    first = segment.allowed(Range("lot", at_least=1), None)
    assert segment.allowed(Range("lot", at_least=1), None) is first
    for bound in range(2, 300):
        segment.allowed(Range("lot", at_least=bound), None)
    assert segment.allowed(Range("lot", at_least=1), None) is not first


@given(key=st.floats(width=32, allow_nan=False), item=st.integers(0, 2**64 - 1), taken=st.integers(1, 2**32 - 1))
def test_a_cursor_says_what_it_was_told_to_its_own_generation_alone(key, item, taken):
    cursor = Cursor("v1", key, item, taken)
    assert decode(cursor.encode(), "v1") == cursor
    with pytest.raises(GenerationError, match="cursors: is of another version than v2"):
        decode(cursor.encode(), "v2")


@given(data=st.binary(max_size=40))
def test_other_bytes_are_no_cursor(data):
    with pytest.raises(FieldError, match="cursors"):
        decode(data, "v1")
