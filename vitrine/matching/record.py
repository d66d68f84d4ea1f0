"""The stored list: one packed Redis string a user, all that GetMatches needs (docs/matching.md, "Record")."""

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrine.matching.events import RecordError

_MAGIC = b"VMLS"
_SCHEMA = 1
_COMPLETE = 1
# magic, schema, flags, user, revision, offset, append ms, floor's ad, floor's value,
# served, entries, features, bytes of the catalog's and of the towers' version
_HEADER = struct.Struct("<4sHHQQQqQfHHHHH")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class StoredList:
    """A user's most valuable ads, best first, with the user's features as of the list.

    ads:      (K,) uint64
    values:   (K,) float32, non-increasing; expected revenue an impression, currency units
    crowds:   (K,) uint64, the shared crowd whose bid won
    bids:     (K,) float32, that bid, currency units a click
    keys, weights: (n,) uint64, float32: the features that the user's tower was made from
    served:   S: the first S entries are exact and may be served, S <= the K asked for
    complete: whether every eligible ad is listed
    floor_value, floor_ad: the last entry, above which the list is complete; 0, 0 where `complete`
    catalog_version, towers_version: the artifacts that the list is a function of
    revision: the user's events that the list reflects
    offset:   next offset of the user's partition of `user-events` that it reflects
    append_ms: when the broker appended the last of those events
    """

    user_id: int
    ads: NDArray[np.uint64]
    values: NDArray[np.float32]
    crowds: NDArray[np.uint64]
    bids: NDArray[np.float32]
    keys: NDArray[np.uint64]
    weights: NDArray[np.float32]
    served: int
    complete: bool
    floor_value: float
    floor_ad: int
    catalog_version: str
    towers_version: str
    revision: int
    offset: int
    append_ms: int


def encode(stored: StoredList) -> bytes:
    """The list as bytes: header, columns, versions, CRC-32; little-endian."""
    catalog, towers = stored.catalog_version.encode(), stored.towers_version.encode()
    flags = _COMPLETE if stored.complete else 0
    body = b"".join(
        (
            _HEADER.pack(
                _MAGIC, _SCHEMA, flags, stored.user_id, stored.revision, stored.offset,
                stored.append_ms, stored.floor_ad, stored.floor_value, stored.served, len(stored.ads),
                len(stored.keys), len(catalog), len(towers),
            ),
            stored.ads.astype("<u8", copy=False).tobytes(), stored.crowds.astype("<u8", copy=False).tobytes(),
            stored.keys.astype("<u8", copy=False).tobytes(), stored.values.astype("<f4", copy=False).tobytes(),
            stored.bids.astype("<f4", copy=False).tobytes(), stored.weights.astype("<f4", copy=False).tobytes(),
            catalog, towers,
        )
    )  # fmt: skip
    return body + _CRC.pack(zlib.crc32(body))


class Header(NamedTuple):
    """What a record begins with; `entries`, `features` and the versions' lengths say where the columns lie."""

    magic: bytes
    schema: int
    flags: int
    user_id: int
    revision: int
    offset: int
    append_ms: int
    floor_ad: int
    floor_value: float
    served: int
    entries: int
    features: int
    catalog_bytes: int
    towers_bytes: int


COLUMNS_AT = _HEADER.size


def open_record(record: bytes) -> Header:
    """The record's header, once the whole record is known to be sound.

    Raises RecordError where the record is not a stored list, is cut short or damaged, or is newer than this reader.
    """
    if len(record) < _HEADER.size + _CRC.size or record[:4] != _MAGIC:
        raise RecordError(f"not a stored list: {len(record)} bytes starting with {record[:4]!r}")
    header = Header._make(_HEADER.unpack_from(record))
    if header.schema != _SCHEMA:
        raise RecordError(f"stored list of schema {header.schema}; this reader knows {_SCHEMA}: upgrade it")
    size = _HEADER.size + 24 * header.entries + 12 * header.features
    size += header.catalog_bytes + header.towers_bytes + _CRC.size
    if len(record) != size or _CRC.unpack_from(record, size - _CRC.size)[0] != zlib.crc32(record[: -_CRC.size]):
        raise RecordError(f"stored list is damaged: {len(record)} bytes of {size}, or a wrong checksum")
    return header


def decode(record: bytes) -> StoredList:
    """Inverse of `encode`; the arrays are views of the record. Raises RecordError as `open_record` does."""
    header = open_record(record)
    n, n_features = header.entries, header.features
    at = COLUMNS_AT
    ids = np.frombuffer(record, "<u8", 2 * n + n_features, at)
    at += ids.nbytes
    numbers = np.frombuffer(record, "<f4", 2 * n + n_features, at)
    at += numbers.nbytes
    catalog, towers = record[at : at + header.catalog_bytes], record[at + header.catalog_bytes : -_CRC.size]
    return StoredList(
        header.user_id, ids[:n], numbers[:n], ids[n : 2 * n], numbers[n : 2 * n], ids[2 * n :], numbers[2 * n :],
        header.served, bool(header.flags & _COMPLETE), header.floor_value, header.floor_ad, catalog.decode(),
        towers.decode(), header.revision, header.offset, header.append_ms,
    )  # fmt: skip
