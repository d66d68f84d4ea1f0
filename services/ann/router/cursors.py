"""The cursor of a merged answer: the last result's key, and for each shard where its own results go on."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vitrine.errors import FieldError

_HEAD = struct.Struct(">2sdQH")  # magic, key, id, shards
_SHARD = struct.Struct(">BH")  # state, bytes of the shard's own cursor
_MAGIC = b"R1"


class State(enum.IntEnum):
    """How a shard stands with a query."""

    ENDED = 0  # it has no more results
    ON = 1  # its results go on after its own cursor
    AGAIN = 2  # its last results were few, and some are left: they are asked for again, from the same place
    ABSENT = 3  # it was not there for the first page


@dataclass(frozen=True, slots=True)
class Place:
    """One shard's state; `cursor` is its own, of ON and AGAIN, empty where AGAIN is from the beginning."""

    state: State
    cursor: bytes = b""


@dataclass(frozen=True, slots=True)
class Cursor:
    """After which result a query goes on: (key, id); the key is the distance, or the score with its sign turned."""

    key: float
    item_id: int
    places: tuple[Place, ...]

    @property
    def ended(self) -> bool:
        return all(place.state is State.ENDED for place in self.places)


def encode(cursor: Cursor) -> bytes:
    """Empty where no shard has more."""
    if cursor.ended:
        return b""
    head = _HEAD.pack(_MAGIC, cursor.key, cursor.item_id, len(cursor.places))
    return head + b"".join(_SHARD.pack(each.state, len(each.cursor)) + each.cursor for each in cursor.places)


def decode(data: bytes, shards: int, field: str) -> Cursor:
    """Inverse of `encode`. Raises FieldError for what is no cursor of a router with so many shards."""
    if not data:
        return Cursor(float("inf"), 0, (Place(State.ENDED),) * shards)
    try:
        magic, key, item_id, count = _HEAD.unpack_from(data)
        at, places = _HEAD.size, []
        for _ in range(count):
            state, size = _SHARD.unpack_from(data, at)
            at += _SHARD.size
            places.append(Place(State(state), data[at : at + size]))
            at += size
    except (struct.error, ValueError):
        magic = b""
    if magic != _MAGIC or at != len(data):
        raise FieldError(field, "is no cursor of a response of this router")
    if count != shards:
        raise FieldError(field, f"is of an index of {count} shards, this one has {shards}; begin without cursors")
    return Cursor(key, item_id, tuple(places))


def moved(place: Place, key: float, item_id: int, fewer: int) -> Place:
    """The place after the merged result (key, item_id), where `fewer` of the shard's own results were not taken."""
    if place.state is not State.ON:
        return place
    from vitrine.ann import cursor

    return Place(State.ON, cursor.moved(place.cursor, key, item_id, fewer))


def decode_all(cursors: Sequence[bytes], shards: int) -> list[Cursor]:
    return [decode(data, shards, f"cursors[{i}]") for i, data in enumerate(cursors)]
