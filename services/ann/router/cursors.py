"""The cursor of a merged answer: the last result, and for each shard the version it is of and how much it gave."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vitrine.ann import cursor
from vitrine.errors import FieldError

_HEAD = struct.Struct("<2sfQHB")  # magic, key, id, shards, versions; then each version's length and name
_SHARD = struct.Struct("<BI")  # which of the versions, or one of these two; results taken
_ENDED, _ABSENT = 254, 255
_MAGIC = b"R1"


@dataclass(frozen=True, slots=True)
class Place:
    """How a shard stands with a query.

    version: that its results are of; "" where it was not there for the first page
    taken:   its results so far
    ended:   it has no more
    """

    version: str
    taken: int = 0
    ended: bool = False

    @property
    def absent(self) -> bool:
        return not self.version and not self.ended


@dataclass(frozen=True, slots=True)
class Cursor:
    """After which result a query goes on: (key, id); the key is the distance, or the score with its sign turned."""

    key: float
    item_id: int
    places: tuple[Place, ...]

    def of_shard(self, shard: int) -> bytes:
        """The shard's own cursor; empty where its results begin at the first."""
        place = self.places[shard]
        return cursor.Cursor(place.version, self.key, self.item_id, place.taken).encode() if place.taken else b""

    def encode(self) -> bytes:
        """Empty where no shard has more."""
        if all(place.ended for place in self.places):
            return b""
        versions = list(dict.fromkeys(place.version for place in self.places if place.version and not place.ended))
        names = [version.encode() for version in versions]
        parts = [_HEAD.pack(_MAGIC, self.key, self.item_id, len(self.places), len(names))]
        parts += [bytes([len(name)]) + name for name in names]
        for place in self.places:
            which = _ENDED if place.ended else versions.index(place.version) if place.version else _ABSENT
            parts.append(_SHARD.pack(which, place.taken))
        return b"".join(parts)


def decode(data: bytes, shards: int) -> Cursor:
    """Inverse of `encode`. Raises FieldError for what is no cursor of a router with so many shards."""
    if not data:
        return Cursor(float("inf"), 0, (Place("", ended=True),) * shards)
    try:
        magic, key, item_id, count, named = _HEAD.unpack_from(data)
        at, versions, places = _HEAD.size, [], []
        for _ in range(named):
            versions.append(data[at + 1 : at + 1 + data[at]].decode("ascii"))
            at += 1 + data[at]
        for _ in range(count):
            which, taken = _SHARD.unpack_from(data, at)
            at += _SHARD.size
            places.append(Place("" if which >= _ENDED else versions[which], taken, which == _ENDED))
    except (struct.error, ValueError, IndexError):
        magic = b""
    if magic != _MAGIC or at != len(data):
        raise FieldError(
            "cursors", "is no cursor of this router; pass on those of the response before, as they are"
        )
    if count != shards:
        raise FieldError("cursors", f"is of an index of {count} shards, here are {shards}; begin anew without it")
    return Cursor(key, item_id, tuple(places))


def decode_all(cursors: Sequence[bytes], shards: int) -> tuple[Cursor, ...]:
    return tuple(decode(data, shards) for data in cursors)
