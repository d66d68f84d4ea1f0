"""A user's state: the truth that a list is made from, folded event by event in offset order.

Weights decay forward (docs/matching.md, "State"): an event at time t adds 2^((t - landmark) / half-life), so that
nothing is rewritten as time passes and late events commute. Features are ratios of weights, which the landmark
does not change. The same events in the same order give the same bytes, on every machine: powers of two come from
square roots and products, which IEEE 754 rounds exactly, and a landmark moves by whole half-lives.
"""

import math
import struct
import sys
import zlib
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.api.events.v1 import events_pb2
from vitrine.features import context
from vitrine.matching.catalog import Catalog
from vitrine.matching.events import RecordError

MAX_ITEMS = 50
MAX_CROWDS = 64
MAX_ADS = 50

VIEW_WEIGHT = 0.2
CLICK_WEIGHT = 0.5
PURCHASE_WEIGHT = 1.0
JOIN_WEIGHT = 1.0

# A landmark this many half-lives back is moved up: 2^64 times the count of events stays far inside a float64.
_MAX_AGE_HALF_LIVES = 64
# What a joined crowd's weight never falls below, so that membership outlives decay.
_LEAST_WEIGHT = sys.float_info.min

_MAGIC = b"VMST"
_SCHEMA = 1
# magic, schema, flags, user, revision, offset, append ms, clock ms, landmark ms, half-life ms,
# items, crowds, ads, dimensions of the tower, bytes of its version, the tower's bias
_HEADER = struct.Struct("<4sHHQQQqqqqHHHHHf")
_CRC = struct.Struct("<I")
_NO_VEC: NDArray[np.float32] = np.empty(0, np.float32)


@dataclass(slots=True)
class SeenAd:
    """How often an ad was shown to and clicked by the user, and when last, for frequency caps."""

    impressions: int = 0
    clicks: int = 0
    last_ms: int = 0


@dataclass(slots=True)
class UserState:
    """Everything that a user's events left behind.

    revision:      events applied
    offset:        next offset of the user's partition of `user-events`; 0 before the first event
    append_ms:     when the broker appended the last event applied
    clock_ms:      the user's clock: latest event time applied
    items, crowds: id -> weight relative to `landmark_ms`, always above 0; the user is a member of every crowd here
    joined:        crowds that only LEAVE, or a bound, takes away
    ads:           ad -> what the user saw and clicked
    bias, vec:     the user's tower, of the towers artifact `towers_version` (empty before the first)
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


class EventTable:
    """What events mean under one catalog: item -> crowds and ad -> item, as plain ints, looked up once an id."""

    def __init__(self, catalog: Catalog) -> None:
        self.half_life_ms = catalog.half_life_ms
        self._catalog = catalog
        self._crowds: dict[int, tuple[int, ...]] = {}
        self._items: dict[int, int] = {}

    def crowds_of(self, item_id: int) -> tuple[int, ...]:
        """Crowds that an action on the item says its user belongs to; none for an item that the catalog lacks."""
        crowds = self._crowds.get(item_id)
        if crowds is None:
            crowds = tuple(self._catalog.item_crowds(item_id).tolist())
            if crowds:  # ids that the catalog lacks are without bound, so they are not kept
                self._crowds[item_id] = crowds
        return crowds

    def item_of(self, ad_id: int) -> int:
        """The item that an ad advertises; 0 for none and for an ad that the catalog lacks."""
        item = self._items.get(ad_id)
        if item is None:
            item = self._catalog.item_of(ad_id)
            if item:
                self._items[ad_id] = item
        return item


def fold(state: UserState, event: events_pb2.UserEvent, append_ms: int, offset: int, table: EventTable) -> bool:
    """Applies one checked event (`events.parse_event`) in place; True where items or crowds changed.

    The event's time is capped by `append_ms`, the broker's time for the record. The tower is not touched: it is
    refreshed, by whoever holds the towers, after events that change items or crowds (this form's rule).
    """
    time_ms = min(event.time_ms, append_ms)
    state.revision += 1
    state.offset = offset + 1
    state.append_ms = append_ms
    state.clock_ms = max(state.clock_ms, time_ms)
    kind = event.WhichOneof("kind")
    if kind == "item":
        bought = event.item.action == events_pb2.ItemAction.ACTION_PURCHASE
        return _act(state, event.item.item_id, PURCHASE_WEIGHT if bought else VIEW_WEIGHT, time_ms, table)
    if kind == "crowd":
        crowd_id = event.crowd.crowd_id
        if event.crowd.change == events_pb2.CrowdChange.CHANGE_JOIN:
            weight = max(JOIN_WEIGHT * _growth(state, time_ms, table), _LEAST_WEIGHT)
            state.crowds[crowd_id] = state.crowds.get(crowd_id, 0.0) + weight
            state.joined.add(crowd_id)
            _bound_crowds(state)
            return True
        state.joined.discard(crowd_id)
        return state.crowds.pop(crowd_id, None) is not None
    if kind == "impression":
        _see(state, event.impression.ad_id, time_ms).impressions += 1
        return False
    _see(state, event.click.ad_id, time_ms).clicks += 1
    item_id = table.item_of(event.click.ad_id)
    return bool(item_id) and _act(state, item_id, CLICK_WEIGHT, time_ms, table)


def features(state: UserState) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """The user's side of the feature schema: (keys, weights), ratios of the state's weights."""
    return context.user_features(*_columns(state.items), *_columns(state.crowds))


def encode(state: UserState) -> bytes:
    """The state as bytes: header, ids ascending with their weights, tower, CRC-32; little-endian."""
    items, crowds, ads = sorted(state.items), sorted(state.crowds), sorted(state.ads)
    version = state.towers_version.encode()
    seen = [state.ads[ad] for ad in ads]
    parts = (
        _HEADER.pack(
            _MAGIC, _SCHEMA, 0, state.user_id, state.revision, state.offset, state.append_ms, state.clock_ms,
            state.landmark_ms, state.half_life_ms, len(items), len(crowds), len(ads), len(state.vec), len(version),
            state.bias,
        ),
        _pack("Q", items), _pack("d", [state.items[i] for i in items]),
        _pack("Q", crowds), _pack("d", [state.crowds[c] for c in crowds]),
        bytes([c in state.joined for c in crowds]),
        _pack("Q", ads), _pack("q", [s.last_ms for s in seen]),
        _pack("I", [s.impressions for s in seen]), _pack("I", [s.clicks for s in seen]),
        state.vec.astype("<f4", copy=False).tobytes(), version,
    )  # fmt: skip
    body = b"".join(parts)
    return body + _CRC.pack(zlib.crc32(body))


def decode(record: bytes) -> UserState:
    """Inverse of `encode`.

    Raises RecordError where the record is not a state, is cut short, or is newer than this reader (which then must
    not overwrite it).
    """
    if len(record) < _HEADER.size + _CRC.size or record[:4] != _MAGIC:
        raise RecordError(f"not a user state: {len(record)} bytes starting with {record[:4]!r}")
    (
        _, schema, _, user_id, revision, offset, append_ms, clock_ms, landmark_ms, half_life_ms, n_items, n_crowds,
        n_ads, dim, n_version, bias,
    ) = _HEADER.unpack_from(record)  # fmt: skip
    if schema != _SCHEMA:
        raise RecordError(f"user state of schema {schema}; this reader knows {_SCHEMA}: upgrade it")
    size = _HEADER.size + 16 * n_items + 17 * n_crowds + 24 * n_ads + 4 * dim + n_version + _CRC.size
    if len(record) != size or _CRC.unpack_from(record, size - _CRC.size)[0] != zlib.crc32(record[: -_CRC.size]):
        raise RecordError(f"user state is damaged: {len(record)} bytes of {size}, or a wrong checksum")
    at = _HEADER.size

    def take(code: str, count: int) -> list[Any]:
        nonlocal at
        column = _unpack(code, record, at, count)
        at += column.itemsize * count
        return column.tolist()

    items: dict[int, float] = dict(zip(take("Q", n_items), take("d", n_items), strict=True))
    crowd_ids: list[int] = take("Q", n_crowds)
    crowds: dict[int, float] = dict(zip(crowd_ids, take("d", n_crowds), strict=True))
    joined = {crowd for crowd, flag in zip(crowd_ids, take("B", n_crowds), strict=True) if flag}
    ad_ids: list[int] = take("Q", n_ads)
    last = take("q", n_ads)
    counts = zip(take("I", n_ads), take("I", n_ads), last, strict=True)
    ads = {ad: SeenAd(*row) for ad, row in zip(ad_ids, counts, strict=True)}
    vec = np.frombuffer(record, "<f4", dim, at).astype(np.float32, copy=False)
    version = record[at + 4 * dim : -_CRC.size].decode()
    return UserState(
        user_id, revision, offset, append_ms, clock_ms, landmark_ms, half_life_ms, items, crowds, joined, ads,
        bias, vec, version,
    )  # fmt: skip


def _act(state: UserState, item_id: int, base: float, time_ms: int, table: EventTable) -> bool:
    """Adds an action's decayed weight to the item and to its crowds."""
    weight = base * _growth(state, time_ms, table)
    if weight == 0.0:  # so late that nothing of it is left
        return False
    items, crowds = state.items, state.crowds
    items[item_id] = items.get(item_id, 0.0) + weight
    if len(items) > MAX_ITEMS:
        del items[min(items, key=lambda i: (items[i], -i))]
    for crowd_id in table.crowds_of(item_id):
        crowds[crowd_id] = crowds.get(crowd_id, 0.0) + weight
    _bound_crowds(state)
    return True


def _bound_crowds(state: UserState) -> None:
    """Smallest weights out, higher ids first among equals; joined crowds only once nothing else is left."""
    crowds, joined = state.crowds, state.joined
    while len(crowds) > MAX_CROWDS:
        out = min(crowds, key=lambda c: (c in joined, crowds[c], -c))
        del crowds[out]
        joined.discard(out)


def _see(state: UserState, ad_id: int, time_ms: int) -> SeenAd:
    """The ad's counters, made room for by forgetting the ad seen longest ago (higher id first among equals)."""
    ads = state.ads
    seen = ads.get(ad_id)
    if seen is None:
        if len(ads) >= MAX_ADS:
            del ads[min(ads, key=lambda a: (ads[a].last_ms, -a))]
        seen = ads[ad_id] = SeenAd()
    seen.last_ms = max(seen.last_ms, time_ms)
    return seen


def _growth(state: UserState, time_ms: int, table: EventTable) -> float:
    """2^((time - landmark) / half-life), once a landmark unset, too old, or of another half-life has moved."""
    half_life = table.half_life_ms
    if state.half_life_ms != half_life:
        if state.half_life_ms:  # a new catalog decays otherwise from the user's clock on
            _rescale(state, _exp2(state.landmark_ms - state.clock_ms, state.half_life_ms))
            state.landmark_ms = state.clock_ms
        else:
            state.landmark_ms = time_ms
        state.half_life_ms = half_life
    age = time_ms - state.landmark_ms
    if age >= _MAX_AGE_HALF_LIVES * half_life:
        whole = age // half_life
        _rescale(state, math.ldexp(1.0, -whole))
        state.landmark_ms += whole * half_life
        age -= whole * half_life
    return _exp2(age, half_life)


def _rescale(state: UserState, factor: float) -> None:
    """Multiplies every weight; what vanishes goes, except a membership that was joined."""
    state.items = {i: w for i, w in ((i, w * factor) for i, w in state.items.items()) if w > 0.0}
    crowds = {}
    for crowd, weight in state.crowds.items():
        scaled = weight * factor
        if crowd in state.joined:
            scaled = max(scaled, _LEAST_WEIGHT)
        if scaled > 0.0:
            crowds[crowd] = scaled
    state.crowds = crowds


def _powers(step: float, bits: int) -> list[float]:
    """[step^0, step^1, ..., step^(2^bits - 1)] with 2^-bits roots taken by `sqrt`: the same bits everywhere."""
    roots = [step]
    for _ in range(bits):
        roots.append(math.sqrt(roots[-1]))
    table = [1.0]
    for root in reversed(roots[1:]):  # the lowest bit of the exponent is the smallest root
        table += [value * root for value in table]
    return table


_COARSE = _powers(2.0, 10)
_FINE = _powers(_COARSE[1], 10)


def _exp2(numerator: int, denominator: int) -> float:
    """2^(numerator / denominator) to 20 bits of the exponent's fraction; 0 where that is below every float."""
    whole, rest = divmod(numerator, denominator)
    step = (rest << 20) // denominator
    return math.ldexp(_COARSE[step >> 10] * _FINE[step & 1023], whole)


def _columns(weights: dict[int, float]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    n = len(weights)
    return np.fromiter(weights.keys(), np.uint64, n), np.fromiter(weights.values(), np.float64, n)


def _pack(code: str, values: list[int] | list[float]) -> bytes:
    column = array(code, values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def _unpack(code: str, record: bytes, at: int, count: int) -> "array[Any]":
    column: array[Any] = array(code)
    column.frombytes(record[at : at + column.itemsize * count])
    if sys.byteorder == "big":
        column.byteswap()
    return column
