"""A market's tables as arrays of ordinals: what examples are made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from trainers.des.history import ragged
from vitrine.data.market import Market
from vitrine.data.schemas import DataError

KINDS = ("view", "purchase", "join", "leave", "impression", "click")
VIEW, PURCHASE, JOIN, LEAVE, IMPRESSION, CLICK = range(len(KINDS))

Csr = tuple[NDArray[np.int64], NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of events or holdout, sorted by user, each user's in order; ordinals are -1 where nothing is named.

    user: (N,) ordinal into `Inputs.users`; kind: (N,) number into KINDS; time_ms: (N,) int64
    item: (N,) the item acted on: that of a view or purchase, and that which a clicked or shown ad advertises
    crowd: (N,) the crowd joined or left; ad: (N,) the ad shown or clicked, or one for the item viewed or bought
    """

    user: NDArray[np.int64]
    kind: NDArray[np.int64]
    time_ms: NDArray[np.int64]
    item: NDArray[np.int32]
    crowd: NDArray[np.int32]
    ad: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A market in ordinals of its sorted ids.

    users, items, crowds, ads: uint64 ids ascending; items and crowds include those that only events or bids name
    item_crowds: CSR item -> crowds
    ad_crowds:   CSR ad -> crowds of the item it advertises and those it bids on
    """

    users: NDArray[np.uint64]
    items: NDArray[np.uint64]
    crowds: NDArray[np.uint64]
    ads: NDArray[np.uint64]
    item_crowds: Csr
    ad_crowds: Csr
    events: Rows
    holdout: Rows


def read(market: Market) -> Inputs:
    """Read a market folder; DataError where it has no ads or no events."""
    events, holdout = market.table("events"), market.table("holdout")
    if not market.rows("ads") or not events.num_rows:
        raise DataError([f"{market.folder}: ads.parquet and events.parquet must have rows to learn from"])
    ads, ad_items = market.column("ads", "ad_id"), market.column("ads", "item_id")
    order = np.argsort(ads)
    ads, ad_items = ads[order], ad_items[order]
    bid_ads, bid_crowds = market.column("bids", "ad_id"), market.column("bids", "crowd_id")
    lists = market.table("items", ["crowd_ids"]).combine_chunks()["crowd_ids"].combine_chunks()
    listed, flat = market.column("items", "item_id"), lists.flatten().to_numpy()

    users = np.unique(np.concatenate([_ids(events, "user_id"), _ids(holdout, "user_id")]))
    items = _positive(listed, ad_items, _ids(events, "item_id"), _ids(holdout, "item_id"))
    crowds = _positive(market.column("crowds", "crowd_id"), flat, bid_crowds, _ids(events, "crowd_id"))
    owner = np.repeat(find(items, listed), pc.list_value_length(lists).to_numpy())
    item_crowds = _csr(owner, find(crowds, flat), len(items), len(crowds))

    item_of = find(items, ad_items)
    advertises = np.flatnonzero(item_of >= 0)
    taken, at = ragged(item_crowds[0], item_of[advertises])
    bid_ad = find(ads, bid_ads)
    ad_crowds = _csr(
        np.concatenate([np.repeat(advertises, np.diff(taken)), bid_ad[bid_ad >= 0]]),
        np.concatenate([item_crowds[1][at], find(crowds, bid_crowds)[bid_ad >= 0]]),
        len(ads),
        len(crowds),
    )
    with_item, first = np.unique(item_of, return_index=True)
    ad_of_item = np.full(len(items) + 1, -1, np.int32)  # the lowest ad id; the last entry answers for no item
    ad_of_item[with_item] = first
    ad_of_item[-1] = -1

    def rows(table: pa.Table, name: str) -> Rows:
        user = find(users, _ids(table, "user_id"))
        order = np.argsort(user, kind="stable")
        kind = _kinds(table, name)[order]
        item, crowd, ad = (
            find(ids, _ids(table, column))[order]
            for ids, column in ((items, "item_id"), (crowds, "crowd_id"), (ads, "ad_id"))
        )
        item = np.where((kind == CLICK) | (kind == IMPRESSION), np.where(ad >= 0, item_of[ad], -1), item)
        ad = np.where((kind == PURCHASE) | (kind == VIEW), ad_of_item[item], ad)
        time_ms = table["time_ms"].to_numpy()[order]
        return Rows(user[order], kind, time_ms, *(a.astype(np.int32) for a in (item, crowd, ad)))

    return Inputs(
        users, items, crowds, ads, item_crowds, ad_crowds, rows(events, "events"), rows(holdout, "holdout")
    )


def find(ids: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Ordinals of `wanted` in the ascending `ids`; -1 for what is not there."""
    if not len(ids):
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return np.where(ids[at] == wanted, at, -1)


def _positive(*ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
    every = np.unique(np.concatenate(ids))
    return every[every > 0]


def _ids(table: pa.Table, name: str) -> NDArray[np.uint64]:
    """A column of ids, nulls as 0."""
    return np.asarray(pc.fill_null(table[name], 0).to_numpy(), np.uint64)


def _kinds(table: pa.Table, name: str) -> NDArray[np.int64]:
    index = pc.fill_null(pc.index_in(table["kind"], pa.array(KINDS)), -1).to_numpy()
    if len(wrong := np.flatnonzero(index < 0)):
        value = table["kind"][int(wrong[0])].as_py()
        wanted = ", ".join(KINDS)
        raise DataError([f"{name}.parquet, row {wrong[0]}, column kind: {value!r} is none of {wanted}"])
    return index.astype(np.int64)


def _csr(rows: NDArray[np.int64], columns: NDArray[np.int64], n_rows: int, n_columns: int) -> Csr:
    """Pairs in any order, repeated or not -> CSR with each pair once, ascending."""
    pair = np.unique(rows * n_columns + columns)
    counts = np.bincount(pair // n_columns, minlength=n_rows)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), (pair % n_columns).astype(np.int32)
