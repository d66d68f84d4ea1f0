"""Values of `item-updates`: an item's new vector and attributes, or its deletion (docs/ann-updates.md)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from vitrine.api.events.v1.events_pb2 import ItemUpdate
from vitrine.api.items.v1.items_pb2 import Attribute, Attributes, Value
from vitrine.errors import FieldError

AttributeValue = int | float | str

MAX_TEXT_BYTES = 1024
MAX_ATTRIBUTES = 256

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KEY = re.compile(rb"[1-9][0-9]{0,19}")


class UpdateError(ValueError):
    """A record that is no update of the index: the message names the field."""


@dataclass(frozen=True, slots=True)
class Update:
    """One change of one item.

    vector:     float32 (dim,), unit length; None: the item is deleted
    attributes: name -> value; those that are not named the item does not have
    """

    item_id: int
    vector: NDArray[np.float32] | None
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


def key_of(index: str, item_id: int) -> bytes:
    """The record key of an item."""
    return b"%s/%d" % (index.encode(), item_id)


def value_of(index: str, update: Update, embeddings_version: str) -> bytes:
    """The record value of an update; `parse` is the inverse."""
    deleted = update.vector is None
    return ItemUpdate(
        index=index,
        item_id=update.item_id,
        embeddings_version=embeddings_version,
        vector=b"" if update.vector is None else update.vector.astype("<f4").tobytes(),
        attributes=None if deleted else to_message(update.attributes),
        deleted=deleted,
    ).SerializeToString()


def item_of(key: bytes | None, index: str) -> int | None:
    """The item of a record's key; None where the record is of another index. Raises UpdateError."""
    name, slash, digits = (key or b"").rpartition(b"/")
    if not slash:
        raise UpdateError(f"key: {(key or b'')[:100]!r} is not INDEX/ITEM_ID")
    if name != index.encode():
        return None
    item_id = int(digits) if _KEY.fullmatch(digits) else 0
    if not 1 <= item_id < 2**64:
        raise UpdateError(f"key: {digits[:100]!r} is not an item's id in decimal ASCII")
    return item_id


def parse(key: bytes | None, value: bytes | None, index: str, embeddings_version: str, dim: int) -> Update | None:
    """The update that a record is for an index; None where it is of another index, and for a tombstone.

    That stands for a deletion that every artifact contains, and may come after an upsert that it did not mean
    (`vitrine.runtime.tombstones`), so it changes nothing. Raises UpdateError for what is no ItemUpdate, does not
    match its key, has a vector of another version of `embeddings` or not of unit length, or an attribute that
    `from_message` refuses.
    """
    item_id = item_of(key, index)
    if item_id is None or value is None:
        return None
    message = ItemUpdate()
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise UpdateError(f"value: no ItemUpdate: {error}") from error
    if (message.index, message.item_id) != (index, item_id):
        raise UpdateError(f"value: of item {message.item_id} in {message.index!r}, where the key is {key!r}")
    if message.deleted:
        return Update(item_id, None)
    if message.embeddings_version != embeddings_version:
        raise UpdateError(
            f"embeddings_version: {message.embeddings_version!r}, where the index has {embeddings_version!r}"
        )
    if len(message.vector) != 4 * dim:
        raise UpdateError(f"vector: {len(message.vector)} bytes, where {dim} float32 are {4 * dim}")
    vector = np.frombuffer(message.vector, "<f4").astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        length = math.sqrt(vector @ vector)
    if not abs(length - 1) < 1e-3:
        raise UpdateError(f"vector: has length {length}, not 1")
    try:
        return Update(item_id, vector, from_message(message.attributes))
    except FieldError as error:
        raise UpdateError(str(error)) from error


def from_message(message: Attributes) -> dict[str, AttributeValue]:
    """Attributes by name. Raises FieldError("attributes") for a bad or repeated name and a value out of bounds."""
    if len(message.attributes) > MAX_ATTRIBUTES:
        raise FieldError("attributes", f"{len(message.attributes)} of one item; at most {MAX_ATTRIBUTES} are taken")
    found: dict[str, AttributeValue] = {}
    for each in message.attributes:
        check_name(each.name)
        if each.name in found:
            raise FieldError("attributes", f"{each.name} is there twice")
        found[each.name] = _value(each.name, each.value)
    return found


def check_name(name: str) -> None:
    """FieldError("attributes") for what is no name of an attribute."""
    if _NAME.fullmatch(name) is None:
        raise FieldError("attributes", f"name {name[:100]!r}: use 1 to 64 of a-z, 0-9 and '_', a letter first")


def to_message(attributes: Mapping[str, AttributeValue]) -> Attributes:
    """Inverse of `from_message`, by name."""
    return Attributes(
        attributes=[Attribute(name=name, value=to_value(attributes[name])) for name in sorted(attributes)]
    )


def to_value(value: AttributeValue) -> Value:
    """One value as a message."""
    if isinstance(value, str):
        return Value(text=value)
    return Value(integer=value) if isinstance(value, int) else Value(number=value)


def _value(name: str, message: Value) -> AttributeValue:
    kind = message.WhichOneof("kind")
    if kind == "integer":
        return message.integer
    if kind == "number":
        if not math.isfinite(message.number):
            raise FieldError("attributes", f"{name} is {message.number}, not a finite number")
        return message.number
    if kind == "text":
        if len(message.text.encode()) > MAX_TEXT_BYTES:
            raise FieldError("attributes", f"{name} is text of more than {MAX_TEXT_BYTES:,} bytes")
        return message.text
    raise FieldError("attributes", f"{name} has no value; leave it out where the item has none")
