"""The example's auction, against second price said in words."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from examples.ad_frontend import auction, run_auction
from vitrine.api.events.v1.events_pb2 import UserEvent
from vitrine.client import Matches, Scores, Source, UserContext
from vitrine.runtime import tracing

NOBODY = UserContext(np.empty(0, np.uint64), np.empty(0, np.float32))
bids = st.floats(1 / 64, 100, width=32)
pctrs = st.floats(0, 1, width=32)


def matches_of(rows):
    ads, bid = np.arange(1, len(rows) + 1, dtype=np.uint64), np.array([b for b, _ in rows], np.float32)
    return Matches(ads, bid, bid, ads + np.uint64(100), 5, 1, Source.STORED, "c1", "t1", NOBODY)


@given(st.lists(st.tuples(bids, pctrs), max_size=8))
def test_the_winner_is_worth_most_and_pays_the_least_bid_that_still_wins(rows):
    sold = auction(matches_of(rows), np.array([p for _, p in rows], np.float32))
    worth = [float(b) * float(p) for b, p in rows]
    if not any(worth):
        assert sold is None
        return
    winner, price = sold
    assert worth[winner] == max(worth)
    assert winner == worth.index(max(worth)), "equal worth: the lower ad id"
    assert 0 <= price <= rows[winner][0]
    others = max((w for row, w in enumerate(worth) if row != winner), default=0.0)
    np.testing.assert_allclose(price * rows[winner][1], others, rtol=1e-6)


class Front:
    """The three services of one page view: matches, scores, and a log of events."""

    def __init__(self, rows):
        self.rows, self.sent = rows, []

    def get_matches(self, user_id, k, *, placement_group, crowds):
        self.asked = (placement_group, list(crowds))
        return matches_of(self.rows[:k])

    def score(self, context, ads):
        return Scores(np.array([p for _, p in self.rows], np.float32), "m1", 0)

    def send(self, topic, *, key, value, headers):
        self.sent.append((topic, key, UserEvent.FromString(value), dict(headers)))


def test_the_impression_and_the_click_are_events_of_one_request():
    front = Front([(1.0, 0.5), (2.0, 0.5)])
    sale = run_auction(front, front, front, 17, topic="eu.user-events", click=True)
    assert (sale.ad, sale.crowd, sale.bid, sale.price) == (2, 102, 2.0, 1.0)
    (topic, key, shown, headers), (_, _, clicked, _) = front.sent
    assert (topic, key, shown.user_id) == ("eu.user-events", b"17", 17)
    assert (shown.impression.ad_id, shown.impression.price, shown.impression.pctr) == (2, 1.0, 0.5)
    assert shown.impression.request_id == clicked.click.request_id == sale.request_id
    assert sale.request_id in headers["traceparent"].decode()


def test_a_page_without_a_sale_sends_nothing():
    for rows in ([], [(1.0, 0.0)]):
        front = Front(rows)
        assert run_auction(front, front, front, 17) is None
        assert front.sent == []


def test_a_traced_page_is_one_trace_whose_id_is_the_requests(tmp_path):
    front = Front([(1.0, 0.5)])
    tracing.setup(f"file://{tmp_path}/spans", 1.0, "ad-frontend")
    try:
        sales = [run_auction(front, front, front, 17, click=True) for _ in range(2)]
    finally:
        tracing.close()
    assert sales[0].request_id != sales[1].request_id
    for sale, sent in zip(sales, (front.sent[:2], front.sent[2:]), strict=True):
        for _, _, _, headers in sent:
            trace_id, flags = headers["traceparent"].decode().split("-")[1::2]
            assert trace_id == sale.request_id
            assert int(flags, 16) & 1, "not marked as sampled"


def test_an_untraced_page_asks_nobody_to_record_it():
    front = Front([(1.0, 0.5)])
    run_auction(front, front, front, 17)
    assert front.sent[0][3]["traceparent"].endswith(b"-00")


def test_the_page_says_where_the_ad_stands_and_what_it_knows_of_the_user():
    front = Front([(1.0, 0.5)])
    run_auction(front, front, front, 17, placement_group=1, crowds=[40, 7])
    assert front.asked == (1, [40, 7])
