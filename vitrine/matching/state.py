"""A user's state: the truth that a list is made from, folded event by event in offset order.

Weights decay forward (docs/matching.md, "State"): an event at time t adds 2^((t - landmark) / half-life), so that
nothing is rewritten as time passes and late events commute. Features are ratios of weights, which the landmark
does not change. The same events in the same order give the same bytes, on every machine: powers of two come from
square roots and products, which IEEE 754 rounds exactly, a landmark moves by whole half-lives, and every weight is
rounded to float32 as it changes, so that a state written and read between two events is the state that was not.
`state_record.py` has the bytes.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrine.api.events.v1 import events_pb2
from vitrine.features import context
from vitrine.matching.catalog import Catalog
from vitrine.matching.decay import LEAST_WEIGHT, as_weight, exp2
from vitrine.matching.state_record import SeenAd, UserState, decode, encode

__all__ = [
    "EventTable",
    "Folded",
    "SeenAd",
    "UserState",
    "capped",
    "decode",
    "encode",
    "features",
    "fold",
    "forget",
    "take_tower",
]

DAY_MS = 86_400_000

MAX_ITEMS = 50
MAX_CROWDS = 64  # that items brought
MAX_JOINED = 4096
MAX_ADS = 50
MAX_BLOCKED = 1024

VIEW_WEIGHT = 0.2
CLICK_WEIGHT = 0.5
PURCHASE_WEIGHT = 1.0
JOIN_WEIGHT = 1.0

# A landmark this many half-lives back is moved up: 2^64 times the count of events stays far inside a float32.
_MAX_AGE_HALF_LIVES = 64


class Folded(NamedTuple):
    """What one event did to a state.

    applied:    whether it counts; not where it was appended before the user's deletion
    features:   weights of items or crowds changed
    crowds:     the user entered or left a crowd
    exclusions: a block, or a counter of seen ads, changed
    due:        the tower is to be made anew, now, before the next event (`take_tower`), and the list with it
    rematch:    the list is to be made anew
    deleted:    the state is a tombstone now, and the list goes
    """

    applied: bool = True
    features: bool = False
    crowds: bool = False
    exclusions: bool = False
    due: bool = False
    rematch: bool = False
    deleted: bool = False


class EventTable:
    """What events mean under one catalog: item -> crowds and ad -> item, as plain ints, looked up once an id."""

    def __init__(self, catalog: Catalog) -> None:
        self.half_life_ms = catalog.half_life_ms
        self.cap_window_ms = catalog.cap_window_ms
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


_IGNORED = Folded(applied=False)


def fold(state: UserState, event: events_pb2.UserEvent, append_ms: int, offset: int, table: EventTable) -> Folded:
    """Applies one checked event (`events.parse_event`) in place.

    The event's time is capped by `append_ms`, the broker's time for the record. The tower is not touched: whoever
    holds the towers makes it anew where the outcome says `due`, which is a function of the events alone.
    """
    if offset <= state.deleted_offset:
        return _IGNORED
    kind = event.WhichOneof("kind")
    if kind == "deletion":
        forget(state, append_ms, offset)
        return Folded(deleted=True)
    time_ms = min(event.time_ms, append_ms)
    state.revision += 1
    state.offset = offset + 1
    state.append_ms = append_ms
    if time_ms > state.clock_ms:
        state.clock_ms = time_ms
    features = crowds = exclusions = False
    members = state.crowds
    if kind == "item":
        bought = event.item.action == events_pb2.ItemAction.ACTION_PURCHASE
        features, crowds = _act(
            state, event.item.item_id, PURCHASE_WEIGHT if bought else VIEW_WEIGHT, time_ms, table
        )
    elif kind == "impression":
        _show(state, event.impression.ad_id, time_ms, table.cap_window_ms)
        exclusions = True
    elif kind == "click":
        _see(state, event.click.ad_id, time_ms).clicks += 1
        item_id = table.item_of(event.click.ad_id)
        if item_id:
            features, crowds = _act(state, item_id, CLICK_WEIGHT, time_ms, table)
    elif kind == "crowd":
        features, crowds = _move(state, event.crowd, time_ms, table)
    elif kind == "block":
        exclusions = _block(state, event.block)
    if features:
        state.changes += 1
        state.total_changes += 1
    crowds = crowds or state.crowds is not members  # a landmark has moved: memberships may have vanished
    return Folded(True, features, crowds, exclusions, _due(state), kind == "rematch", False)


def take_tower(
    state: UserState, bias: float, vec: NDArray[np.float32], towers_version: str, epoch: int = -1
) -> None:
    """Sets the user's tower, made from the state as it is: the rule's counters begin anew."""
    state.bias, state.vec, state.towers_version, state.epoch = bias, vec, towers_version, epoch
    state.changes = 0
    state.refreshed_ms = state.clock_ms


def forget(state: UserState, append_ms: int, offset: int) -> None:
    """Turns the state into the tombstone of a deletion that was appended then and there, whatever was before."""
    blank = UserState(
        state.user_id, offset=offset + 1, append_ms=append_ms, deleted_ms=append_ms, deleted_offset=offset
    )
    for name in UserState.__slots__:
        setattr(state, name, getattr(blank, name))


def capped(seen: SeenAd, max_impressions: int, clock_ms: int, window_ms: int) -> bool:
    """Whether the user has seen the ad as often as it allows (0: no bound), by the user's clock."""
    return 0 < max_impressions <= seen.impressions and clock_ms - seen.last_ms < window_ms


def features(state: UserState) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """The user's side of the feature schema: (keys, weights), ratios of the state's weights."""
    return context.user_features(*_columns(state.items), *_columns(state.crowds))


def _due(state: UserState) -> bool:
    """Whether the tower is to be made anew: often while little is known of the user, then every eighth change, and
    once the user's clock is a day past a tower that does not hold all changes."""
    if not state.towers_version:
        return True
    changes = state.changes
    return changes > 0 and (
        changes >= min(8, 1 + state.total_changes // 4) or state.clock_ms >= state.refreshed_ms + DAY_MS
    )


def _act(state: UserState, item_id: int, base: float, time_ms: int, table: EventTable) -> tuple[bool, bool]:
    """Adds an action's decayed weight to the item and to its crowds: (weights changed, memberships changed)."""
    weight = as_weight(base * _growth(state, time_ms, table))
    if weight == 0.0:  # so late that nothing of it is left
        return False, False
    items, crowds = state.items, state.crowds
    items[item_id] = as_weight(items.get(item_id, 0.0) + weight)
    if len(items) > MAX_ITEMS:
        del items[min(items, key=lambda i: (items[i], -i))]
    entered = []
    for crowd_id in table.crowds_of(item_id):
        held = crowds.get(crowd_id)
        if held is None:
            entered.append(crowd_id)
            crowds[crowd_id] = weight
        else:
            crowds[crowd_id] = as_weight(held + weight)
    if not entered:
        return True, False
    out = _bound_crowds(state)
    return True, out != entered


def _move(state: UserState, change: events_pb2.CrowdChange, time_ms: int, table: EventTable) -> tuple[bool, bool]:
    """Joins or leaves a crowd: (weights changed, memberships changed)."""
    crowd_id = change.crowd_id
    if change.change == events_pb2.CrowdChange.CHANGE_JOIN:
        weight = as_weight(JOIN_WEIGHT * _growth(state, time_ms, table)) or LEAST_WEIGHT
        held = state.crowds.get(crowd_id)
        state.crowds[crowd_id] = weight if held is None else as_weight(held + weight)
        state.joined.add(crowd_id)
        out = _bound_joined(state)
        return True, out != crowd_id if held is None else out != 0
    state.joined.discard(crowd_id)
    left = state.crowds.pop(crowd_id, None) is not None
    return left, left


def _bound_crowds(state: UserState) -> list[int]:
    """Of the crowds that items brought the smallest weights go, higher ids first among equals: those gone."""
    crowds, joined = state.crowds, state.joined
    out = []
    while len(crowds) - len(joined) > MAX_CROWDS:
        free = (c for c in crowds if c not in joined) if joined else crowds
        least = min(free, key=lambda c: (crowds[c], -c))
        del crowds[least]
        out.append(least)
    return sorted(out)


def _bound_joined(state: UserState) -> int:
    """The joined crowd that goes where there is one too many, by the same rule; 0 for none."""
    if len(state.joined) <= MAX_JOINED:
        return 0
    crowds = state.crowds
    least = min(state.joined, key=lambda c: (crowds[c], -c))
    state.joined.discard(least)
    del crowds[least]
    return least


def _block(state: UserState, block: events_pb2.AdBlock) -> bool:
    """Blocks an ad or lets it in again: whether that changed anything."""
    blocked = state.blocked
    before = block.ad_id in blocked
    if block.unblocked:
        blocked.discard(block.ad_id)
        return before
    blocked.add(block.ad_id)
    if len(blocked) > MAX_BLOCKED:
        blocked.discard(min(blocked))  # ids grow: most likely the oldest ad
    return not before


def _show(state: UserState, ad_id: int, time_ms: int, window_ms: int) -> None:
    """One impression: the counter begins anew where the user's clock is a window past the last one."""
    seen = _see(state, ad_id, time_ms)
    if state.clock_ms - seen.last_ms >= window_ms:
        seen.impressions = 0
    seen.impressions += 1
    seen.last_ms = max(seen.last_ms, _seconds(time_ms))


def _see(state: UserState, ad_id: int, time_ms: int) -> SeenAd:
    """The ad's counters, made room for by forgetting the ad seen longest ago (higher id first among equals)."""
    ads = state.ads
    seen = ads.get(ad_id)
    if seen is None:
        if len(ads) >= MAX_ADS:
            del ads[min(ads, key=lambda a: (ads[a].last_ms, -a))]
        seen = ads[ad_id] = SeenAd(0, 0, _seconds(time_ms))
    return seen


def _seconds(time_ms: int) -> int:
    return time_ms - time_ms % 1000


def _growth(state: UserState, time_ms: int, table: EventTable) -> float:
    """2^((time - landmark) / half-life), once a landmark unset, too old, or of another half-life has moved."""
    half_life = table.half_life_ms
    if state.half_life_ms != half_life:
        if state.half_life_ms:  # a new catalog decays otherwise from the user's clock on
            _rescale(state, exp2(state.landmark_ms - state.clock_ms, state.half_life_ms))
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
    return exp2(age, half_life)


def _rescale(state: UserState, factor: float) -> None:
    """Multiplies every weight; what vanishes goes, except a membership that was joined."""
    items = ((i, as_weight(w * factor)) for i, w in state.items.items())
    state.items = {i: w for i, w in items if w}
    crowds, joined = {}, state.joined
    for crowd, weight in state.crowds.items():
        scaled = as_weight(weight * factor)
        if scaled or crowd in joined:
            crowds[crowd] = scaled or LEAST_WEIGHT
    state.crowds = crowds


def _columns(weights: dict[int, float]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    n = len(weights)
    return np.fromiter(weights.keys(), np.uint64, n), np.fromiter(weights.values(), np.float64, n)
