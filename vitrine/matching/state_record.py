"""What a user's state is, and its bytes: one packed record (docs/matching.md, "State").

Ids are ascending, as gaps; gaps and counters take the bits that the largest of them needs (`packing.py`); weights
and the tower are float32. With 50 crowds and 50 seen ads under catalogs of a million it takes some 760 B.
"""

import struct
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vitrine.matching import state_record_v1
from vitrine.matching.decay import LEAST_WEIGHT, as_weight
from vitrine.matching.events import RecordError
from vitrine.matching.packing import pack_counts, pack_ids, unpack_counts, unpack_ids

MAGIC = b"VMST"
SCHEMA = 2
_DELETED = 1
# magic, schema, flags, user, revision, offset, append ms, clock ms, landmark ms, half-life ms, refreshed ms, epoch,
# listed, changes, changes ever, the tower's bias, dimensions of the tower, bytes of its version,
# items, crowds that items brought, joined crowds, ads, blocked ads
_HEADER = struct.Struct("<4sHHQIqqqqqqqIIIfHBBBHBH")
_DELETION = struct.Struct("<qq")
_CRC = struct.Struct("<I")
_NO_VEC: NDArray[np.float32] = np.empty(0, np.float32)


@dataclass(slots=True)
class SeenAd:
    """How often an ad was shown to and clicked by the user, for frequency caps.

    impressions: since the counter last began
    last_ms:     of the last impression, or of the click where there was none; whole seconds
    """

    impressions: int = 0
    clicks: int = 0
    last_ms: int = 0


@dataclass(slots=True)
class UserState:
    """Everything that a user's events left behind.

    revision:      events applied, since the last deletion
    offset:        next offset of the user's partition of `user-events`; 0 before the first event
    append_ms:     when the broker appended the last event applied
    clock_ms:      the user's clock: latest event time applied
    items, crowds: id -> weight relative to `landmark_ms`, a float32 above 0; the user is a member of every crowd
    joined:        crowds that only LEAVE, or a bound, takes away
    ads:           ad -> what the user saw and clicked
    bias, vec:     the user's tower, of the towers artifact `towers_version` (empty before the first)
    blocked:       ads that the user will not see
    changes:       events since the tower was made that changed items or crowds; total_changes: ever
    refreshed_ms:  the user's clock when the tower was made
    epoch:         offset of the activation under which it was made, -1 for none
    listed:        the revision that the list was made from: another than `revision` is work owed; 0 for no list
    deleted_ms, deleted_offset: append time and offset of the user's last deletion, -1 for none. Events not after it
                   are nobody's; with revision 0 the state is a tombstone
    """

    user_id: int
    revision: int = 0
    offset: int = 0
    append_ms: int = 0
    clock_ms: int = 0
    landmark_ms: int = 0
    half_life_ms: int = 0
    items: dict[int, float] = field(default_factory=dict)
    crowds: dict[int, float] = field(default_factory=dict)
    joined: set[int] = field(default_factory=set)
    ads: dict[int, SeenAd] = field(default_factory=dict)
    bias: float = 0.0
    vec: NDArray[np.float32] = field(default_factory=lambda: _NO_VEC)
    towers_version: str = ""
    blocked: set[int] = field(default_factory=set)
    changes: int = 0
    total_changes: int = 0
    refreshed_ms: int = 0
    epoch: int = -1
    listed: int = 0
    deleted_ms: int = -1
    deleted_offset: int = -1

    @property
    def is_tombstone(self) -> bool:
        """Whether the user was deleted, and nothing has happened since: nobody to make a list for."""
        return self.deleted_offset >= 0 and not self.revision


def encode(state: UserState) -> bytes:
    """The state as bytes: header, deletion, ids with their weights, ads, tower, CRC-32; little-endian."""
    items, crowds, ads, blocked = state.items, state.crowds, state.ads, state.blocked
    item_ids, ad_ids = sorted(items), sorted(ads)
    joined = sorted(state.joined)
    brought = sorted(crowds.keys() - state.joined) if joined else sorted(crowds)
    version = state.towers_version.encode()
    deleted = state.deleted_offset >= 0
    parts = [
        _HEADER.pack(
            MAGIC, SCHEMA, _DELETED if deleted else 0, state.user_id, state.revision, state.offset, state.append_ms,
            state.clock_ms, state.landmark_ms, state.half_life_ms, state.refreshed_ms, state.epoch, state.listed,
            state.changes, state.total_changes, state.bias, len(state.vec), len(version), len(item_ids),
            len(brought), len(joined), len(ad_ids), len(blocked),
        ),
        _DELETION.pack(state.deleted_ms, state.deleted_offset) if deleted else b"",
        version,
        state.vec.astype("<f4", copy=False).tobytes(),
    ]  # fmt: skip
    for ids, weights in ((item_ids, items), (brought, crowds), (joined, crowds)):
        if ids:
            parts += (pack_ids(ids), struct.pack(f"<{len(ids)}f", *map(weights.__getitem__, ids)))
    if ad_ids:
        seen = [ads[ad] for ad in ad_ids]
        now_s = state.clock_ms // 1000
        parts += (
            pack_ids(ad_ids),
            pack_counts([now_s - each.last_ms // 1000 for each in seen]),
            pack_counts([each.impressions for each in seen]),
            pack_counts([each.clicks for each in seen]),
        )
    if blocked:
        parts.append(pack_ids(sorted(blocked)))
    body = b"".join(parts)
    return body + _CRC.pack(zlib.crc32(body))


def decode(record: bytes) -> UserState:
    """Inverse of `encode`; reads this schema and the one before it.

    Raises RecordError where the record is not a state, is cut short, or is newer than this reader (which then must
    not overwrite it).
    """
    if len(record) < 10 or record[:4] != MAGIC:
        raise RecordError(f"not a user state: {len(record)} bytes starting with {record[:4]!r}")
    schema = int.from_bytes(record[4:6], "little")
    if schema == state_record_v1.SCHEMA:
        return _from_v1(record)
    if schema != SCHEMA:
        raise RecordError(f"user state of schema {schema}; this reader knows {SCHEMA}: upgrade it")
    if len(record) < _HEADER.size + _CRC.size or zlib.crc32(record[:-4]) != _CRC.unpack(record[-4:])[0]:
        raise RecordError(f"user state is damaged: {len(record)} bytes, a wrong checksum")
    (
        _, _, flags, user_id, revision, offset, append_ms, clock_ms, landmark_ms, half_life_ms, refreshed_ms, epoch,
        listed, changes, total_changes, bias, dim, n_version, n_items, n_brought, n_joined, n_ads, n_blocked,
    ) = _HEADER.unpack_from(record)  # fmt: skip
    at = _HEADER.size
    deleted_ms = deleted_offset = -1
    if flags & _DELETED:
        deleted_ms, deleted_offset = _DELETION.unpack_from(record, at)
        at += _DELETION.size
    version = record[at : at + n_version].decode()
    at += n_version
    vec = np.frombuffer(record, "<f4", dim, at).astype(np.float32, copy=False) if dim else _NO_VEC
    at += 4 * dim
    items, _, at = _weights(record, at, n_items)
    crowds, _, at = _weights(record, at, n_brought)
    joined: list[int] = []
    if n_joined:
        weights, joined, at = _weights(record, at, n_joined)
        crowds |= weights
    ads: dict[int, SeenAd] = {}
    if n_ads:
        ad_ids, at = unpack_ids(record, at, n_ads)
        ages, at = unpack_counts(record, at, n_ads)
        impressions, at = unpack_counts(record, at, n_ads)
        clicks, at = unpack_counts(record, at, n_ads)
        now_s = clock_ms // 1000
        ads = dict(zip(ad_ids, map(SeenAd, impressions, clicks, [(now_s - a) * 1000 for a in ages]), strict=True))
    blocked, at = unpack_ids(record, at, n_blocked)
    if at != len(record) - _CRC.size:
        raise RecordError(f"user state is damaged: its columns end at byte {at} of {len(record)}")
    return UserState(
        user_id, revision, offset, append_ms, clock_ms, landmark_ms, half_life_ms, items, crowds, set(joined), ads,
        bias, vec, version, set(blocked), changes, total_changes, refreshed_ms, epoch, listed, deleted_ms,
        deleted_offset,
    )  # fmt: skip


def _weights(record: bytes, at: int, n: int) -> tuple[dict[int, float], list[int], int]:
    """({id: weight}, the ids, the byte after them)."""
    if not n:
        return {}, [], at
    ids, at = unpack_ids(record, at, n)
    return dict(zip(ids, struct.unpack_from(f"<{n}f", record, at), strict=True)), ids, at + 4 * n


def _from_v1(record: bytes) -> UserState:
    """A state of schema 1: weights are rounded to float32, and its list was made from it as it is."""
    old = state_record_v1.decode(record)
    ads = {ad: SeenAd(shown, clicks, ms - ms % 1000) for ad, (shown, clicks, ms) in old.ads.items()}
    items, crowds = (
        {id: kept for id, kept in ((id, as_weight(w)) for id, w in weights.items()) if kept}
        for weights in (old.items, old.crowds)
    )
    crowds |= dict.fromkeys(old.joined - crowds.keys(), LEAST_WEIGHT)
    return UserState(
        old.user_id, old.revision, old.offset, old.append_ms, old.clock_ms, old.landmark_ms, old.half_life_ms,
        items, crowds, old.joined, ads, old.bias, old.vec, old.towers_version,
        refreshed_ms=old.clock_ms, listed=old.revision,
    )  # fmt: skip
