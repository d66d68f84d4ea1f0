"""When ads rest: outside their schedules, and once the clicks of the day have spent their budgets.

Pure: events, records and the time come in, the gates that are to be written come out, crossings only. Spend is in
millionths of a currency unit, so that the sum does not depend on the order in which partitions are read.
"""

import heapq
import math
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitrine.api.events.v1.events_pb2 import AdGate, UserEvent
from vitrine.matching.ad_records import MAX_BID, Gate
from vitrine.matching.catalog import OFF
from vitrine.matching.catalog_files import DAY_MS
from vitrine.matching.market import Market

MICRO = 1_000_000

_SCHEDULE, _BUDGET = OFF["schedule"], OFF["budget"]


class _Said(NamedTuple):
    """The last gate in the topic: bits, and the spend (micro) of its day."""

    offset: int = -1
    off: int = 0
    spent: int = 0
    day: int = -1


class Counts(NamedTuple):
    """Clicks that spent, clicks whose impression is not known or has been paid, and prices that are none."""

    spent: int = 0
    without_impression: int = 0
    bad_prices: int = 0


class Gates:
    """What ads have spent, what the topic says of them, and which gates are due."""

    def __init__(self, *, click_window_ms: int = DAY_MS) -> None:
        """click_window_ms: how long after its impression, by the broker's time, a click still finds it."""
        self.counts = Counts()
        self._window_ms = click_window_ms
        self._shown: OrderedDict[tuple[int, str], tuple[int, int | None]] = (
            OrderedDict()
        )  # when; price until clicked
        self._spent: defaultdict[int, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))  # day, ad
        self._said: dict[int, _Said] = {}
        self._dirty: set[int] = set()
        self._today = -1
        self._position = 0
        self._times: NDArray[np.int64] = np.empty(0, np.int64)
        self._ads: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._next = 0
        self._later: list[tuple[int, int]] = []  # a heap, of the ads that records have defined
        self._queued: set[tuple[int, int]] = set()

    def event(self, event: UserEvent, append_ms: int) -> None:
        """Takes an impression or a click; others say nothing of money."""
        kind = event.WhichOneof("kind")
        if kind == "impression":
            said = event.impression
            if not (math.isfinite(said.price) and 0 <= said.price <= MAX_BID):
                self.counts = self.counts._replace(bad_prices=self.counts.bad_prices + 1)
                return
            key = said.ad_id, said.request_id
            if key not in self._shown:  # the same record twice is one impression
                self._shown[key] = append_ms, round(said.price * MICRO)
            while self._shown and next(iter(self._shown.values()))[0] < append_ms - self._window_ms:
                self._shown.popitem(last=False)
        elif kind == "click":
            key = event.click.ad_id, event.click.request_id
            shown_ms, price = self._shown.get(key, (0, None))
            if price is None or not event.click.request_id:
                self.counts = self.counts._replace(without_impression=self.counts.without_impression + 1)
                return
            self._shown[key] = shown_ms, None
            self._spent[min(event.time_ms, append_ms) // DAY_MS][event.click.ad_id] += price
            self._dirty.add(event.click.ad_id)
            self.counts = self.counts._replace(spent=self.counts.spent + 1)

    def said(self, offset: int, gate: Gate) -> None:
        """Takes a gate of the topic, read or just written; an older one than is known is passed over."""
        if offset > self._said.get(gate.ad_id, _Said()).offset:
            spent = round(gate.spent * MICRO) if math.isfinite(gate.spent) else 0
            self._said[gate.ad_id] = _Said(offset, gate.off or 0, spent, gate.time_ms // DAY_MS)

    def spent(self, ad_id: int, day: int) -> int:
        """Micro units of a UTC day: what its clicks add up to, or what a gate of that day says, where it is more.

        It is more where the day's first events are no longer in the log.
        """
        said = self._said.get(ad_id, _Said())
        clicked = self._spent[day].get(ad_id, 0) if day in self._spent else 0
        return max(clicked, said.spent if said.day == day else 0)

    def over(self, market: Market, now_ms: int) -> None:
        """Another catalog: every ad's schedule and budget may be another one."""
        catalog = market.catalog
        start, end = catalog.ad_schedule[:, 0], catalog.ad_schedule[:, 1]
        closed = (now_ms < start) | ((end > 0) & (now_ms >= end))
        written = np.zeros(len(closed), bool)
        here = [ad_id for ad_id, said in self._said.items() if said.off & _SCHEDULE]
        written[catalog.ad_ordinals(np.array(here, np.uint64))[0]] = True
        self._dirty.update(catalog.ads[closed != written].tolist(), self._said, market.overlay)
        self._dirty.update(*self._spent.values())
        times = np.concatenate([start[start > now_ms], end[end > now_ms]])
        ads = np.concatenate([catalog.ads[start > now_ms], catalog.ads[end > now_ms]])
        order = np.argsort(times, kind="stable")
        self._times, self._ads, self._next = times[order], ads[order], 0
        self._later, self._queued = [], set()
        self._position = market.position

    def due(self, market: Market, now_ms: int) -> list[AdGate]:
        """Gates that differ from what the topic says. Each is due until `said` has it."""
        self._dirty.update(market.changed(self._position))
        self._position = market.position
        if now_ms // DAY_MS > self._today:  # never back: a wall clock set back must not open what is spent
            self._new_day(now_ms // DAY_MS)
        stop = int(np.searchsorted(self._times, now_ms, "right"))
        self._dirty.update(self._ads[self._next : stop].tolist())
        self._next = max(self._next, stop)
        while self._later and self._later[0][0] <= now_ms:
            boundary = heapq.heappop(self._later)
            self._queued.discard(boundary)
            self._dirty.add(boundary[1])
        found = [gate for ad_id in sorted(self._dirty) if (gate := self._gate(market, ad_id, now_ms)) is not None]
        self._dirty = {gate.ad_id for gate in found}
        return found

    def _gate(self, market: Market, ad_id: int, now_ms: int) -> AdGate | None:
        """The ad's gate, where it is another than the topic's."""
        ad = market.ad(ad_id)
        if ad is None or ad.off & OFF["ended"]:
            return None  # nobody is matched with it
        if ad_id in market.overlay:
            for time_ms in (ad.start_ms, ad.end_ms):
                if time_ms > now_ms and (time_ms, ad_id) not in self._queued:
                    heapq.heappush(self._later, (time_ms, ad_id))
                    self._queued.add((time_ms, ad_id))
        closed = now_ms < ad.start_ms or 0 < ad.end_ms <= now_ms
        spent = self.spent(ad_id, self._today)
        empty = ad.daily_budget > 0 and spent >= round(ad.daily_budget * MICRO)
        off = _SCHEDULE * closed | _BUDGET * empty
        if off == self._said.get(ad_id, _Said()).off:
            return None
        return AdGate(ad_id=ad_id, out_of_schedule=closed, out_of_budget=empty, spent=spent / MICRO, time_ms=now_ms)

    def _new_day(self, day: int) -> None:
        """Yesterday's budgets are nobody's any more."""
        self._today = day
        for past in [each for each in self._spent if each < day]:
            del self._spent[past]
        self._dirty.update(ad_id for ad_id, said in self._said.items() if said.off & _BUDGET)
        self._dirty.update(self._spent.get(day, ()))
