"""The market's order of events, and what one system's replay may and may not know."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.truncation import market as markets
from experiments.truncation.market import SAME_PAGE
from experiments.truncation.matching import EVERYTHING, Cut
from experiments.truncation.model import by_rate, smoothed, train
from experiments.truncation.replay import Replay
from experiments.truncation.settings import DAY_MS, SLOTS, Staleness
from tests.truncation_kit import TINY


@pytest.fixture(scope="module")
def drawn():
    return markets.draw(TINY, 5, Staleness())


def system(drawn, cut=EVERYTHING, truth=None, **options):
    market, own = drawn
    s = Replay(market, truth or own, cut, **options)
    s.warm_up(TINY.warm)
    s.activate(by_rate(market, smoothed(s.impressions, s.clicks)))
    return s


def test_a_user_is_at_most_once_in_a_batch_and_every_row_in_one(drawn):
    for t in (drawn[0].timeline, drawn[0].lagged, drawn[0].always_behind):
        seen = 0
        for batch in t.batches(0, TINY.days * SLOTS):
            users = t.user[batch]
            assert len(np.unique(users)) == len(users)
            assert len(np.unique(t.slot[batch])) == 1
            seen += len(users)
        assert seen == len(t.user)


def test_a_lag_moves_a_request_before_the_event_of_its_page_and_nothing_else(drawn):
    market = drawn[0]
    now, behind = market.timeline, market.always_behind
    for user in range(market.users):
        a, b = (t.request[t.user == user].tolist() for t in (now, behind))
        i = swapped = 0
        while i < len(a):
            if a[i] == b[i]:
                i += 1
                continue
            assert (a[i], a[i + 1]) == (-1, b[i])
            assert b[i + 1] == -1
            times = now.time_ms[now.user == user]
            assert times[i] == times[i + 1]
            i, swapped = i + 2, swapped + 1
    few = (now.request != market.lagged.request).sum()
    many = (now.request != behind.request).sum()
    assert 0 < few < many
    assert SAME_PAGE > 0


def test_slower_lists_see_fewer_events():
    fast, slow = (markets.draw(TINY, 5, Staleness(p, 3 * p))[0] for p in (1.0, 500.0))
    late = [(m.timeline.request != m.lagged.request).sum() for m in (fast, slow)]
    assert late[0] < late[1]


class Oracle:
    """A truth that can do nothing but decide clicks."""

    def __init__(self, every: int) -> None:
        self.every = every

    def clicks(self, users, ads, requests, noise):
        return requests % self.every == 0


def test_the_truth_decides_clicks_and_nothing_else(drawn):
    a = system(drawn, truth=Oracle(3))
    a.run(TINY.warm, TINY.warm + 1)
    request, clicked = a.log.column("request"), a.log.column("clicked")
    shown = a.log.column("ad") >= 0
    np.testing.assert_array_equal(clicked, (request % 3 == 0) & shown)


def test_the_same_seed_gives_the_same_log_and_other_noise_another(drawn):
    logs = []
    for noise in (0, 0, 1):
        s = system(drawn, Cut("impact", 24, 4), noise=noise)
        s.run(TINY.warm, TINY.days)
        logs.append([s.log.column(n) for n in ("request", "ad", "clicked", "paid")])
    for a, b in zip(logs[0], logs[1], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(logs[0][2], logs[2][2])


def test_a_request_is_answered_once_and_money_is_paid_for_clicks_alone(drawn):
    s = system(drawn)
    s.run(TINY.warm, TINY.days)
    request, paid, clicked = (s.log.column(n) for n in ("request", "paid", "clicked"))
    first = TINY.warm * SLOTS
    t = drawn[0].timeline
    asked = t.request[(t.request >= 0) & (t.slot >= first)]
    np.testing.assert_array_equal(np.sort(request), np.sort(asked))
    assert (paid[~clicked.astype(bool)] == 0).all()
    assert paid.sum() > 0


def test_a_fork_leaves_its_past_as_it_was(drawn):
    s = system(drawn)
    s.run(TINY.warm, TINY.warm + 1)
    before = s.states.item_w.copy(), s.impressions.copy(), len(s.log.request)
    other = s.fork(Cut("bid", 24, 4))
    other.activate(s.model)
    other.run(TINY.warm + 1, TINY.days)
    np.testing.assert_array_equal(s.states.item_w, before[0])
    np.testing.assert_array_equal(s.impressions, before[1])
    assert len(s.log.request) == before[2]


def test_what_the_cut_offs_keep_out_is_counted_against_everything(drawn):
    whole, cut = system(drawn), system(drawn, Cut("impact", 8, 2))
    for s in (whole, cut):
        s.run(TINY.warm, TINY.days, count=True)
    assert whole.wanted.sum() > 0
    assert whole.dropped.sum() == 0
    assert 0 < cut.dropped.sum() <= cut.wanted.sum()


@pytest.mark.parametrize("near_line", [True, False])
def test_near_line_matches_by_the_stored_tower_and_online_by_that_of_the_moment(drawn, near_line, monkeypatch):
    market, _ = drawn
    start = system(drawn)
    start.run(TINY.warm, TINY.warm + 1)
    model = train(replace(market, sizes=replace(TINY, epochs=20)), start.log.logged(), 1)
    other = start.fork(EVERYTHING, near_line=near_line)
    other.activate(model)
    real, of_the_moment = other.matcher.match, []

    def spying(states, users, bias, vecs, k):
        now = model.user(states, users)[1]
        of_the_moment.extend((vecs == now).all(axis=1))
        return real(states, users, bias, vecs, k)

    monkeypatch.setattr(other.matcher, "match", spying)
    other.run(TINY.warm + 1, TINY.days)
    assert len(of_the_moment) == len(other.log.column("request"))
    assert all(of_the_moment) != near_line
    assert (other.refreshes > 0) == near_line


def test_a_tower_is_refreshed_after_few_changes_and_once_a_day(drawn):
    s = system(drawn)
    s.run(TINY.warm, TINY.days)
    assert (s._changes < np.minimum(8, 1 + s._total // 4)).all()
    last = np.zeros(drawn[0].users, np.int64)
    np.maximum.at(last, s.log.column("user"), s.log.column("time_ms"))
    assert (last - s._refreshed_ms < DAY_MS).all()


def test_a_model_learns_what_is_clicked_from_the_log_alone(drawn):
    market, _ = drawn

    class Fans:
        def clicks(self, users, ads, requests, noise):
            return ads % 2 == 0

    s = system(drawn, truth=Fans())
    s.run(TINY.warm, TINY.days)
    logged = s.log.logged()
    model = train(replace(market, sizes=replace(TINY, epochs=40)), logged, 1)
    bias, vecs = model.user(s.states, logged.user)
    rate = model.click_rate(bias, vecs, logged.ad[:, None])[:, 0]
    assert rate[logged.clicked].mean() > 1.5 * rate[~logged.clicked].mean()
    assert abs(rate.mean() - logged.clicked.mean()) < 0.15
