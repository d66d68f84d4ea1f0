"""Filters from the client's builder over the wire to the library, against a plain reading of the conditions."""

import numpy as np
import pytest
from ann_kit import unit_vectors
from hypothesis import given
from hypothesis import strategies as st

from services.ann import decode
from vitrine import client
from vitrine.ann import filters
from vitrine.ann.attributes import Attributes
from vitrine.ann.hashing import fit
from vitrine.ann.index import BinaryIndex
from vitrine.api.ann.v1 import ann_pb2
from vitrine.errors import FieldError

N = 60
ITEMS = {
    100 + i: {"whole": i % 9 - 4, "real": i / 4 - 3, "text": "abcé"[i % 4]}
    if i % 5
    else ({"whole": 2**62 + i} if i % 2 else {})
    for i in range(N)
}
_vectors = unit_vectors(0, N, 64)
INDEX = BinaryIndex.of(
    np.array(list(ITEMS), np.uint64),
    _vectors,
    fit(_vectors, 64, seed=0),
    attributes=Attributes.of(list(ITEMS.values())),
)

WHOLE = st.integers(-6, 6) | st.integers(-(2**63), 2**63 - 1) | st.integers(2**62 - 2, 2**62 + N)
REAL = st.floats(-4, 13) | st.floats(allow_nan=False, allow_infinity=False)
NUMBERS = WHOLE | REAL
BOUNDS = st.dictionaries(st.sampled_from(["at_least", "at_most", "above", "below"]), NUMBERS, min_size=1)


class Condition:
    """What the client sends, what the library should get, and which items meet it by Python's own reading."""

    def __init__(self, sent, meant, meets):
        self.sent, self.meant, self.meets = sent, meant, meets


def of_items(ids):
    return Condition(client.items(*ids), filters.Items(frozenset(ids)), lambda item, attributes: item in ids)


def of_values(name, values):
    return Condition(
        client.one_of(name, *values),
        filters.OneOf(name, frozenset(values)),
        lambda item, attributes: name in attributes and attributes[name] in values,
    )


def of_bounds(name, bounds):
    def meets(item, attributes):
        value = attributes.get(name)
        return (
            value is not None
            and ("at_least" not in bounds or value >= bounds["at_least"])
            and ("at_most" not in bounds or value <= bounds["at_most"])
            and ("above" not in bounds or value > bounds["above"])
            and ("below" not in bounds or value < bounds["below"])
        )

    return Condition(client.in_range(name, **bounds), filters.Range(name, **bounds), meets)


def both(one, other):
    return Condition(one.sent & other.sent, None, lambda *of: one.meets(*of) and other.meets(*of))


def either(one, other):
    return Condition(one.sent | other.sent, None, lambda *of: one.meets(*of) or other.meets(*of))


def neither(one):
    meant = None if one.meant is None else filters.Not(one.meant)
    return Condition(~one.sent, meant, lambda *of: not one.meets(*of))


ONE = (
    st.builds(of_items, st.lists(st.integers(95, 165) | st.integers(0, 2**64 - 1), max_size=20))
    | st.builds(of_values, st.sampled_from(["whole", "real"]), st.lists(NUMBERS, max_size=5))
    | st.builds(of_values, st.just("text"), st.lists(st.sampled_from("abcdé") | st.text(max_size=9), max_size=5))
    | st.builds(of_bounds, st.sampled_from(["whole", "real"]), BOUNDS)
)
CONDITIONS = st.recursive(
    ONE,
    lambda inner: st.builds(both, inner, inner) | st.builds(either, inner, inner) | st.builds(neither, inner),
    max_leaves=12,
)


def through_the_wire(sent: client.Filter) -> filters.Filter:
    return decode.filter_of(ann_pb2.Filter.FromString(sent.message.SerializeToString()))


@given(ONE | st.builds(neither, ONE))
def test_a_condition_arrives_as_it_was_meant(condition):
    assert through_the_wire(condition.sent) == condition.meant


@given(CONDITIONS)
def test_items_that_meet_a_filter_are_those_of_a_plain_reading(condition):
    wanted = [item for item, attributes in ITEMS.items() if condition.meets(item, attributes)]
    assert INDEX.matching(through_the_wire(condition.sent)).tolist() == wanted


def test_chains_of_one_kind_lie_flat():
    chain = client.items(1) & client.items(2) & (client.items(3) & client.items(4))
    assert len(through_the_wire(chain).filters) == 4
    mixed = (client.items(1) | client.items(2)) & client.items(3)
    assert [type(each).__name__ for each in through_the_wire(mixed).filters] == ["Any", "Items"]


def test_a_filter_of_64_conditions_is_taken_and_of_65_not():
    one = ann_pb2.Filter(items=ann_pb2.ItemIds(item_ids=[1]))
    decode.filter_of(ann_pb2.Filter(all=ann_pb2.Filters(filters=[one] * 63)))
    with pytest.raises(FieldError, match="64 conditions"):
        decode.filter_of(ann_pb2.Filter(all=ann_pb2.Filters(filters=[one] * 64)))


def test_a_large_filter_is_read_like_a_small_one():
    many = list(range(1, 50_001))
    assert through_the_wire(client.items(many)) == filters.Items(frozenset(many))
