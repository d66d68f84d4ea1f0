"""Locust: every service alone, and both front ends' flows, through the client library that front ends use.

    locust -f loadtest/locustfile.py --headless --users 50 --spawn-rate 10 --run-time 60s SearchFrontend AdFrontend

Where the servers are, and whom to be, stands in the environment: VITRINE_MATCHING_ADDRESS, VITRINE_CTR_ADDRESS,
VITRINE_ANN_ADDRESS (gRPC targets), VITRINE_KAFKA_URL and VITRINE_NAMESPACE for events, VITRINE_CLIENT_* for TLS and
token. VITRINE_LOAD_USERS and _ADS are how many ids there are, from 1 and VITRINE_LOAD_FIRST_AD; by default as
`vitrine data simulate` makes them.
Users of locust wait for their answers, so a stall hides the calls that were not made meanwhile: latencies under a
given rate are `loadtest.openloop`'s to measure (docs/loadtest.md).
"""

import io
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from grpc.experimental import gevent as grpc_gevent
from locust import User, between, events, task
from PIL import Image

from examples import ad_frontend, search_frontend
from vitrine.channels import Security
from vitrine.client import AnnClient, CtrClient, MatchingClient, UserContext, VitrineError
from vitrine.data.world import FIRST_AD_ID
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics

grpc_gevent.init_gevent()  # a call of grpc's holds up its greenlet alone

USERS = int(os.environ.get("VITRINE_LOAD_USERS") or 5_000)
ADS = int(os.environ.get("VITRINE_LOAD_ADS") or 2_000)
FIRST_AD = int(os.environ.get("VITRINE_LOAD_FIRST_AD") or FIRST_AD_ID)
TIMEOUT_S = 5.0


def noise(seed: int) -> bytes:
    """A small PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()


PICTURES = [noise(seed) for seed in range(16)]


def address(service: str) -> str:
    """The gRPC target of a service."""
    name = f"VITRINE_{service.upper()}_ADDRESS"
    return os.environ.get(name) or f"localhost:{ {'ann': 7001, 'matching': 7002, 'ctr': 7003}[service] }"


class Caller(User):
    """A user of locust with connections of its own and a random number generator of its own."""

    abstract = True
    wait_time = between(0.05, 0.15)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.rng = np.random.default_rng()
        self.options: dict[str, Any] = {
            "timeout_s": TIMEOUT_S,
            "security": Security.from_environment(),
            "own_connection": True,
        }

    def user_id(self) -> int:
        return int(self.rng.integers(1, USERS + 1))

    def measured(self, name: str, call: Callable[[], Any]) -> Any:
        """What the call returns, None where it failed; locust is told either way."""
        began, answer, failure = time.perf_counter(), None, None
        try:
            answer = call()
        except (VitrineError, AssertionError) as error:
            failure = error
        events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - began) * 1e3,
            response_length=0,
            exception=failure,
            context={},
        )
        return answer


class Matching(Caller):
    """GetMatches alone."""

    def on_start(self) -> None:
        self.matching = MatchingClient(address("matching"), **self.options)

    @task
    def get_matches(self) -> None:
        def call() -> None:
            assert len(self.matching.get_matches(self.user_id(), k=50).ads), "no ads"

        self.measured("GetMatches", call)


class Scoring(Caller):
    """Score alone: 200 ads for a user of whom nothing is known."""

    def on_start(self) -> None:
        self.ctr = CtrClient(address("ctr"), **self.options)
        self.nobody = UserContext(np.empty(0, np.uint64), np.empty(0, np.float32))

    @task
    def score(self) -> None:
        ads = self.rng.integers(FIRST_AD, FIRST_AD + ADS, 200).astype(np.uint64)
        self.measured("Score", lambda: self.ctr.score(self.nobody, ads))


class Searching(Caller):
    """Search alone, by vectors."""

    def on_start(self) -> None:
        self.ann = AnnClient(address("ann"), **self.options)
        stats = self.measured("Stats", self.ann.stats)
        self.dim = stats.dim if stats else 0

    @task
    def search(self) -> None:
        vector = self.rng.normal(size=self.dim or 1)
        self.measured("Search", lambda: self.ann.search(vector, k=10))


class SearchFrontend(Caller):
    """The search front end, whole: a picture in, the nearest items out. The pictures are noise."""

    def on_start(self) -> None:
        self.ann = AnnClient(address("ann"), **self.options)

    @task
    def search(self) -> None:
        picture = PICTURES[int(self.rng.integers(len(PICTURES)))]

        def call() -> None:
            assert len(search_frontend.run_search(self.ann, picture).ids[0]), "no items"

        self.measured("search front end", call)


class AdFrontend(Caller):
    """The ad front end, whole: GetMatches, Score, auction, events to Kafka."""

    producer: Any = None  # one a process: it has threads and batches of its own

    def on_start(self) -> None:
        self.matching = MatchingClient(address("matching"), **self.options)
        self.ctr = CtrClient(address("ctr"), **self.options)
        self.topic = qualify(os.environ.get("VITRINE_NAMESPACE", ""), topics.USER_EVENTS)
        if AdFrontend.producer is None:
            AdFrontend.producer = kafka.producer(os.environ["VITRINE_KAFKA_URL"])

    @task
    def page_view(self) -> None:
        def call() -> None:
            sale = ad_frontend.run_auction(
                self.matching, self.ctr, AdFrontend.producer, self.user_id(), topic=self.topic
            )
            assert sale is not None, "nothing sold"

        self.measured("ad front end", call)
