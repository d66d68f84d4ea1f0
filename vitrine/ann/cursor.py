"""Where the results of a query go on: opaque to callers, and all that a server need know of the pages before."""

import hashlib
import struct
from dataclasses import dataclass
from functools import lru_cache

from vitrine.errors import FieldError

_LAYOUT = struct.Struct("<B8sfQI")
_SCHEMA = 1


class GenerationError(FieldError):
    """The cursor is of another generation of the index, in which items may stand elsewhere."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last result so far.

    generation: of the index that gave it
    key:        what results are ordered by, ascending: a distance in bits, or a cosine made negative
    item_id:    among equal keys, ascending
    taken:      results so far
    """

    generation: str
    key: float
    item_id: int
    taken: int

    def encode(self) -> bytes:
        """The bytes that `decode` reads."""
        return _LAYOUT.pack(_SCHEMA, _digest(self.generation), self.key, self.item_id, self.taken)


def decode(data: bytes, generation: str) -> Cursor:
    """FieldError("cursors") for other bytes, GenerationError for a cursor of another generation."""
    if len(data) != _LAYOUT.size or data[0] != _SCHEMA:
        raise FieldError(
            "cursors", "is no cursor of this service; pass on those of the response before, as they are"
        )
    _, digest, key, item_id, taken = _LAYOUT.unpack(data)
    if digest != _digest(generation):
        raise GenerationError(
            "cursors", f"is of another version than {generation}, now served; begin anew without it"
        )
    if key != key or taken < 1:
        raise FieldError("cursors", "is damaged; pass on those of the response before, as they are")
    return Cursor(generation, key, item_id, taken)


def too_far(most: int) -> FieldError:
    """For a cursor after too many results."""
    return FieldError("cursors", f"{most:,} results of the query were given; narrow the search with a filter")


@lru_cache(8)
def _digest(generation: str) -> bytes:
    return hashlib.sha256(generation.encode()).digest()[:8]
