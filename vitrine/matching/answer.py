"""GetMatches' answer out of a stored list: the entries that may be shown, at the bids of now.

A list goes from the record to the wire in one native call. A record of the schema before, and an answer without
some advertisers' ads, take the way by ids.
"""

import numpy as np

from vitrine.api.features.v1 import features_pb2
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.matching.record import Header, columns_of, decode_opened, open_record
from vitrine.matching.showing import NOTHING, Excluded, Showing


def _tag(message: type, field: str) -> bytes:
    """Key of a length-delimited field (the numbers here are below 16, so one byte)."""
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | 2])  # type: ignore[attr-defined]


_CATALOG, _TOWERS = _tag(pb.GetMatchesResponse, "catalog_version"), _tag(pb.GetMatchesResponse, "towers_version")
_ARM, _CONTEXT = _tag(pb.GetMatchesResponse, "arm"), _tag(pb.GetMatchesResponse, "context")
_KEYS, _WEIGHTS = _tag(features_pb2.UserContext, "keys"), _tag(features_pb2.UserContext, "weights")


def from_record(
    record: bytes, k: int, group: int, showing: Showing, excluded: Excluded = NOTHING
) -> tuple[pb.GetMatchesResponse, Header]:
    """The first k entries of a placement group's ranking that may be shown and are not excluded, with the features.

    Without ads where none may be shown, or the list has no such ranking. `source`, `revision` and `age_ms` are left
    to the caller. Raises RecordError as `record.decode` does.
    """
    header = open_record(record)
    if not header.columns_at or len(excluded.advertisers):
        return _by_id(record, header, k, group, showing, excluded), header
    fields = _about(record, header)
    columns = columns_of(record, header, group)
    if columns is not None:
        fields += showing.base.reader.read(
            record,
            showing.closed(group),
            showing.extra,
            excluded.ads,
            group,
            k,
            columns.entries,
            columns.first,
            columns.entries_at,
            columns.entry_bits,
            header.ad_bits,
            columns.falls_at,
            columns.fall_bits,
            columns.crowds_at,
            header.crowds,
            header.crowd_bits,
            header.columns_at + 12 * header.features,
            header.ad_extras,
            header.crowd_extras,
        )
    return pb.GetMatchesResponse.FromString(fields), header


def _by_id(
    record: bytes, header: Header, k: int, group: int, showing: Showing, excluded: Excluded
) -> pb.GetMatchesResponse:
    """From the whole ranking's ids."""
    stored = decode_opened(header, record, showing.base.catalog, group=group)
    response = pb.GetMatchesResponse(
        catalog_version=stored.catalog_version, towers_version=stored.towers_version, arm=stored.arm
    )
    response.context.keys.extend(stored.keys.tolist())
    response.context.weights.extend(stored.weights.tolist())
    if group >= header.rankings or not stored.rankings:
        return response
    (ranking,) = stored.rankings
    bids = showing.rows(ranking.ads, ranking.crowds, group)
    rows = np.flatnonzero((bids > 0) & ~excluded.mask(showing, ranking.ads))[:k]
    response.ad_ids.extend(ranking.ads[rows].tolist())
    response.values.extend(ranking.values[rows].tolist())
    response.bids.extend(bids[rows].tolist())
    response.crowd_ids.extend(ranking.crowds[rows].tolist())
    return response


def _about(record: bytes, header: Header) -> bytes:
    """Versions, arm and features, as fields of the answer: the features' columns go over as they lie."""
    keys_at, weights_at = header.columns_at, header.columns_at + 8 * header.features
    weights_end = weights_at + 4 * header.features
    context = _field(_KEYS, record[keys_at:weights_at]) + _field(_WEIGHTS, record[weights_at:weights_end])
    return b"".join(
        (
            _field(_CATALOG, header.catalog_version.encode()),
            _field(_TOWERS, header.towers_version.encode()),
            _field(_ARM, header.arm.encode()),
            _field(_CONTEXT, context),
        )
    )


def _field(tag: bytes, data: bytes) -> bytes:
    """A length-delimited field."""
    length = len(data)
    if length < 0x80:
        return tag + bytes((length,)) + data
    if length < 0x4000:
        return tag + bytes((length & 0x7F | 0x80, length >> 7)) + data
    return tag + bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14)) + data
