"""Records of item-updates: what is written is read back, and what is no update is refused with its field."""

import numpy as np
import pytest
from ann_kit import unit_vectors
from hypothesis import given
from hypothesis import strategies as st

from vitrine.ann import updates
from vitrine.ann.updates import Update, UpdateError
from vitrine.api.events.v1.events_pb2 import ItemUpdate
from vitrine.api.items.v1.items_pb2 import Attribute, Attributes, Value
from vitrine.errors import FieldError

DIM = 8
ONE = unit_vectors(0, 1, DIM)[0]
KEY = b"shoes/7"

names = st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True)
values = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)


@given(st.integers(1, 2**64 - 1), st.booleans(), st.dictionaries(names, values, max_size=4))
def test_what_is_written_is_read_back(item_id, deleted, attributes):
    update = Update(item_id, None if deleted else ONE, {} if deleted else attributes)
    key, value = updates.key_of("shoes", item_id), updates.value_of("shoes", update, "v1")
    read = updates.parse(key, value, "shoes", "v1", DIM)
    assert (read.item_id, dict(read.attributes)) == (item_id, dict(update.attributes))
    assert read.vector is None if deleted else np.array_equal(read.vector, ONE)
    assert updates.parse(key, value, "hats", "v1", DIM) is None
    assert updates.parse(key, None, "shoes", "v1", DIM) is None


def message(**fields) -> bytes:
    given_ = {"index": "shoes", "item_id": 7, "embeddings_version": "v1", "vector": ONE.tobytes()}
    return ItemUpdate(**(given_ | fields)).SerializeToString()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        (None, message(), "key"),
        (b"shoes", message(), "key"),
        (b"shoes/", message(), "key"),
        (b"shoes/07", message(), "key"),
        (b"shoes/0", message(), "key"),
        (b"shoes/18446744073709551616", message(), "key"),
        (KEY, b"\xff\xff", "value"),
        (KEY, message(item_id=8), "value"),
        (KEY, message(index="hats"), "value"),
        (KEY, message(embeddings_version="v2"), "embeddings_version"),
        (KEY, message(vector=ONE.tobytes()[:-4]), "vector"),
        (KEY, message(vector=b""), "vector"),
        (KEY, message(vector=(2 * ONE).tobytes()), "vector"),
        (KEY, message(vector=(np.nan * ONE).tobytes()), "vector"),
        (KEY, message(vector=(np.float32(3e38) * ONE).tobytes()), "vector"),
        (KEY, message(attributes=Attributes(attributes=[Attribute(name="n")])), "attributes"),
    ],
)
def test_what_is_no_update_is_refused_with_its_field(key, value, named):
    with pytest.raises(UpdateError, match=f"^{named}: "):
        updates.parse(key, value, "shoes", "v1", DIM)


@pytest.mark.parametrize(
    "given_",
    [
        [Attribute(name="Size", value=Value(integer=1))],
        [Attribute(name="a" * 65, value=Value(integer=1))],
        [Attribute(name="", value=Value(integer=1))],
        [Attribute(name="n", value=Value(integer=1)), Attribute(name="n", value=Value(integer=1))],
        [Attribute(name="n", value=Value(number=float("nan")))],
        [Attribute(name="n", value=Value(text="é" * 513))],
        [Attribute(name="n", value=Value())],
        [Attribute(name=f"n{i}", value=Value(integer=1)) for i in range(257)],
    ],
)
def test_bad_attributes_are_refused(given_):
    with pytest.raises(FieldError, match=r"^attributes: "):
        updates.from_message(Attributes(attributes=given_))
