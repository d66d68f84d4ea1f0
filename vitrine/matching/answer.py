"""GetMatches' answer out of a stored list: the entries that may be shown, at the bids of now.

An answer is made of as few numpy calls as will do, a microsecond each: only as many entries are unpacked as are
asked for, with a few to spare, and the features and versions go from the record to the wire as they lie.
"""

import numpy as np
from numpy.typing import NDArray

from vitrine.api.features.v1 import features_pb2
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.matching.packing import unpack_array
from vitrine.matching.record import Header, columns_of, decode_opened, open_record
from vitrine.matching.showing import Excluded, Showing

_SPARE = 8  # entries unpacked beyond those asked for: now and then one may not be shown


def _tag(message: type, field: str) -> bytes:
    """Key of a length-delimited field (the numbers here are below 16, so one byte)."""
    return bytes([message.DESCRIPTOR.fields_by_name[field].number << 3 | 2])  # type: ignore[attr-defined]


_CATALOG, _TOWERS = _tag(pb.GetMatchesResponse, "catalog_version"), _tag(pb.GetMatchesResponse, "towers_version")
_ARM, _CONTEXT = _tag(pb.GetMatchesResponse, "arm"), _tag(pb.GetMatchesResponse, "context")
_VALUES = _tag(pb.GetMatchesResponse, "values")
_KEYS, _WEIGHTS = _tag(features_pb2.UserContext, "keys"), _tag(features_pb2.UserContext, "weights")


def from_record(
    record: bytes, k: int, group: int, showing: Showing, excluded: Excluded | None = None
) -> tuple[pb.GetMatchesResponse, Header]:
    """The first k entries of a placement group's ranking that may be shown and are not excluded, with the features.

    Without ads where none may be shown, or the list has no such ranking. `source`, `revision` and `age_ms` are left
    to the caller. Raises RecordError as `record.decode` does.
    """
    header = open_record(record)
    wanted = k + _SPARE if excluded is None else None
    shown = None
    if header.columns_at and not header.ad_extras and not header.crowd_extras:
        shown = _by_number(record, header, k, wanted, group, showing, excluded)
        if shown is None and wanted is not None:
            shown = _by_number(record, header, k, None, group, showing, excluded)
    if shown is None:
        shown = _by_id(record, header, k, group, showing, excluded)
    ads, crowds, bids, values, context = shown
    response = pb.GetMatchesResponse.FromString(
        b"".join(
            (
                _field(_CATALOG, header.catalog_version.encode()),
                _field(_TOWERS, header.towers_version.encode()),
                _field(_ARM, header.arm.encode()),
                _field(_VALUES, values),
                _field(_CONTEXT, context),
            )
        )
    )
    response.ad_ids.extend(ads)
    response.crowd_ids.extend(crowds)
    response.bids.extend(bids)
    return response, header


# Ads, crowds, bids; values as little-endian float32; the features as a serialised UserContext.
_Shown = tuple[list[int], list[int], list[float], bytes, bytes]


def _by_number(
    record: bytes,
    header: Header,
    k: int,
    wanted: int | None,
    group: int,
    showing: Showing,
    excluded: Excluded | None,
) -> _Shown | None:
    """From the first `wanted` entries' numbers; None where fewer than k of them are left, and there are more."""
    columns = columns_of(record, header, group)
    context = _context(record, header)
    if columns is None or not columns.entries:
        return [], [], [], b"", context
    n = columns.entries if wanted is None else min(columns.entries, wanted)
    base = showing.base
    entries = unpack_array(record, columns.entries_at, n, columns.entry_bits)
    won = base.crowd_at.take(
        _signed(unpack_array(record, columns.crowds_at, header.crowds, header.crowd_bits)), mode="clip"
    )
    at = base.ad_at.take(_signed(entries & np.uint64((1 << header.ad_bits) - 1)), mode="clip")
    on = won[_signed(entries >> np.uint64(header.ad_bits))]
    bits = np.full(n, columns.first, np.int64)
    bits[1:] -= np.cumsum(_signed(unpack_array(record, columns.falls_at, n - 1, columns.fall_bits)))
    values = bits.astype("<u4")
    ads, crowds = base.ads[at], base.crowds[on]
    if excluded is None and 1 not in showing.closed(group)[at].tobytes():
        bids = base.bids(at, on)
        if 0.0 not in bids:
            return ads[:k].tolist(), crowds[:k].tolist(), bids[:k], values[:k].tobytes(), context
    rows, bids = _kept(showing.shown(at, on, ads, crowds, group), ads, showing, excluded)
    if len(rows) < k and n < columns.entries:
        return None
    rows = rows[:k]
    return ads[rows].tolist(), crowds[rows].tolist(), [bids[row] for row in rows], values[rows].tobytes(), context


def _by_id(
    record: bytes, header: Header, k: int, group: int, showing: Showing, excluded: Excluded | None
) -> _Shown:
    """From the whole ranking's ids: of records that hold ads without a number, and of the schema before."""
    stored = decode_opened(header, record, showing.base.catalog, group=group)
    context = features_pb2.UserContext(
        keys=stored.keys.tolist(), weights=stored.weights.tolist()
    ).SerializeToString()
    # A record of the schema before has one ranking, whatever is asked for.
    if not stored.rankings or group >= header.rankings:
        return [], [], [], b"", context
    (ranking,) = stored.rankings
    shown = showing.rows(ranking.ads, ranking.crowds, group)
    rows, bids = _kept(shown, ranking.ads, showing, excluded)
    rows = rows[:k]
    return (
        ranking.ads[rows].tolist(),
        ranking.crowds[rows].tolist(),
        [bids[row] for row in rows],
        ranking.values[rows].astype("<f4", copy=False).tobytes(),
        context,
    )


def _kept(
    bids: list[float], ads: NDArray[np.uint64], showing: Showing, excluded: Excluded | None
) -> tuple[list[int], list[float]]:
    """(rows that may be shown and are not excluded, every row's bid)."""
    if excluded is None:
        return [row for row, bid in enumerate(bids) if bid], bids
    out = excluded.mask(showing, ads).tolist()
    return [row for row, bid in enumerate(bids) if bid and not out[row]], bids


def _context(record: bytes, header: Header) -> bytes:
    keys_at, weights_at = header.columns_at, header.columns_at + 8 * header.features
    weights_end = weights_at + 4 * header.features
    return _field(_KEYS, record[keys_at:weights_at]) + _field(_WEIGHTS, record[weights_at:weights_end])


def _signed(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """What numpy takes for positions without a copy."""
    return values.view(np.int64)


def _field(tag: bytes, data: bytes) -> bytes:
    """A length-delimited field."""
    length = len(data)
    if length < 0x80:
        return tag + bytes((length,)) + data
    if length < 0x4000:
        return tag + bytes((length & 0x7F | 0x80, length >> 7)) + data
    return tag + bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14)) + data
