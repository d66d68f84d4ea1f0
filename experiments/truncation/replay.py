"""One system, replayed: events change states, requests are matched and auctioned, clicks come back as events."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.truncation.auction import Budgets, second_price
from experiments.truncation.market import Market, Timeline
from experiments.truncation.matching import EVERYTHING, Cut, Found, Matcher
from experiments.truncation.model import Logged, Model, smoothed
from experiments.truncation.settings import DAY_MS, HALF_LIFE_MS, SEEN_MOST, SERVED, SLOTS, STORED
from experiments.truncation.truth import Truth
from trainers.des import history
from trainers.des.history import States
from trainers.des.inputs import CLICK, IMPRESSION, JOIN, LEAVE, PURCHASE, VIEW
from vitrine.matching.state import CLICK_WEIGHT, PURCHASE_WEIGHT, VIEW_WEIGHT

I64 = NDArray[np.int64]

_OP = np.full(6, history.NOTHING, np.int8)
_OP[[VIEW, PURCHASE, CLICK]] = history.ACT
_OP[JOIN], _OP[LEAVE] = history.JOIN, history.LEAVE
_WEIGHT = np.zeros(6)
_WEIGHT[[VIEW, PURCHASE, CLICK]] = VIEW_WEIGHT, PURCHASE_WEIGHT, CLICK_WEIGHT


@dataclass(slots=True)
class Log:
    """What one system showed; one entry a request, in the order of time.

    request, user, ad: ad -1 where nothing was shown; paid: billed, 0 without a click; rate: the winner's pCTR
    """

    request: list[I64] = field(default_factory=list)
    user: list[I64] = field(default_factory=list)
    ad: list[I64] = field(default_factory=list)
    time_ms: list[I64] = field(default_factory=list)
    clicked: list[NDArray[np.bool_]] = field(default_factory=list)
    paid: list[NDArray[np.float64]] = field(default_factory=list)
    rate: list[NDArray[np.float64]] = field(default_factory=list)

    def column(self, name: str) -> NDArray[Any]:
        """One column, whole."""
        parts = getattr(self, name)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def logged(self) -> Logged:
        """Impressions, as a model is trained on them."""
        ad = self.column("ad")
        shown = ad >= 0
        return Logged(
            self.column("user")[shown], ad[shown], self.column("time_ms")[shown],
            self.column("clicked")[shown].astype(bool),
        )  # fmt: skip


class Replay:
    """A system and its market's state. `run` replays days; `fork` gives another system the same past.

    near_line: lists are matched by the tower that the state holds, refreshed by the rule of the design, and the
    auction scores by features as of the list; else both are of the moment of the request

    wanted, dropped: (A,) at how many requests of `run(..., count=True)` each ad was among the SERVED most valuable
    of all the user's, and at how many of these the system did not find it
    """

    def __init__(
        self,
        market: Market,
        truth: Truth,
        cut: Cut,
        *,
        near_line: bool = False,
        budgets: float = 1.0,
        noise: int = 0,
    ) -> None:
        self.market, self.truth, self.near_line, self.noise = market, truth, near_line, noise
        self.matcher = Matcher(market, cut)
        widest = market.base.item_crowds
        self.states = States(market.users, widest, len(market.base.items), HALF_LIFE_MS)
        self.budgets = Budgets(market.budget * budgets, market.advertiser, market.seed, noise)
        self.log = Log()
        self.timeline: Timeline = market.timeline
        self.impressions = np.zeros(market.ads)
        self.clicks = np.zeros(market.ads)
        self._tower_bias = np.zeros(market.users, np.float32)
        self._tower_vecs = np.zeros((market.users, market.sizes.dim), np.float32)
        self._changes = np.zeros(market.users, np.int64)
        self._total = np.zeros(market.users, np.int64)
        self._refreshed_ms = np.zeros(market.users, np.int64)
        self.refreshes = 0
        self.wanted = np.zeros(market.ads)
        self.dropped = np.zeros(market.ads)

    def fork(
        self,
        cut: Cut,
        *,
        near_line: bool = False,
        timeline: Timeline | None = None,
        budgets: float = 1.0,
        noise: int = 0,
    ) -> Replay:
        """Another system with this one's past: states, counters, historical click rates; its log is empty."""
        other = Replay(self.market, self.truth, cut, near_line=near_line, budgets=budgets, noise=noise)
        other.timeline = timeline or self.market.timeline
        other.states = copy.deepcopy(self.states)
        for name in ("impressions", "clicks", "_changes", "_total", "_refreshed_ms"):
            setattr(other, name, getattr(self, name).copy())
        other.budgets.rate = self.budgets.rate.copy()
        return other

    def warm_up(self, days: int) -> None:
        """Fold the organic events of the first days; nothing is shown."""
        t = self.timeline
        for batch in t.batches(0, days * SLOTS):
            organic = np.flatnonzero(t.kind[batch] != IMPRESSION) + batch.start
            self._fold(t.user[organic], t.kind[organic], t.time_ms[organic], t.item[organic], t.crowd[organic])

    def activate(self, model: Model) -> None:
        """Take a new model: every user's tower is made anew, as a full pass does it."""
        self.model = model
        everyone = np.arange(self.market.users)
        if self.near_line:
            self._tower_bias[:], self._tower_vecs[:] = model.user(self.states, everyone)
        self._changes[:] = 0

    def run(self, first_day: int, last_day: int, *, count: bool = False) -> None:
        """Replay the days [first, last). count: count `wanted` and `dropped`."""
        self._all = Matcher(self.market, EVERYTHING) if count else None
        t = self.timeline
        for day in range(first_day, last_day):
            self._new_day()
            slot, alive = -1, np.zeros(0, bool)
            for batch in t.batches(day * SLOTS, (day + 1) * SLOTS):
                if t.slot[batch.start] != slot:
                    slot = int(t.slot[batch.start])
                    self.budgets.pace(slot % SLOTS)
                now = self.budgets.alive()
                if not np.array_equal(now, alive):
                    alive = now
                    self.matcher.alive(alive)
                    if self._all is not None:
                        self._all.alive(alive)
                at = np.arange(batch.start, batch.stop)
                asks = t.request[at] >= 0
                events, requests = at[~asks], at[asks]
                if len(events):
                    self._fold(t.user[events], t.kind[events], t.time_ms[events], t.item[events], t.crowd[events])
                if len(requests):
                    self._serve(t.user[requests], t.request[requests], t.time_ms[requests])
            self.budgets.end_day()

    def _new_day(self) -> None:
        self._seen = np.zeros((self.market.users, self.market.ads), np.uint8)
        self.matcher.order(self.model, smoothed(self.impressions, self.clicks))
        if self._all is not None:
            self._all.order(self.model, np.zeros(self.market.ads))

    def _serve(self, user: I64, request: I64, time_ms: I64) -> None:
        now_bias, now_vecs = self.model.user(self.states, user)
        if self.near_line:
            bias, vecs = self._tower_bias[user], self._tower_vecs[user]
        else:
            bias, vecs = now_bias, now_vecs
        found = self.matcher.match(self.states, user, bias, vecs, STORED)
        if self._all is not None:
            self._count(user, found, self._all.match(self.states, user, bias, vecs, SERVED))
        rates = self.model.click_rate(now_bias, now_vecs, found.ads)
        allowed = self.budgets.takes_part(found.ads, request)
        allowed &= self._seen[user[:, None], found.ads] < SEEN_MOST
        sold = second_price(found.ads, found.bids, rates, allowed, SERVED)
        shown = np.flatnonzero(sold.ad >= 0)
        clicked, paid = np.zeros(len(user), bool), np.zeros(len(user))
        ad = sold.ad[shown]
        clicked[shown] = self.truth.clicks(user[shown], ad, request[shown], self.noise)
        hit = np.flatnonzero(clicked)
        paid[hit] = self.budgets.bill(sold.ad[hit], sold.price[hit])
        self._seen[user[shown], ad] += 1
        np.add.at(self.impressions, ad, 1)
        np.add.at(self.clicks, sold.ad[hit], 1)
        self._refresh(user, time_ms, np.zeros(len(user), bool))
        if len(hit):
            item = self.market.ad_item[sold.ad[hit]]
            self._fold(user[hit], np.full(len(hit), CLICK), time_ms[hit], item, np.full(len(hit), -1))
        for name, values in (("request", request), ("user", user), ("ad", sold.ad), ("time_ms", time_ms)):
            getattr(self.log, name).append(values)
        self.log.clicked.append(clicked)
        self.log.paid.append(paid)
        self.log.rate.append(sold.rate)

    def _count(self, user: I64, found: Found, best: Found) -> None:
        row, column = np.nonzero(best.ads >= 0)
        ad = best.ads[row, column]
        got = np.zeros((len(user), self.market.ads + 1), bool)
        got[np.arange(len(user))[:, None], found.ads[:, :SERVED]] = True  # -1 marks the last column, no ad's
        np.add.at(self.wanted, ad, 1)
        np.add.at(self.dropped, ad[~got[row, ad]], 1)

    def _fold(self, user: I64, kind: I64, time_ms: I64, item: I64, crowd: I64) -> None:
        """Apply one event to each of these users, no user twice."""
        n = self.market.users
        op, target = np.full(n, history.NOTHING, np.int8), np.zeros(n, np.int32)
        times, weight = np.zeros(n, np.int64), np.zeros(n)
        op[user], target[user] = _OP[kind], np.where((kind == JOIN) | (kind == LEAVE), crowd, item)
        times[user], weight[user] = time_ms, _WEIGHT[kind]
        events = history.Events(np.zeros(1, np.int64), times, op, target, weight)
        self.states.apply(n, events, np.arange(n))
        self._total[user] += 1
        self._changes[user] += 1
        self._refresh(user, time_ms, self._changes[user] >= np.minimum(8, 1 + self._total[user] // 4))

    def _refresh(self, user: I64, time_ms: I64, due: NDArray[np.bool_]) -> None:
        """Towers made anew: those that are due, and those that are a day old by their user's clock."""
        due = due | (time_ms - self._refreshed_ms[user] >= DAY_MS)
        old = user[due]
        if self.near_line and len(old):
            self._tower_bias[old], self._tower_vecs[old] = self.model.user(self.states, old)
            self.refreshes += len(old)
        self._changes[old] = 0
        self._refreshed_ms[old] = time_ms[due]
