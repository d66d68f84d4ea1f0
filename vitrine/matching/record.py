"""The stored list: one packed Redis string a user, all that GetMatches needs (docs/matching.md, "Record").

Ads and crowds are stored by their permanent numbers (`catalog.py`), those in `ad-updates` alone by id. The crowds
that won stand in a table of the record, and an entry has its crowd's place there. A value is stored as the distance
of its float's bits to those of the value before it. All take the bits that the largest needs.
"""

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrine.matching import record_v1
from vitrine.matching.catalog import NO_NUMBER, Catalog, ordinals
from vitrine.matching.events import RecordError
from vitrine.matching.packing import pack_array, size_of, unpack_array

U64 = NDArray[np.uint64]
F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

MAGIC = b"VMLS"
SCHEMA = 2
# So many ids, among so many, are looked up in ascending order: neighbours then share cache lines.
_MANY, _AMONG = 1_000, 1 << 20
# magic, schema, flags, user, revision, offset, append ms, catalog position, epoch, served, features, bytes of the
# catalog's and of the towers' version, arm, rankings, ads without a number, crowds that won, those without a
# number, bits of an ad, bits of a crowd
_HEADER = struct.Struct("<4sHHQIqqqqHHBBBBHHHBB")
# entries, complete, bits of a value's distance, floor's value, floor's ad, bits of the first value
_RANKING = struct.Struct("<HBBfQI")
# of the header, from byte 16 on: revision, offset, append ms, catalog position, epoch
_STAMP = struct.Struct("<Iqqqq")
_STAMP_AFTER = MAGIC + SCHEMA.to_bytes(2, "little")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Ranking:
    """A user's most valuable ads for one placement group, best first: all that are at or above the floor.

    ads:      (n,) uint64
    values:   (n,) float32, non-increasing, finite, >= 0; expected revenue an impression, currency units
    crowds:   (n,) uint64, the shared crowd whose bid won
    complete: whether every eligible ad is listed
    floor_value, floor_ad: the least (value, ad) that the ranking would hold; 0, 0 where `complete`
    """

    ads: U64
    values: F32
    crowds: U64
    complete: bool
    floor_value: float
    floor_ad: int


@dataclass(frozen=True, slots=True)
class StoredList:
    """A user's rankings, one a placement group, with the user's features as of the list.

    keys, weights: (n,) uint64, float32: the features that the user's tower was made from
    served:   S: the first S entries of a ranking are exact and may be served, S <= the K asked for
    catalog_version, towers_version: the artifacts that the list is a function of
    arm:      the user's model arm, "a" or "b"
    position: offset of `ad-updates` that the list reflects; its bucket's watermark may be further
    epoch:    offset of the activation that it was made under, -1 for none
    revision: the user's events that the list reflects
    offset:   next offset of the user's partition of `user-events` that it reflects
    append_ms: when the broker appended the last of those events
    """

    user_id: int
    rankings: tuple[Ranking, ...]
    keys: U64
    weights: F32
    served: int
    catalog_version: str
    towers_version: str
    arm: str = "a"
    position: int = 0
    epoch: int = -1
    revision: int = 0
    offset: int = 0
    append_ms: int = 0


class Header(NamedTuple):
    """What a record says of itself without a catalog; the fields from `features` on say where its columns lie."""

    user_id: int
    revision: int
    offset: int
    append_ms: int
    position: int
    epoch: int
    served: int
    catalog_version: str
    towers_version: str
    arm: str
    features: int
    rankings: int
    ad_extras: int
    crowds: int
    crowd_extras: int
    ad_bits: int
    crowd_bits: int
    columns_at: int


def restamp(record: bytes, stored: StoredList) -> bytes:
    """The record with the revision, offset, append time, position and epoch of `stored`, whose other fields are the
    record's own: the bytes that `encode` would give, at a thirtieth of its cost.

    Raises RecordError where the record is not of this schema.
    """
    if len(record) < _HEADER.size or record[:6] != _STAMP_AFTER:
        raise RecordError(f"not a stored list of schema {SCHEMA}: {len(record)} bytes starting with {record[:6]!r}")
    body = b"".join(
        (
            record[:16],
            _STAMP.pack(stored.revision, stored.offset, stored.append_ms, stored.position, stored.epoch),
            record[16 + _STAMP.size : -_CRC.size],
        )
    )
    return body + _CRC.pack(zlib.crc32(body))


class Columns(NamedTuple):
    """Where one ranking's columns lie: entries (ad reference, above it its crowd's place), falls of the values."""

    entries: int
    first: int
    entries_at: int
    entry_bits: int
    falls_at: int
    fall_bits: int
    crowds_at: int


def encode(stored: StoredList, catalog: Catalog) -> bytes:
    """The list as bytes, little-endian, with the numbers of `catalog`, or of any one before or after it."""
    return encode_many([stored], catalog)[0]


def encode_many(lists: Sequence[StoredList], catalog: Catalog) -> list[bytes]:
    """`encode` of many: numbers are looked up once for all."""
    ads = [ranking.ads for stored in lists for ranking in stored.rankings]
    numbers = _numbers(catalog.ads, catalog.ad_numbers, _joined(ads))
    won = [np.unique(_joined([r.crowds for r in stored.rankings]), return_inverse=True) for stored in lists]
    won_numbers = _numbers(catalog.crowds, catalog.crowd_numbers, _joined([crowds for crowds, _ in won]))
    records = []
    ad_at = crowd_at = 0
    for stored, (crowds, places) in zip(lists, won, strict=True):
        count, n_crowds = len(places), len(crowds)
        records.append(
            _encode(
                stored,
                numbers[ad_at : ad_at + count],
                crowds,
                won_numbers[crowd_at : crowd_at + n_crowds],
                places.astype(np.uint64),
            )
        )
        ad_at += count
        crowd_at += n_crowds
    return records


def _encode(stored: StoredList, numbers: I64, crowds: U64, crowd_numbers: I64, places: U64) -> bytes:
    """numbers, places: of all rankings' entries, each ad's number and its crowd's place in `crowds`."""
    ad_extras, ads = _references(_joined([r.ads for r in stored.rankings]), numbers)
    crowd_extras, crowd_references = _references(crowds, crowd_numbers)
    ad_bits, crowd_bits = _bits(ads), _bits(crowd_references)
    entries = ads | places << np.uint64(ad_bits)
    entry_bits = ad_bits + _place_bits(len(crowds))
    catalog, towers = stored.catalog_version.encode(), stored.towers_version.encode()
    parts = [
        _HEADER.pack(
            MAGIC, SCHEMA, 0, stored.user_id, stored.revision, stored.offset, stored.append_ms, stored.position,
            stored.epoch, stored.served, len(stored.keys), len(catalog), len(towers), ord(stored.arm),
            len(stored.rankings), len(ad_extras), len(crowds), len(crowd_extras), ad_bits, crowd_bits,
        ),
        catalog,
        towers,
        stored.keys.astype("<u8", copy=False).tobytes(),
        stored.weights.astype("<f4", copy=False).tobytes(),
        ad_extras.astype("<u8", copy=False).tobytes(),
        crowd_extras.astype("<u8", copy=False).tobytes(),
        pack_array(crowd_references, crowd_bits),
    ]  # fmt: skip
    at = 0
    for ranking in stored.rankings:
        n = len(ranking.ads)
        bits = ranking.values.astype(np.float32, copy=False).view(np.uint32).astype(np.int64)
        falls = bits[:-1] - bits[1:]
        if n and (falls.min(initial=0) < 0 or bits[0] >= 0x7F800000):
            raise ValueError(f"values of user {stored.user_id} must be finite, >= 0 and non-increasing")
        fall_bits = int(falls.max(initial=0)).bit_length()
        parts += (
            _RANKING.pack(
                n, ranking.complete, fall_bits, ranking.floor_value, ranking.floor_ad, int(bits[0]) if n else 0
            ),
            pack_array(entries[at : at + n], entry_bits),
            pack_array(falls.view(np.uint64), fall_bits),
        )
        at += n
    body = b"".join(parts)
    return body + _CRC.pack(zlib.crc32(body))


def open_record(record: bytes) -> Header:
    """The record's header, once the whole record is known to be sound.

    Raises RecordError where the record is not a stored list, is cut short or damaged, or is newer than this reader.
    """
    if len(record) < 10 or record[:4] != MAGIC:
        raise RecordError(f"not a stored list: {len(record)} bytes starting with {record[:4]!r}")
    schema = int.from_bytes(record[4:6], "little")
    if schema == record_v1.SCHEMA:
        old = record_v1.decode(record)
        return Header(
            old.user_id, old.revision, old.offset, old.append_ms, 0, -1, old.served, old.catalog_version,
            old.towers_version, "a", len(old.keys), 1, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
    if schema != SCHEMA:
        raise RecordError(f"stored list of schema {schema}; this reader knows {SCHEMA}: upgrade it")
    if len(record) < _HEADER.size + _CRC.size or zlib.crc32(record[:-4]) != _CRC.unpack(record[-4:])[0]:
        raise RecordError(f"stored list is damaged: {len(record)} bytes, a wrong checksum")
    (
        _, _, _, user_id, revision, offset, append_ms, position, epoch, served, features, n_catalog, n_towers, arm,
        rankings, ad_extras, crowds, crowd_extras, ad_bits, crowd_bits,
    ) = _HEADER.unpack_from(record)  # fmt: skip
    at = _HEADER.size + n_catalog
    return Header(
        user_id, revision, offset, append_ms, position, epoch, served, record[_HEADER.size : at].decode(),
        record[at : at + n_towers].decode(), chr(arm), features, rankings, ad_extras, crowds, crowd_extras, ad_bits,
        crowd_bits, at + n_towers,
    )  # fmt: skip


def decode(record: bytes, catalog: Catalog) -> StoredList:
    """Inverse of `encode`; reads this schema and the one before it.

    Entries whose numbers `catalog` does not know are left out. Raises RecordError as `open_record` does.
    """
    return decode_opened(open_record(record), record, catalog)


def decode_opened(header: Header, record: bytes, catalog: Catalog, *, group: int | None = None) -> StoredList:
    """`decode`, of a record that was opened; of the ranking of one placement group alone where that is named."""
    if not header.columns_at:
        return _from_v1(record)
    at = header.columns_at
    keys = np.frombuffer(record, "<u8", header.features, at)
    at += keys.nbytes
    weights = np.frombuffer(record, "<f4", header.features, at)
    at += weights.nbytes
    ad_extras = np.frombuffer(record, "<u8", header.ad_extras, at)
    at += ad_extras.nbytes
    crowd_extras = np.frombuffer(record, "<u8", header.crowd_extras, at)
    at += crowd_extras.nbytes
    crowds = _ids(
        unpack_array(record, at, header.crowds, header.crowd_bits), crowd_extras, catalog.crowds_of_numbers
    )
    at += size_of(header.crowds, header.crowd_bits)
    entry_bits = header.ad_bits + _place_bits(header.crowds)
    mask, shift = np.uint64((1 << header.ad_bits) - 1), np.uint64(header.ad_bits)
    rankings = []
    for number in range(header.rankings):
        n, complete, fall_bits, floor_value, floor_ad, first = _RANKING.unpack_from(record, at)
        at += _RANKING.size
        if group is None or group == number:
            entries = unpack_array(record, at, n, entry_bits)
            falls_at = at + size_of(n, entry_bits)
            bits = np.full(n, first, np.int64)
            bits[1:] -= np.cumsum(unpack_array(record, falls_at, max(n - 1, 0), fall_bits).view(np.int64))
            ads = _ids(entries & mask, ad_extras, catalog.ads_of_numbers)
            ranking = Ranking(
                ads, bits.astype(np.uint32).view(np.float32), crowds[entries >> shift] if n else ads,
                bool(complete), floor_value, floor_ad,
            )  # fmt: skip
            rankings.append(_known(ranking))
        at += size_of(n, entry_bits) + size_of(max(n - 1, 0), fall_bits)
    return StoredList(
        header.user_id, tuple(rankings), keys, weights, header.served, header.catalog_version,
        header.towers_version, header.arm, header.position, header.epoch, header.revision, header.offset,
        header.append_ms,
    )  # fmt: skip


def columns_of(record: bytes, header: Header, group: int) -> Columns | None:
    """Of the ranking of a placement group, for readers that need no more than its beginning; None without one."""
    if group >= header.rankings:
        return None
    crowds_at = header.columns_at + 12 * header.features + 8 * (header.ad_extras + header.crowd_extras)
    at = crowds_at + size_of(header.crowds, header.crowd_bits)
    entry_bits = header.ad_bits + _place_bits(header.crowds)
    for _ in range(group + 1):
        n, _, fall_bits, _, _, first = _RANKING.unpack_from(record, at)
        entries_at = at + _RANKING.size
        falls_at = entries_at + size_of(n, entry_bits)
        at = falls_at + size_of(max(n - 1, 0), fall_bits)
    return Columns(n, first, entries_at, entry_bits, falls_at, fall_bits, crowds_at)


def _references(ids: U64, numbers: I64) -> tuple[U64, U64]:
    """(ids that have no number, references): a reference is a place among those, or their count plus a number."""
    missing = numbers < 0
    if not missing.any():
        return np.empty(0, np.uint64), numbers.astype(np.uint64)
    extras = np.unique(ids[missing])
    references = numbers + len(extras)
    references[missing] = np.searchsorted(extras, ids[missing])
    return extras, references.astype(np.uint64)


def _ids(references: U64, extras: U64, lookup: Callable[[U64], tuple[U64, NDArray[np.bool_]]]) -> U64:
    """Inverse of `_references`: (n,) ids, 0 where the number is unknown; `lookup` is the catalog's."""
    own = len(extras)
    found, known = lookup(references - np.uint64(own) if own else references)
    if not own and known.all():
        return found
    ids = np.zeros(len(references), np.uint64)
    ids[known] = found
    given = references < own
    ids[given] = extras[references[given].view(np.int64)]
    return ids


def _numbers(sorted_ids: U64, numbers: NDArray[np.uint32], ids: U64) -> I64:
    """(n,) numbers of ids in any order, -1 for those that have none in this catalog."""
    if len(ids) > _MANY and len(sorted_ids) > _AMONG:
        order = np.argsort(ids)
        found = np.empty(len(ids), np.int64)
        found[order] = _numbers_in_order(sorted_ids, numbers, ids[order])
        return found
    return _numbers_in_order(sorted_ids, numbers, ids)


def _numbers_in_order(sorted_ids: U64, numbers: NDArray[np.uint32], ids: U64) -> I64:
    rows, known = ordinals(sorted_ids, ids)
    found = np.full(len(ids), -1, np.int64)
    found[known] = numbers[rows]
    found[found == NO_NUMBER] = -1
    return found


def _known(ranking: Ranking) -> Ranking:
    """The ranking without entries of unknown ads or crowds."""
    known = (ranking.ads != 0) & (ranking.crowds != 0)
    if known.all():
        return ranking
    return Ranking(
        ranking.ads[known], ranking.values[known], ranking.crowds[known], ranking.complete, ranking.floor_value,
        ranking.floor_ad,
    )  # fmt: skip


def _from_v1(record: bytes) -> StoredList:
    old = record_v1.decode(record)
    ranking = Ranking(old.ads, old.values, old.crowds, old.complete, old.floor_value, old.floor_ad)
    return StoredList(
        old.user_id, (ranking,), old.keys, old.weights, old.served, old.catalog_version, old.towers_version,
        revision=old.revision, offset=old.offset, append_ms=old.append_ms,
    )  # fmt: skip


def _joined(arrays: Sequence[U64]) -> U64:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.empty(0, np.uint64)


def _bits(references: U64) -> int:
    return int(references.max(initial=0)).bit_length()


def _place_bits(crowds: int) -> int:
    return max(crowds - 1, 0).bit_length()
