"""An ad front end: a user's ads from GetMatches, scored, sold in a second-price auction, reported to Kafka."""

import argparse
import os
import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import KafkaProducer

from vitrine import trace_context
from vitrine.api.events.v1.events_pb2 import AdClick, AdImpression, UserEvent
from vitrine.client import CtrClient, Matches, MatchingClient, Security
from vitrine.runtime import tracing
from vitrine.runtime.kafka import key_of, producer

EXAMPLES = """examples:
  python examples/ad_frontend.py --matching localhost:7002 --ctr localhost:7003 --kafka kafka://localhost:9092 \\
    --user 17                  the click is drawn with the probability that the ad was sold at
    --user 17 --click          the user clicks
    --user 17 --crowd 40       a crowd that the page knows the user to be in, for when there is no list yet
    --user 17 --topic eu.user-events       under VITRINE_NAMESPACE=eu
VITRINE_CLIENT_CA, _CERT, _KEY and _TOKEN_FILE say who calls (docs/security.md).
"""


@dataclass(frozen=True)
class Sale:
    """One ad shown. Bid and price are currency units a click; pctr is the click probability it was sold at."""

    ad: int
    crowd: int
    bid: float
    pctr: float
    price: float
    request_id: str
    clicked: bool


def auction(matches: Matches, pctrs: np.ndarray) -> tuple[int, float] | None:
    """Second price over bid x pCTR: (winner's row, what it pays a click), or None where nothing is worth showing.

    The winner pays the least bid that would still have won: the second's bid x pCTR over its own pCTR.
    """
    worth = matches.bids.astype(np.float64) * pctrs
    order = np.lexsort((matches.ads, -worth))  # equal worth: the lower ad id
    if not len(order) or worth[order[0]] <= 0:
        return None
    winner, second = order[0], worth[order[1]] if len(order) > 1 else 0.0
    return int(winner), float(min(second / pctrs[winner], matches.bids[winner]))


@tracing.span("ad page")
def run_auction(
    matching: MatchingClient, ctr: CtrClient, events: KafkaProducer, user_id: int,
    *, k: int = 50, topic: str = "user-events", click: bool | None = None, rng: random.Random | None = None,
    placement_group: int = 0, crowds: Sequence[int] = (),
) -> Sale | None:  # fmt: skip
    """One page view. `click` None draws the click with the probability that the ad was sold at.

    crowds: what the page itself knows of the user; a user without a list gets ads of these first.
    Its calls and events are one trace, and the trace's id is the request's, where this process is traced.
    """
    matches = matching.get_matches(user_id, k, placement_group=placement_group, crowds=crowds)
    pctrs = ctr.score(matches.context, matches.ads).pctrs if len(matches.ads) else np.empty(0)
    sold = auction(matches, pctrs)
    if sold is None:
        return None
    row, price = sold
    ad, pctr = int(matches.ads[row]), float(pctrs[row])
    clicked = (rng or random).random() < pctr if click is None else click
    request_id = trace_context.ids().get("trace_id") or secrets.token_hex(16)
    # Untraced, the events carry the request's id all the same, marked as not to be recorded.
    trace = trace_context.headers() or [("traceparent", f"00-{request_id}-{secrets.token_hex(8)}-00".encode())]

    def send(**kind: Any) -> None:
        event = UserEvent(user_id=user_id, time_ms=int(time.time() * 1000), **kind)
        events.send(topic, key=key_of(user_id), value=event.SerializeToString(), headers=trace)

    send(impression=AdImpression(ad_id=ad, price=price, pctr=pctr, request_id=request_id))
    if clicked:
        send(click=AdClick(ad_id=ad, request_id=request_id))
    return Sale(ad, int(matches.crowds[row]), float(matches.bids[row]), pctr, price, request_id, clicked)


def main() -> None:
    layout = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=layout)
    parser.add_argument("--matching", required=True, help="address of the matching service")
    parser.add_argument("--ctr", required=True, help="address of the ctr service")
    kafka_url = os.environ.get("VITRINE_KAFKA_URL")  # one with a password is safer there than among the arguments
    parser.add_argument("--kafka", default=kafka_url, required=not kafka_url, help="kafka://host:port")
    parser.add_argument("--user", type=int, required=True, help="the user who opens the page")
    parser.add_argument("--topic", default="user-events", help="topic of the events (default: %(default)s)")
    parser.add_argument("--placement-group", type=int, default=0, help="where the ad stands (default: %(default)s)")
    parser.add_argument("--crowd", type=int, action="append", default=[], help="the user is in it; repeatable")
    parser.add_argument("--click", action="store_true", default=None, help="click; else drawn by its odds")
    args = parser.parse_args()
    endpoint, ratio = os.environ.get("VITRINE_OTLP_ENDPOINT", ""), os.environ.get("VITRINE_TRACE_RATIO", "1")
    tracing.setup(endpoint, float(ratio), "ad-frontend")
    security = Security.from_environment()
    with (
        MatchingClient(args.matching, security=security) as matching,
        CtrClient(args.ctr, security=security) as ctr,
    ):
        events = producer(args.kafka)
        sale = run_auction(
            matching, ctr, events, args.user,
            topic=args.topic, click=args.click, placement_group=args.placement_group, crowds=args.crowd,
        )  # fmt: skip
        events.close()  # waits for the brokers' acknowledgements
    tracing.close()
    if sale is None:
        raise SystemExit("no ad is worth showing")
    deed = "clicked" if sale.clicked else "not clicked"
    print(f"user {args.user} sees ad {sale.ad} of crowd {sale.crowd}, {deed}")
    print(f"bid {sale.bid:.3f}, pCTR {sale.pctr:.4f}; by second price it pays {sale.price:.3f} a click")


if __name__ == "__main__":
    main()
