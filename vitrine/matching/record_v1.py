"""A stored list as schema 1 wrote it: read once more, until its user's next list is written."""

import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrine.matching.events import RecordError

SCHEMA = 1
_COMPLETE = 1
# magic, schema, flags, user, revision, offset, append ms, floor's ad, floor's value,
# served, entries, features, bytes of the catalog's and of the towers' version
_HEADER = struct.Struct("<4sHHQQQqQfHHHHH")
_CRC = struct.Struct("<I")


class ListV1(NamedTuple):
    """The fields of schema 1, without the bids."""

    user_id: int
    revision: int
    offset: int
    append_ms: int
    floor_ad: int
    floor_value: float
    served: int
    complete: bool
    ads: NDArray[np.uint64]
    values: NDArray[np.float32]
    crowds: NDArray[np.uint64]
    keys: NDArray[np.uint64]
    weights: NDArray[np.float32]
    catalog_version: str
    towers_version: str


def decode(record: bytes) -> ListV1:
    """Raises RecordError where the record is cut short or damaged."""
    if len(record) < _HEADER.size + _CRC.size:
        raise RecordError(f"stored list is damaged: {len(record)} bytes")
    (
        _, _, flags, user_id, revision, offset, append_ms, floor_ad, floor_value, served, n, features, catalog,
        towers,
    ) = _HEADER.unpack_from(record)  # fmt: skip
    size = _HEADER.size + 24 * n + 12 * features + catalog + towers + _CRC.size
    if len(record) != size or _CRC.unpack_from(record, size - _CRC.size)[0] != zlib.crc32(record[: -_CRC.size]):
        raise RecordError(f"stored list is damaged: {len(record)} bytes of {size}, or a wrong checksum")
    ids = np.frombuffer(record, "<u8", 2 * n + features, _HEADER.size)
    numbers = np.frombuffer(record, "<f4", 2 * n + features, _HEADER.size + ids.nbytes)
    at = _HEADER.size + ids.nbytes + numbers.nbytes
    return ListV1(
        user_id, revision, offset, append_ms, floor_ad, floor_value, served, bool(flags & _COMPLETE), ids[:n],
        numbers[:n], ids[n : 2 * n], ids[2 * n :], numbers[2 * n :], record[at : at + catalog].decode(),
        record[at + catalog : -_CRC.size].decode(),
    )  # fmt: skip
