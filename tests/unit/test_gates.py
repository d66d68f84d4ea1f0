"""Gates cross when schedules and budgets do, once each, whoever restarts the clock in between."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.matching_kit import small_catalog
from vitrine.api.events.v1.events_pb2 import AdClick, AdDefinition, AdGate, AdImpression, AdUpdate, UserEvent
from vitrine.matching.ad_records import ad_key, gate_key, parse
from vitrine.matching.gates import Gates
from vitrine.matching.updates import Updates

DAY_MS = 86_400_000
NOON = 20_000 * DAY_MS + DAY_MS // 2
HOUR_MS = 3_600_000
WINDOW_MS = 2 * HOUR_MS
AD, OTHER, PLAIN = 3, 6, 9


def catalog():
    """AD may spend 2.0 a day; OTHER is shown from NOON + 1 h to NOON + 2 h."""
    base = small_catalog(ads=8, bids=30)
    budgets, schedule = np.zeros(8), np.zeros((8, 2), np.int64)
    budgets[0], schedule[1] = 2.0, (NOON + HOUR_MS, NOON + 2 * HOUR_MS)
    return replace(base, ad_budgets=budgets, ad_schedule=schedule)


CATALOG = catalog()


def impression(ad, request, price, time_ms, user=1):
    return UserEvent(
        user_id=user, time_ms=time_ms, impression=AdImpression(ad_id=ad, request_id=request, price=price)
    )


def click(ad, request, time_ms, user=1):
    return UserEvent(user_id=user, time_ms=time_ms, click=AdClick(ad_id=ad, request_id=request))


@dataclass
class Log:
    """Both topics as they lie on a broker, and the process that is alive."""

    def __post_init__(self):
        self.ads, self.events = [], []
        self.written = []
        self.start(NOON)

    def start(self, now_ms, *, first=0):
        """A clock that knows what is in the topics alone; of events those from `first` on are still there."""
        self.updates, self.gates = Updates(CATALOG, "c", 0), Gates(click_window_ms=WINDOW_MS)
        for offset, (key, value) in enumerate(self.ads):
            self._read(offset, key, value)
        self.gates.over(self.updates.market(), now_ms)
        since = now_ms // DAY_MS * DAY_MS - WINDOW_MS
        for event, append_ms in self.events[first:]:
            if append_ms >= since:
                self.gates.event(event, append_ms)

    def append(self, key, value):
        self.ads.append((key, value))
        self._read(len(self.ads) - 1, key, value)

    def _read(self, offset, key, value):
        self.updates.apply(offset, 0, key, value)
        if key.endswith(b"/gate"):
            self.gates.said(offset, parse(key, value))

    def happens(self, event, append_ms=None):
        append_ms = event.time_ms if append_ms is None else append_ms
        self.events.append((event, append_ms))
        self.gates.event(event, append_ms)

    def tick(self, now_ms):
        """What the clock writes now."""
        due = self.gates.due(self.updates.market(), now_ms)
        for gate in due:
            self.append(gate_key(gate.ad_id), gate.SerializeToString())
        self.written += due
        return [(gate.ad_id, gate.out_of_schedule, gate.out_of_budget) for gate in due]

    def set(self, ad, **definition):
        update = AdUpdate(ad_id=ad, state=1, definition=AdDefinition(advertiser_id=1, **definition))
        self.append(ad_key(ad), update.SerializeToString())

    def state(self):
        """ad -> (out of schedule, out of budget), of the last gates."""
        found = {}
        for key, value in self.ads:
            if key.endswith(b"/gate"):
                gate = AdGate.FromString(value)
                found[gate.ad_id] = gate.out_of_schedule, gate.out_of_budget
        return found


def test_a_schedule_opens_and_closes_once_each():
    log = Log()
    assert log.tick(NOON) == [(OTHER, True, False)]
    assert log.tick(NOON + HOUR_MS - 1) == []
    assert log.tick(NOON + HOUR_MS) == [(OTHER, False, False)]
    assert log.tick(NOON + HOUR_MS + 1) == []
    assert log.tick(NOON + 2 * HOUR_MS) == [(OTHER, True, False)]
    assert log.tick(NOON + 9 * HOUR_MS) == []
    assert not log.updates.market().live([OTHER])[0]


def test_a_click_spends_its_impressions_price_and_the_budget_closes_the_gate_till_midnight():
    log = Log()
    log.tick(NOON)
    log.happens(impression(AD, "r1", 1.5, NOON))
    log.happens(impression(AD, "r2", 0.5, NOON))
    assert log.tick(NOON + 1) == []  # what is shown is not paid
    log.happens(click(AD, "r1", NOON + 2))
    assert log.tick(NOON + 3) == []
    log.happens(click(AD, "r2", NOON + 4))
    assert log.tick(NOON + 5) == [(AD, False, True)]
    assert log.written[-1].spent == 2.0
    assert log.tick(NOON + 6) == []
    midnight = 20_001 * DAY_MS
    assert (AD, False, False) not in log.tick(midnight - 1)
    assert (AD, False, False) in log.tick(midnight)
    assert log.written[-1].spent == 0


def test_a_click_is_paid_once_and_only_where_its_impression_is_known():
    log = Log()
    log.happens(impression(AD, "r1", 1.0, NOON))
    log.happens(impression(AD, "r1", 1.0, NOON))  # sent again
    for at in range(3):
        log.happens(click(AD, "r1", NOON + at))
    log.happens(click(AD, "unknown", NOON))
    log.happens(click(AD, "", NOON))
    log.happens(click(OTHER, "r1", NOON))
    assert log.gates.spent(AD, NOON // DAY_MS) == 1_000_000
    assert log.gates.counts == (1, 5, 0)


def test_a_day_is_the_clicks_own_whenever_it_arrives():
    log = Log()
    midnight = 20_001 * DAY_MS
    log.happens(impression(AD, "r1", 3.0, midnight - 10))
    log.happens(click(AD, "r1", midnight - 1), append_ms=midnight + 50)
    assert log.gates.spent(AD, 20_000) == 3_000_000
    assert (AD, False, True) not in log.tick(midnight + 60)
    log.happens(impression(AD, "r2", 3.0, midnight + 70))
    log.happens(click(AD, "r2", midnight + DAY_MS), append_ms=midnight + 80)  # from the future: counts as appended
    assert log.tick(midnight + 90) == [(AD, False, True)]


def test_a_click_after_the_window_finds_no_impression():
    log = Log()
    log.happens(impression(AD, "r1", 3.0, NOON))
    log.happens(impression(PLAIN, "r9", 1.0, NOON + WINDOW_MS + 1))
    log.happens(click(AD, "r1", NOON + WINDOW_MS + 2))
    assert log.gates.counts == (0, 1, 0)


@pytest.mark.parametrize("price", [float("nan"), float("inf"), -1.0, 2e6])
def test_a_price_that_is_none_spends_nothing(price):
    log = Log()
    log.happens(impression(AD, "r1", price, NOON))
    log.happens(click(AD, "r1", NOON))
    assert log.gates.counts == (0, 1, 1)


def test_a_raised_budget_and_another_schedule_count_at_once():
    log = Log()
    log.tick(NOON)
    log.happens(impression(AD, "r1", 2.5, NOON))
    log.happens(click(AD, "r1", NOON))
    assert log.tick(NOON) == [(AD, False, True)]
    log.set(AD, daily_budget=3.0)
    assert log.tick(NOON + 1) == [(AD, False, False)]
    log.set(AD, daily_budget=2.5, end_ms=NOON + 50)
    assert log.tick(NOON + 2) == [(AD, False, True)]
    assert log.tick(NOON + 50) == [(AD, True, True)]
    log.set(OTHER)
    assert log.tick(NOON + 51) == [(OTHER, False, False)]


def test_a_clock_set_back_opens_nothing():
    log = Log()
    midnight = 20_001 * DAY_MS
    log.happens(impression(AD, "r1", 2.0, midnight))
    log.happens(click(AD, "r1", midnight))
    assert (AD, False, True) in log.tick(midnight + 1)
    assert log.tick(midnight - 1) == []


def test_what_a_gate_says_of_its_day_counts_where_the_days_first_events_are_gone():
    log = Log()
    log.tick(NOON)
    log.happens(impression(AD, "r1", 2.0, NOON))
    log.happens(click(AD, "r1", NOON))
    assert log.tick(NOON) == [(AD, False, True)]
    log.start(NOON + 1, first=2)
    assert log.tick(NOON + 1) == []
    assert log.gates.spent(AD, NOON // DAY_MS) == 2_000_000


def test_a_gate_that_the_broker_did_not_take_stays_due():
    log = Log()
    market = log.updates.market()
    assert log.gates.due(market, NOON) == log.gates.due(market, NOON) != []


def test_an_older_gate_read_late_does_not_undo_a_newer_one():
    gates = Gates()
    for offset, off in ((7, True), (3, False)):
        record = AdGate(ad_id=AD, out_of_budget=off, spent=1, time_ms=NOON).SerializeToString()
        gates.said(offset, parse(gate_key(AD), record))
    assert gates.spent(AD, NOON // DAY_MS) == 1_000_000
    updates = Updates(CATALOG, "c", 0)
    gates.over(updates.market(), NOON)
    assert [gate.ad_id for gate in gates.due(updates.market(), NOON)] == [AD, OTHER]  # it was closed: it opens


steps = st.one_of(
    st.tuples(st.just("show"), st.sampled_from([AD, OTHER]), st.integers(0, 5), st.sampled_from([0.5, 0.7, 1.1])),
    st.tuples(st.just("click"), st.sampled_from([AD, OTHER]), st.integers(0, 5), st.integers(0, 2 * HOUR_MS)),
    st.tuples(st.just("set"), st.sampled_from([AD, OTHER]), st.sampled_from([0.0, 0.9, 2.0]), st.integers(0, 40)),
    st.tuples(st.just("pass"), st.integers(1, 5 * HOUR_MS)),
    st.tuples(st.just("restart")),
    st.tuples(st.just("restart unticked")),
)


@given(st.lists(steps, max_size=40))
@settings(max_examples=200, deadline=None)
def test_gates_are_those_of_the_whole_history_and_cross_once_whatever_restarts(happenings):
    log, now = Log(), NOON
    bounds = {AD: (0, 0, 2.0), OTHER: (NOON + HOUR_MS, NOON + 2 * HOUR_MS, 0.0)}
    shown, paid = {}, {}

    def check():
        log.tick(now)
        for ad, (start, end, budget) in bounds.items():
            closed = now < start or bool(end and now >= end)
            spent = paid.get((ad, now // DAY_MS), 0)
            wanted = closed, bool(budget) and spent >= round(budget * 1e6)
            assert log.state().get(ad, (False, False)) == wanted
        assert log.tick(now) == []

    for step in happenings:
        if step[0] == "show":
            _, ad, request, price = step
            shown.setdefault((ad, request), [now, round(float(np.float32(price)) * 1e6)])
            log.happens(impression(ad, str(request), price, now))
        elif step[0] == "click":
            _, ad, request, late = step
            at = shown.get((ad, request))
            if at and at[1] is not None and at[0] >= now - WINDOW_MS:
                day = (now - late) // DAY_MS
                paid[ad, day] = paid.get((ad, day), 0) + at[1]
                at[1] = None
            log.happens(click(ad, str(request), now - late), append_ms=now)
        elif step[0] == "set":
            _, ad, budget, hours = step
            start = NOON if hours % 3 else 0
            bounds[ad] = start, NOON + (hours + 1) * HOUR_MS, budget
            log.set(ad, daily_budget=budget, start_ms=start, end_ms=bounds[ad][1])
        elif step[0] == "pass":
            now += step[1]
            # Nothing tells a Gates that time passes but an event: one of another ad, as there is in any log.
            log.happens(impression(PLAIN, f"p{now}", 0.1, now))
            shown = {key: at for key, at in shown.items() if at[0] >= now - WINDOW_MS}
        else:
            if step[0] == "restart":
                check()
            log.start(now)
        if step[0] != "restart unticked":
            check()
    check()
    last = {}
    for gate in log.written:  # crossings only
        state = gate.out_of_schedule, gate.out_of_budget
        assert state != last.get(gate.ad_id, (False, False))
        last[gate.ad_id] = state
