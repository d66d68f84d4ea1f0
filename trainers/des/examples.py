"""Training examples: a user's features as they were, an ad, and whether it was clicked or bought.

Impressions are examples with the label that their click gives them; a purchase or a view is an example of label 1
for an ad of its item, and so is a click without an impression. Negatives that nobody was shown are drawn while
training (`trainers/des/batches.py`). Every process builds all examples; they depend on market and seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.des import history
from trainers.des.history import Bags
from trainers.des.inputs import CLICK, IMPRESSION, JOIN, LEAVE, PURCHASE, VIEW, Inputs, Rows
from vitrine.data.schemas import DataError
from vitrine.features import ad_features, feature_keys
from vitrine.matching.state import CLICK_WEIGHT, PURCHASE_WEIGHT, VIEW_WEIGHT

# By kind of event: what it does to the state, and with which weight.
_OP = np.array([history.ACT, history.ACT, history.JOIN, history.LEAVE, history.NOTHING, history.ACT], np.int8)
_WEIGHT = np.array([VIEW_WEIGHT, PURCHASE_WEIGHT, 0.0, 0.0, 0.0, CLICK_WEIGHT])


# What a view, and an impression without a click, count as examples: measured on the simulator (docs/ctr.md).
VIEWED = 0.5
SHOWN = 0.3


@dataclass(frozen=True, slots=True)
class Examples:
    """All that training and evaluation read. Feature ids are rows of `keys`.

    keys:       (n,) uint64 ascending: every key that a user or an ad can name
    user_rows:  (*,) int64 ascending: the rows that a user's features can name
    bags:       features: one bag an example, one a held-out user, one an ad
    ads:        (A,) uint64 ascending
    ad, label:  (E,) int32 ordinal of the ad; float32, 0 for an impression without a click, else 1
    weight:     (E,) float32 of mean 1: how much an example counts, by kind and by recency
    popularity: (A,) float64, share of clicks and purchases that name the ad
    held_ad, held_against: (H,) int32: a held-out user's ad, and one drawn by popularity to rank it against
    held_overlap: (2, H) float64: share of the crowds of either that the user has
    """

    keys: NDArray[np.uint64]
    user_rows: NDArray[np.int64]
    bags: Bags
    ads: NDArray[np.uint64]
    ad: NDArray[np.int32]
    label: NDArray[np.float32]
    weight: NDArray[np.float32]
    popularity: NDArray[np.float64]
    held_ad: NDArray[np.int32]
    held_against: NDArray[np.int32]
    held_overlap: NDArray[np.float64]

    def held_bags(self) -> NDArray[np.int64]:
        """Numbers of the held-out users' bags; example e's bag is bag e."""
        return np.arange(len(self.ad), len(self.ad) + len(self.held_ad))

    def ad_bags(self, ads: NDArray[np.integer]) -> NDArray[np.int64]:
        """Numbers of these ads' bags."""
        return ads.astype(np.int64) + (len(self.ad) + len(self.held_ad))


def build(inputs: Inputs, half_life_ms: int, seed: int, backward: float = 0.0) -> Examples:
    """Make the examples. DataError where the events hold nothing to learn from.

    half_life_ms: after which the weight of an event halves; the catalog's
    backward:     weight of a purchase as an example of what its user bought afterwards, against a mean of 1 for
                  the examples proper; 0 for none (docs/ctr.md, "Backward examples")
    """
    rows = inputs.events
    forward = _events(inputs)
    label = labels(rows)
    before, at, after = _stated(inputs, forward, label >= 0, half_life_ms)
    ad, weight = rows.ad[at], recency(rows.user[at], at) * _kind_weight(rows.kind[at], label[at])
    positives = np.bincount(ad[(label[at] > 0) & (rows.kind[at] != VIEW)], minlength=len(inputs.ads))
    if not positives.any():
        raise DataError(["events.parquet: no user clicks or buys anything advertised after a first event"])
    popularity = positives / positives.sum()
    if backward:
        turned, order = _backward(forward)
        bought = (label > 0) & (rows.kind == PURCHASE)
        later, turned_at, _ = _stated(inputs, turned, bought[order], half_life_ms)
        before, at = Bags.concatenate([before, later]), np.append(at, order[turned_at])
        ad, weight = rows.ad[at], np.append(weight, np.full(len(later), backward))

    held = np.flatnonzero(inputs.holdout.ad >= 0)
    held_ad, held_user = inputs.holdout.ad[held], after.take(inputs.holdout.user[held])
    draw = np.random.default_rng([seed, 1]).choice(len(inputs.ads), size=len(held), p=popularity)
    overlap = [_overlap(held_user, inputs, a) for a in (held_ad, draw)]

    ad_indptr, ad_keys, ad_x = ad_features(inputs.ads, inputs.ad_crowds[0], inputs.crowds[inputs.ad_crowds[1]])
    user_keys = [feature_keys("user_item", inputs.items), feature_keys("user_crowd", inputs.crowds)]
    row_key = np.concatenate(user_keys)
    keys = np.unique(np.concatenate([row_key, ad_keys]))
    row = np.searchsorted(keys, row_key)
    users = Bags.concatenate([before, held_user])
    users = Bags(users.indptr, row.astype(np.int32)[users.ids], users.x)
    return Examples(
        keys=keys,
        user_rows=np.sort(row),
        bags=Bags.concatenate([users, Bags(ad_indptr, np.searchsorted(keys, ad_keys).astype(np.int32), ad_x)]),
        ads=inputs.ads,
        ad=ad,
        label=label[at].astype(np.float32),
        weight=(weight / weight.mean()).astype(np.float32),
        popularity=popularity,
        held_ad=held_ad,
        held_against=draw.astype(np.int32),
        held_overlap=np.stack(overlap),
    )


def _stated(
    inputs: Inputs, events: history.Events, wanted: NDArray[np.bool_], half_life_ms: int
) -> tuple[Bags, NDArray[np.int64], Bags]:
    """`history.user_bags` without the examples before which there is no state: they say nothing about states."""
    before, at, after = history.user_bags(events, wanted, inputs.item_crowds, len(inputs.items), half_life_ms)
    stated = np.flatnonzero(np.diff(before.indptr))
    return before.take(stated), at[stated], after


def _kind_weight(kind: NDArray[np.integer], label: NDArray[np.integer]) -> NDArray[np.float64]:
    """(E,) how much an example counts by what it is, against a click or a purchase."""
    return np.where(kind == VIEW, VIEWED, np.where(label == 0, SHOWN, 1.0))


def recency(user: NDArray[np.integer], at: NDArray[np.integer]) -> NDArray[np.float32]:
    """(E,) weights of mean 1: a user's n-th last example counts 1/n of the last.

    A model is asked about what comes next. What users buy last differs from what they bought before: Beauty's
    hold-outs are less popular than its training purchases, and this weight is worth 0.011 of AUC (docs/ctr.md).

    user, at: (E,) user and position in time of each example
    """
    order = np.lexsort((-at, user))
    first = np.searchsorted(user[order], user[order])
    nth = np.empty(len(user))
    nth[order] = np.arange(len(user)) - first + 1
    return (1 / nth / np.mean(1 / nth)).astype(np.float32) if len(nth) else np.empty(0, np.float32)


def labels(rows: Rows) -> NDArray[np.int8]:
    """(N,) 1 for what was clicked, viewed or bought, 0 for an impression without a click, -1 for no example.

    A click belongs to its user's latest impression of the ad before it, if no other click does, and is then no
    example of its own.
    """
    label = np.where(rows.kind == IMPRESSION, 0, -1).astype(np.int8)
    label[(rows.kind == CLICK) | (rows.kind == PURCHASE) | (rows.kind == VIEW)] = 1
    label[rows.ad < 0] = -1
    shown = np.flatnonzero(((rows.kind == IMPRESSION) | (rows.kind == CLICK)) & (rows.ad >= 0))
    shown = shown[np.lexsort((shown, rows.ad[shown], rows.user[shown]))]
    first, second = shown[:-1], shown[1:]
    pair = (rows.user[first] == rows.user[second]) & (rows.ad[first] == rows.ad[second])
    pair &= (rows.kind[first] == IMPRESSION) & (rows.kind[second] == CLICK)
    label[first[pair]] = 1
    label[second[pair]] = -1
    return label


def _events(inputs: Inputs) -> history.Events:
    rows = inputs.events
    of_crowd = (rows.kind == JOIN) | (rows.kind == LEAVE)
    target = np.where(of_crowd, rows.crowd, rows.item)
    op = np.where(target < 0, history.NOTHING, _OP[rows.kind]).astype(np.int8)
    indptr = np.searchsorted(rows.user, np.arange(len(inputs.users) + 1)).astype(np.int64)
    return history.Events(indptr, rows.time_ms, op, np.maximum(target, 0), _WEIGHT[rows.kind])


def _backward(events: history.Events) -> tuple[history.Events, NDArray[np.int64]]:
    """Events with every user's time running backward, and the position (E,) that each had.

    What an event does to the state is the same, but for memberships, whose beginnings would be ends.
    """
    user = np.repeat(np.arange(len(events.indptr) - 1), np.diff(events.indptr))
    order = events.indptr[user] + events.indptr[user + 1] - 1 - np.arange(len(user))
    op = np.where(events.op == history.ACT, history.ACT, history.NOTHING).astype(np.int8)[order]
    time_ms = (events.time_ms.max(initial=0) - events.time_ms)[order]
    return history.Events(events.indptr, time_ms, op, events.target[order], events.weight[order]), order


def _overlap(users: Bags, inputs: Inputs, ads: NDArray[np.integer]) -> NDArray[np.float64]:
    """(H,) share of ad h's crowds that user h has; 0 for an ad without crowds."""
    indptr, crowds = inputs.ad_crowds
    taken, at = history.ragged(indptr, ads)
    counts = np.diff(taken)
    width = len(inputs.items) + len(inputs.crowds)
    has = np.sort(np.repeat(np.arange(len(users)), np.diff(users.indptr)) * width + users.ids)
    wanted = np.repeat(np.arange(len(ads)), counts) * width + crowds[at] + len(inputs.items)
    found = np.searchsorted(has, wanted, side="right") > np.searchsorted(has, wanted, side="left")
    hits = np.bincount(np.repeat(np.arange(len(ads)), counts)[found], minlength=len(ads))
    return hits / np.maximum(counts, 1)
