"""Every user's state before every event, all users at once: the fold of `vitrine.matching.state` in numpy.

The fold walks one user's events; this walks all users' t-th events together, t = 1, 2, ..., so that a step is a few
array operations over the users who have a t-th event. Weights, decay, bounds and tie rules are those of the fold,
which is this builder's oracle in the tests: what a model trains on is what serving computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrine.matching.decay import LEAST_WEIGHT
from vitrine.matching.state import JOIN_WEIGHT, MAX_CROWDS, MAX_ITEMS, MAX_JOINED

_MAX_AGE_HALF_LIVES = 64

ACT, JOIN, LEAVE, NOTHING = range(4)


@dataclass(frozen=True, slots=True)
class Events:
    """Events grouped by user, each user's in order of time; items and crowds are ordinals of sorted ids.

    indptr: (U + 1,) int64, user u's events are [indptr[u], indptr[u + 1])
    time_ms: (E,) int64
    op:     (E,) int8: ACT on an item, JOIN or LEAVE a crowd, or NOTHING
    target: (E,) int32, ordinal of the item or the crowd
    weight: (E,) float64, what an ACT adds
    """

    indptr: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    op: NDArray[np.int8]
    target: NDArray[np.int32]
    weight: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Bags:
    """Rows of features in CSR form: bag b holds features ids[indptr[b]:indptr[b + 1]] with weights x.

    indptr: (B + 1,) int64; ids: int32; x: float32
    """

    indptr: NDArray[np.int64]
    ids: NDArray[np.int32]
    x: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def within(self, start: int, stop: int) -> Bags:
        """The same bags with only the features of [start, stop), counted from `start`."""
        kept = (self.ids >= start) & (self.ids < stop)
        before = np.concatenate([[0], np.cumsum(kept)])
        return Bags(before[self.indptr], self.ids[kept] - np.int32(start), self.x[kept])

    @staticmethod
    def concatenate(parts: list[Bags]) -> Bags:
        """All bags of `parts`, in order."""
        if not parts:
            return Bags(np.zeros(1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
        counts = np.concatenate([np.diff(part.indptr) for part in parts])
        ids, x = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "x"))
        return Bags(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), ids, x)

    def take(self, bags: NDArray[np.integer]) -> Bags:
        """The bags of these numbers, in this order."""
        indptr, at = ragged(self.indptr, bags)
        return Bags(indptr, self.ids[at], self.x[at])


def ragged(indptr: NDArray[np.int64], rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """CSR row selection: (indptr of the selection, positions of its entries in the original)."""
    starts, counts = indptr[rows], indptr[rows + 1] - indptr[rows]
    taken = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return taken, np.repeat(starts - taken[:-1], counts) + np.arange(taken[-1])


def user_bags(
    events: Events,
    wanted: NDArray[np.bool_],
    item_crowds: tuple[NDArray[np.int64], NDArray[np.int32]],
    n_items: int,
    half_life_ms: int,
    users_at_once: int = 1 << 15,
) -> tuple[Bags, NDArray[np.int64], Bags]:
    """Features of users as they were before each wanted event, and as they are after the last.

    wanted:      (E,) which events want the state before them
    item_crowds: CSR (indptr (I + 1,), ordinals of crowds, each once an item)
    n_items:     feature id of crowd 0; an item's feature id is its ordinal
    Returns (bags before, the event (W,) that each belongs to, bags of all users after their last event). Weights
    are those of `vitrine.features.user_features`; ids inside a bag are in no particular order.
    """
    n_users = len(events.indptr) - 1
    before: list[Bags] = []
    before_event: list[NDArray[np.int64]] = []
    after: list[Bags] = []
    for first in range(0, n_users, users_at_once):
        users = np.arange(first, min(first + users_at_once, n_users))
        counts = np.diff(events.indptr)[users]
        users = users[np.argsort(-counts, kind="stable")]  # so that those with a t-th event are a prefix
        states = States(len(users), item_crowds, n_items, half_life_ms)
        for active, event in _steps(events.indptr[users], np.diff(events.indptr)[users]):
            asked = np.flatnonzero(wanted[event])
            if len(asked):
                before.append(states.features(asked))
                before_event.append(event[asked])
            states.apply(active, events, event)
        rank = np.empty(len(users), np.int64)
        rank[users - first] = np.arange(len(users))
        after.append(states.features(rank))
    at = np.concatenate(before_event) if before_event else np.empty(0, np.int64)
    return Bags.concatenate(before), at, Bags.concatenate(after)


def _steps(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(number of users who have a t-th event, its position (active,)) for t = 0, 1, ...; counts are descending."""
    for t in range(int(counts[0]) if len(counts) else 0):
        active = int(np.searchsorted(-counts, -t, side="left"))
        yield active, starts[:active] + t


class States:
    """States of n users as slots: id -1 is an empty slot, whose weight is 0."""

    def __init__(
        self,
        n: int,
        item_crowds: tuple[NDArray[np.int64], NDArray[np.int32]],
        n_items: int,
        half_life_ms: int,
    ) -> None:
        self.crowd_indptr, self.crowd_ids = item_crowds
        widest = int(np.diff(self.crowd_indptr).max(initial=1))
        self.items = np.full((n, MAX_ITEMS + 1), -1, np.int32)
        self.item_w = np.zeros(self.items.shape, np.float32)
        self.crowds = np.full((n, MAX_CROWDS + max(widest, 1)), -1, np.int32)
        self.crowd_w = np.zeros(self.crowds.shape, np.float32)
        self.joined = np.zeros(self.crowds.shape, bool)
        self.landmark = np.zeros(n, np.int64)
        self.fresh = np.ones(n, bool)
        self.n_items = n_items
        self.half_life_ms = half_life_ms

    def features(self, users: NDArray[np.int64]) -> Bags:
        """Bags of these users, as `vitrine.features.user_features` weighs them."""
        items, crowds = self.items[users], self.crowds[users]
        x = np.hstack([_unit(self.item_w[users]), _unit(self.crowd_w[users])])
        ids = np.hstack([items, np.where(crowds >= 0, crowds + self.n_items, -1)])
        held = ids >= 0
        indptr = np.concatenate([[0], np.cumsum(held.sum(axis=1))]).astype(np.int64)
        return Bags(indptr, ids[held], x[held])

    def apply(self, active: int, events: Events, event: NDArray[np.int64]) -> None:
        """Fold event[u] into user u, for the first `active` users."""
        op, target = events.op[event], events.target[event]
        adds = np.flatnonzero((op == ACT) | (op == JOIN))
        growth = np.zeros(active)
        growth[adds] = self._growth(adds, events.time_ms[event[adds]])
        acts = np.flatnonzero(op == ACT)
        weight = _as_weight(events.weight[event[acts]] * growth[acts])
        acts, weight = acts[weight > 0], weight[weight > 0]
        items = target[acts]
        _add(self.items, self.item_w, acts, items, weight)
        _bound(self.items, self.item_w, None, acts, MAX_ITEMS)
        counts = self.crowd_indptr[items + 1] - self.crowd_indptr[items]
        joins = np.flatnonzero(op == JOIN)
        self._make_room(acts, int(counts.max(initial=0)))
        self._make_room(joins, 1)
        for j in range(int(counts.max(initial=0))):
            has = counts > j
            crowds = self.crowd_ids[self.crowd_indptr[items[has]] + j]
            _add(self.crowds, self.crowd_w, acts[has], crowds, weight[has])
        if len(joins):
            weight = np.maximum(_as_weight(JOIN_WEIGHT * growth[joins]), np.float32(LEAST_WEIGHT))
            slot = _add(self.crowds, self.crowd_w, joins, target[joins], weight)
            self.joined[joins, slot] = True
        _bound(self.crowds, self.crowd_w, self.joined, acts, MAX_CROWDS, are_joined=False)
        _bound(self.crowds, self.crowd_w, self.joined, joins, MAX_JOINED, are_joined=True)
        leaves = np.flatnonzero(op == LEAVE)
        if len(leaves):
            user, slot = np.nonzero(self.crowds[leaves] == target[leaves, None])
            _clear(self.crowds, self.crowd_w, self.joined, leaves[user], slot)

    def _make_room(self, users: NDArray[np.integer], more: int) -> None:
        """Widens the crowds' slots where any of these users may need `more` than are empty."""
        held = int((self.crowds[users] >= 0).sum(axis=1).max(initial=0))
        missing = held + more - self.crowds.shape[1]
        if missing > 0:
            wider = ((0, 0), (0, max(missing, MAX_CROWDS)))
            self.crowds = np.pad(self.crowds, wider, constant_values=-1)
            self.crowd_w, self.joined = np.pad(self.crowd_w, wider), np.pad(self.joined, wider)

    def _growth(self, users: NDArray[np.int64], time_ms: NDArray[np.int64]) -> NDArray[np.float64]:
        """2^((time - landmark) / half-life), once landmarks that are unset or too old have moved."""
        fresh = self.fresh[users]
        self.landmark[users[fresh]] = time_ms[fresh]
        self.fresh[users] = False
        whole = (time_ms - self.landmark[users]) // self.half_life_ms
        old = np.flatnonzero(whole >= _MAX_AGE_HALF_LIVES)
        if len(old):
            rows = users[old]
            factor = np.ldexp(1.0, -whole[old])[:, None]
            self.item_w[rows] = _as_weight(self.item_w[rows] * factor)
            self.items[rows] = np.where(self.item_w[rows] > 0, self.items[rows], -1)
            scaled = _as_weight(self.crowd_w[rows] * factor)
            scaled = np.where(self.joined[rows], np.maximum(scaled, np.float32(LEAST_WEIGHT)), scaled)
            self.crowd_w[rows] = scaled
            self.crowds[rows] = np.where(scaled > 0, self.crowds[rows], -1)
            self.landmark[rows] += whole[old] * self.half_life_ms
        whole, rest = np.divmod(time_ms - self.landmark[users], self.half_life_ms)
        step = (rest << 20) // self.half_life_ms  # the fold keeps 20 bits of the exponent's fraction
        return np.ldexp(np.exp2(step / (1 << 20)), whole)


def _add(
    ids: NDArray[np.int32],
    weights: NDArray[np.float32],
    users: NDArray[np.int64],
    target: NDArray[np.int32],
    weight: NDArray[np.float32],
) -> NDArray[np.int64]:
    """Add `weight` to each user's `target`, in its slot or the first empty one; returns the slots."""
    held = ids[users]
    same = held == target[:, None]
    slot = same.argmax(axis=1)
    new = np.flatnonzero(~same[np.arange(len(users)), slot])
    slot[new] = (held[new] < 0).argmax(axis=1)
    ids[users, slot] = target
    weights[users, slot] += weight
    return slot


def _bound(
    ids: NDArray[np.int32],
    weights: NDArray[np.float32],
    joined: NDArray[np.bool_] | None,
    users: NDArray[np.int64],
    most: int,
    *,
    are_joined: bool = False,
) -> None:
    """Empty the smallest slots of users who hold more than `most`, higher ids first among equals; of crowds only
    those count that are joined, or that are not."""
    while True:
        out = ids[users] >= 0
        if joined is not None:
            out &= joined[users] == are_joined
        over = out.sum(axis=1) > most
        users, out = users[over], out[over]
        if not len(users):
            return
        w = np.where(out, weights[users], np.inf)
        slot = np.where(w == w.min(axis=1, keepdims=True), ids[users], -1).argmax(axis=1)
        _clear(ids, weights, joined, users, slot)


def _clear(
    ids: NDArray[np.int32],
    weights: NDArray[np.float32],
    joined: NDArray[np.bool_] | None,
    users: NDArray[np.int64],
    slot: NDArray[np.int64],
) -> None:
    ids[users, slot] = -1
    weights[users, slot] = 0
    if joined is not None:
        joined[users, slot] = False


def _as_weight(x: NDArray[np.float64]) -> NDArray[np.float32]:
    """`vitrine.matching.decay.as_weight` of many."""
    return np.where(x >= LEAST_WEIGHT, x, 0.0).astype(np.float32)


def _unit(held: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of weights scaled to length 1, as `vitrine.features.context` does it; a row of zeros stays."""
    w = held.astype(np.float64)
    w = w / np.where(most := w.max(axis=1, keepdims=True), most, 1)
    length = np.sqrt((w * w).sum(axis=1, keepdims=True))
    return (w / np.where(length, length, 1)).astype(np.float32)
