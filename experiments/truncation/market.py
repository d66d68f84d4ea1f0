"""The market that both systems see: demand, organic events and ad requests in their order; no tastes, no truth."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.truncation.settings import DAY_MS, SLOTS, Sizes, Staleness
from experiments.truncation.truth import Truth
from trainers.des import inputs
from trainers.des.history import States
from trainers.des.inputs import IMPRESSION, JOIN, LEAVE, PURCHASE, VIEW, Inputs
from vitrine.data import draws
from vitrine.data.market import Market as Folder
from vitrine.data.simulator import SPAN_MS, START_MS, write_market

SAME_PAGE = 0.5
"""Share of requests that come with the page whose view they follow, not hours after it."""
PAGE_GAP_MS = 100.0
"""Mean time from such a view to the request of its page's ad."""

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Organic events and requests, sorted by (slot since the start, round, user): a batch is a round of a slot.

    user, kind, time_ms: (N,); kind is a number of trainers.des.inputs.KINDS, IMPRESSION stands for a request
    item, crowd: (N,) ordinals, -1 where there is none
    request: (N,) number of the request, the same in every system; -1 for an event
    slot: (N,) slots since the start; starts: (B + 1,) where batches begin
    """

    user: I64
    kind: I64
    time_ms: I64
    item: I64
    crowd: I64
    request: I64
    slot: I64
    starts: I64

    def batches(self, first_slot: int, last_slot: int) -> Iterator[slice]:
        """Batches of the slots [first, last), in order; a user is at most once in a batch."""
        first, last = np.searchsorted(self.slot, [first_slot, last_slot])
        low, high = np.searchsorted(self.starts, [first, last])
        for b in range(int(low), int(high)):
            yield slice(int(self.starts[b]), int(self.starts[b + 1]))


@dataclass(frozen=True, slots=True)
class Market:
    """Demand and supply in ordinals.

    base: the tables as trainers.des reads them; its events are all organic events, none of an ad
    crowd_indptr, posting_ads, posting_bids: CSR crowd -> (ad, bid), ads ascending
    ad_item, advertiser: (A,) ordinals; budget: (advertisers,) a day, before any scale
    timeline: as a system with no delay sees it; lagged: as one whose lists lag does
    """

    seed: int
    sizes: Sizes
    base: Inputs
    crowd_indptr: I64
    posting_ads: NDArray[np.uint32]
    posting_bids: NDArray[np.float32]
    ad_item: I64
    advertiser: I64
    budget: NDArray[np.float64]
    timeline: Timeline
    lagged: Timeline
    always_behind: Timeline

    @property
    def users(self) -> int:
        """Number of users."""
        return len(self.base.users)

    @property
    def ads(self) -> int:
        """Number of ads."""
        return len(self.base.ads)


SPEND_PER_REQUEST = 1.0
"""Sum of all daily budgets over a day's requests: so set that about a fifth of them run out in the pre-period."""


def draw(sizes: Sizes, seed: int, staleness: Staleness) -> tuple[Market, Truth]:
    """The market of a seed, and the truth that decides its clicks."""
    with tempfile.TemporaryDirectory(prefix="vitrine-truncation-") as name:
        write_market(
            Path(name),
            users=sizes.users,
            ads=sizes.ads,
            crowds=sizes.crowds,
            pictures=0,
            events_per_user=sizes.events_per_user,
            seed=seed,
        )
        folder = Folder(name)
        base = inputs.read(folder)
        bids = [folder.column("bids", c) for c in ("crowd_id", "ad_id", "bid")]
        order = np.argsort(folder.column("ads", "ad_id"))
        item = inputs.find(base.items, folder.column("ads", "item_id")[order])
        owner = folder.column("ads", "advertiser_id")[order]
        truth = Truth.of(folder.meta, base.users)
    crowd, ad = inputs.find(base.crowds, bids[0]), inputs.find(base.ads, bids[1])
    order = np.lexsort((ad, crowd))
    counts = np.bincount(crowd, minlength=len(base.crowds))
    _, advertiser = np.unique(owner, return_inverse=True)
    columns = _columns(base, sizes, seed)
    requests = int((columns.kind == IMPRESSION).sum()) / sizes.days
    size = np.exp(0.8 * draws.normal(seed, "truncation/budget", np.arange(int(advertiser.max()) + 1)))
    size *= np.bincount(advertiser)
    behind = _behind(columns, seed, staleness)
    organic = np.isin(base.events.kind, (VIEW, PURCHASE, JOIN, LEAVE))
    return Market(
        seed=seed,
        sizes=sizes,
        base=replace(base, events=_organic(base, organic, columns)),
        crowd_indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        posting_ads=ad[order].astype(np.uint32),
        posting_bids=bids[2][order].astype(np.float32),
        ad_item=item,
        advertiser=advertiser.astype(np.int64),
        budget=size / size.sum() * SPEND_PER_REQUEST * requests,
        timeline=_timeline(columns, np.zeros(len(columns.user), bool)),
        lagged=_timeline(columns, behind),
        always_behind=_timeline(columns, columns.same_page),
    ), truth


def pairs_of(market: Market, states: States) -> NDArray[np.int64]:
    """(U,) eligible (crowd, ad) pairs of every user, as states are now."""
    sizes = np.append(np.diff(market.crowd_indptr), 0)  # an empty slot's -1 is the last
    return np.asarray(sizes[states.crowds].sum(axis=1))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Rows sorted by user, each user's in order; fields as in `Timeline`.

    same_page: a request whose page is that of the event before it, whose time is therefore its own
    """

    user: I64
    kind: I64
    time_ms: I64
    item: I64
    crowd: I64
    request: I64
    same_page: NDArray[np.bool_]


def _columns(base: Inputs, sizes: Sizes, seed: int) -> _Columns:
    """The simulator's 90 days in the experiment's; its impressions become requests, its clicks nothing."""
    e = base.events
    known = np.isin(e.kind, (VIEW, PURCHASE, JOIN, LEAVE, IMPRESSION))
    user, kind = e.user[known], e.kind[known]
    time_ms = ((e.time_ms[known] - START_MS) * (sizes.days * DAY_MS / SPAN_MS)).astype(np.int64)
    asks = kind == IMPRESSION
    before = np.append(False, (user[1:] == user[:-1]) & ~asks[:-1] & (np.isin(kind[:-1], (VIEW, PURCHASE))))
    same = asks & before & (draws.uniform(seed, "truncation/page", np.arange(len(user))) < SAME_PAGE)
    moved = np.flatnonzero(same) - 1
    time_ms[moved] = time_ms[moved + 1]
    request = np.where(asks, np.cumsum(asks) - 1, -1)
    item = np.where(asks, -1, e.item[known])
    return _Columns(user, kind, time_ms, item.astype(np.int64), e.crowd[known].astype(np.int64), request, same)


def _behind(rows: _Columns, seed: int, staleness: Staleness) -> NDArray[np.bool_]:
    """Requests that are answered from a list that has not yet seen the event of their own page."""
    at = np.arange(len(rows.user))
    sigma = np.log(staleness.p99_ms / staleness.p50_ms) / 2.3263
    lag = staleness.p50_ms * np.exp(sigma * draws.normal(seed, "truncation/lag", at))
    gap = -PAGE_GAP_MS * np.log(draws.uniform(seed, "truncation/gap", at))
    return np.asarray(rows.same_page & (gap < lag))


def _timeline(rows: _Columns, behind: NDArray[np.bool_]) -> Timeline:
    """Batches of all rows; a request that is `behind` changes places with the event before it."""
    order = np.arange(len(rows.user))
    late = np.flatnonzero(behind)
    order[late], order[late - 1] = late - 1, late
    slot = rows.time_ms // (DAY_MS // SLOTS)
    group = rows.user * (int(slot.max()) + 1) + slot  # ascending, as rows are
    first = np.searchsorted(group, group)
    round_ = np.arange(len(group)) - first
    by = np.lexsort((rows.user, round_, slot))
    taken = order[by]
    new = np.flatnonzero(np.append(True, (np.diff(slot[by]) != 0) | (np.diff(round_[by]) != 0)))
    return Timeline(
        rows.user[taken],
        rows.kind[taken],
        rows.time_ms[taken],
        rows.item[taken],
        rows.crowd[taken],
        rows.request[taken],
        slot[by],
        np.append(new, len(by)),
    )


def _organic(base: Inputs, organic: NDArray[np.bool_], columns: _Columns) -> inputs.Rows:
    """Organic events in the experiment's time, naming no ad: they make states, not examples."""
    kept = columns.kind != IMPRESSION
    e = base.events
    none = np.full(int(organic.sum()), -1, np.int32)
    return inputs.Rows(
        e.user[organic], e.kind[organic], columns.time_ms[kept], e.item[organic], e.crowd[organic], none
    )
