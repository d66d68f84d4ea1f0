"""GetMatches' answer out of a stored list: most columns go from the record to the wire as they lie.

Protobuf's packed floats and fixed64 are the record's little-endian columns; ad and crowd ids alone are varints, and
are written by protobuf itself. 9 us an answer, where decoding to numpy and filling the message took 21.
"""

import struct
from collections.abc import Set

import numpy as np

from vitrine.api.features.v1 import features_pb2
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.matching.record import COLUMNS_AT, Header, open_record


def _tag(message: type, field: str) -> bytes:
    """Key of a length-delimited field (the numbers here are below 16, so one byte)."""
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | 2])  # type: ignore[attr-defined]


_CATALOG, _TOWERS = _tag(pb.GetMatchesResponse, "catalog_version"), _tag(pb.GetMatchesResponse, "towers_version")
_VALUES, _BIDS = _tag(pb.GetMatchesResponse, "values"), _tag(pb.GetMatchesResponse, "bids")
_CONTEXT = _tag(pb.GetMatchesResponse, "context")
_KEYS, _WEIGHTS = _tag(features_pb2.UserContext, "keys"), _tag(features_pb2.UserContext, "weights")


def from_record(record: bytes, k: int, hidden: Set[int]) -> tuple[pb.GetMatchesResponse, Header]:
    """The first k entries that are not in `hidden`, with the user's features; without ads where all are hidden.

    `source`, `revision` and `age_ms` are left to the caller. Raises RecordError as `record.decode` does.
    """
    header = open_record(record)
    n, features = header.entries, header.features
    keys_at = COLUMNS_AT + 16 * n
    values_at = keys_at + 8 * features
    bids_at = values_at + 4 * n
    weights_at = bids_at + 4 * n
    catalog_at = weights_at + 4 * features
    towers_at = catalog_at + header.catalog_bytes
    ids: tuple[int, ...] = struct.unpack_from(f"<{2 * n}Q", record, COLUMNS_AT)
    ads = ids[:n]
    if hidden and not hidden.isdisjoint(ads):
        rows = [row for row, ad in enumerate(ads) if ad not in hidden][:k]
        ads, crowds = tuple(ads[row] for row in rows), tuple(ids[n + row] for row in rows)
        values = np.frombuffer(record, "<f4", n, values_at)[rows].tobytes()
        bids = np.frombuffer(record, "<f4", n, bids_at)[rows].tobytes()
    else:
        ads, crowds = ads[:k], ids[n : n + k]
        values = record[values_at : values_at + 4 * len(ads)]
        bids = record[bids_at : bids_at + 4 * len(ads)]
    context = _field(_KEYS, record[keys_at:values_at]) + _field(_WEIGHTS, record[weights_at:catalog_at])
    response = pb.GetMatchesResponse.FromString(
        b"".join(
            (
                _field(_CATALOG, record[catalog_at:towers_at]),
                _field(_TOWERS, record[towers_at : towers_at + header.towers_bytes]),
                _field(_VALUES, values),
                _field(_BIDS, bids),
                _field(_CONTEXT, context),
            )
        )
    )
    response.ad_ids.extend(ads)
    response.crowd_ids.extend(crowds)
    return response, header


def _field(tag: bytes, data: bytes) -> bytes:
    """A length-delimited field."""
    length = len(data)
    if length < 0x80:
        return tag + bytes((length,)) + data
    if length < 0x4000:
        return tag + bytes((length & 0x7F | 0x80, length >> 7)) + data
    return tag + bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14)) + data
