"""What is sent: one class a kind of call, its requests made beforehand from seeded draws over a population.

GetMatches, Score and Search are sent as bytes through gRPC alone, so that the generator costs little; every 64th
answer is parsed and checked. The flows go through the front ends of `examples/`, whole.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from examples import ad_frontend, search_frontend
from loadtest.engine import Pending
from vitrine import channels
from vitrine.api.ann.v1 import ann_pb2
from vitrine.api.ctr.v1 import ctr_pb2
from vitrine.api.features.v1 import features_pb2
from vitrine.api.matching.v1 import matching_pb2
from vitrine.channels import Security
from vitrine.client import AnnClient, CtrClient, MatchingClient
from vitrine.runtime import kafka

CHECKED = 64  # one answer in this many is parsed
REQUESTS = 1024  # distinct requests, sent in turn
CONTEXTS = 64  # users whose features Score requests carry
SCORED = 200  # candidates a Score call
K = 50
FOUND = 10
TIMEOUT_S = 2.0
FLOW_THREADS = 64


@dataclass(frozen=True)
class Population:
    """Ids to draw from, and pictures to search by."""

    users: NDArray[np.uint64]
    ads: NDArray[np.uint64]
    pictures: tuple[bytes, ...] = ()

    @staticmethod
    def of_market(folder: Path) -> "Population":
        """Users, ads and test photos of a market folder (docs/data.md)."""

        def ids(table: str, column: str) -> NDArray[np.uint64]:
            return np.asarray(pq.read_table(folder / table, columns=[column])[column], dtype=np.uint64)

        photos = pq.read_table(folder / "images.parquet", columns=["split", "image"])
        held_out = zip(photos["split"].to_pylist(), photos["image"].to_pylist(), strict=True)
        pictures = tuple(image for split, image in held_out if split == "test")
        return Population(ids("users.parquet", "user_id"), ids("ads.parquet", "ad_id"), pictures)


@dataclass(frozen=True)
class Targets:
    """Where calls go; "" where a kind is not driven. `topic` is of user-events, under `kafka`."""

    matching: str = ""
    ctr: str = ""
    ann: str = ""
    echo: str = ""
    kafka: str = ""
    topic: str = "user-events"


class Bytes:
    """Ready-made requests over one channel, by gRPC's futures."""

    def __init__(self, method: str, target: str, requests: list[bytes], security: Security | None) -> None:
        self._channel = channels.take(target, security)
        self._call: Any = self._channel.current.unary_unary(method, None, None)
        self._requests = requests
        self.events = 0

    def send(self, number: int) -> Pending:
        request = self._requests[number % len(self._requests)]
        return self._call.future(request, timeout=TIMEOUT_S, metadata=self._channel.metadata)  # type: ignore[no-any-return]

    def wrong(self, number: int, answer: bytes) -> str | None:
        return None if number % CHECKED else self.check(answer)

    def check(self, answer: bytes) -> str | None:
        return None if answer else "empty answer"


class GetMatches(Bytes):
    """Lists of users drawn at random, K ads each."""

    def check(self, answer: bytes) -> str | None:
        response = matching_pb2.GetMatchesResponse.FromString(answer)
        if response.source != matching_pb2.SOURCE_STORED:
            return f"wrong answer: {matching_pb2.Source.Name(response.source)}"
        return None if response.ad_ids else "wrong answer: no ads"


class Score(Bytes):
    """SCORED ads drawn at random, for users' real features."""

    def check(self, answer: bytes) -> str | None:
        scores = len(ctr_pb2.ScoreResponse.FromString(answer).pctrs)
        return None if scores == SCORED else f"wrong answer: {scores} scores"


class Search(Bytes):
    """Random unit vectors, FOUND items each."""

    def check(self, answer: bytes) -> str | None:
        items = len(ann_pb2.SearchResponse.FromString(answer).item_ids)
        return None if items == FOUND else f"wrong answer: {items} items"


class Flow(ABC):
    """A front end's whole flow on threads, with the client library a front end uses."""

    def __init__(self) -> None:
        self.events = 0
        self._pool = ThreadPoolExecutor(FLOW_THREADS, thread_name_prefix="flow")

    def send(self, number: int) -> Pending:
        return self._pool.submit(self.run, number)

    @abstractmethod
    def run(self, number: int) -> str | None:
        """One flow, on a thread of its own: what was wrong, None where nothing was."""

    def wrong(self, number: int, answer: str | None) -> str | None:
        return answer


class AdFlow(Flow):
    """GetMatches -> Score -> auction -> impression, and a click where it is drawn."""

    def __init__(self, targets: Targets, users: NDArray[np.uint64], security: Security | None) -> None:
        super().__init__()
        self._users = users.tolist()
        self._topic = targets.topic
        self._matching = MatchingClient(targets.matching, timeout_s=TIMEOUT_S, security=security)
        self._ctr = CtrClient(targets.ctr, timeout_s=TIMEOUT_S, security=security)
        self._producer = kafka.producer(targets.kafka)

    def run(self, number: int) -> str | None:
        user = self._users[number % len(self._users)]
        sale = ad_frontend.run_auction(self._matching, self._ctr, self._producer, user, k=K, topic=self._topic)
        if sale is None:
            return "wrong answer: nothing sold"
        self.events += 1 + sale.clicked
        return None


class PhotoFlow(Flow):
    """A photo in, the nearest items out."""

    def __init__(self, targets: Targets, pictures: tuple[bytes, ...], security: Security | None) -> None:
        super().__init__()
        if not pictures:
            raise ValueError("the population has no pictures; give --market")
        self._pictures = pictures
        self._ann = AnnClient(targets.ann, timeout_s=TIMEOUT_S, security=security)

    def run(self, number: int) -> str | None:
        found = search_frontend.run_search(self._ann, self._pictures[number % len(self._pictures)], FOUND)
        return None if len(found.ids[0]) == FOUND else f"wrong answer: {len(found.ids[0])} items"


KINDS = ("getmatches", "score", "search", "echo", "ad_flow", "photo_flow")
_METHODS = {
    "getmatches": "/vitrine.api.matching.v1.MatchingService/GetMatches",
    "score": "/vitrine.api.ctr.v1.CtrService/Score",
    "search": "/vitrine.api.ann.v1.AnnService/Search",
    "echo": "/vitrine.loadtest.Echo/Call",
}


def build(kind: str, targets: Targets, people: Population, *, seed: int, security: Security | None) -> Bytes | Flow:
    """The calls of a kind. Asks a server for what its requests need: users' features, or the index's dimensions."""
    rng = np.random.default_rng(seed)
    users = rng.choice(people.users, REQUESTS)
    if kind == "ad_flow":
        return AdFlow(targets, users, security)
    if kind == "photo_flow":
        return PhotoFlow(targets, people.pictures, security)
    makers: Mapping[str, Any] = {
        "getmatches": (GetMatches, targets.matching, lambda: _getmatches(users)),
        "score": (Score, targets.ctr, lambda: _score(targets, users, people.ads, rng, security)),
        "search": (Search, targets.ann, lambda: _search(targets, rng, security)),
        "echo": (Bytes, targets.echo, lambda: _getmatches(users)),
    }
    calls, target, requests = makers[kind]
    return calls(_METHODS[kind], target, requests(), security)  # type: ignore[no-any-return]


def _getmatches(users: NDArray[np.uint64]) -> list[bytes]:
    return [matching_pb2.GetMatchesRequest(user_id=user, k=K).SerializeToString() for user in users.tolist()]


def _score(
    targets: Targets,
    users: NDArray[np.uint64],
    ads: NDArray[np.uint64],
    rng: np.random.Generator,
    security: Security | None,
) -> list[bytes]:
    """Users' features as GetMatches gives them; without a matching server, of users of whom nothing is known."""
    contexts = [features_pb2.UserContext()]
    if targets.matching:
        with MatchingClient(targets.matching, timeout_s=TIMEOUT_S, security=security) as matching:
            known = [matching.get_matches(user, k=1).context for user in users[:CONTEXTS].tolist()]
        contexts = [features_pb2.UserContext(keys=c.keys.tolist(), weights=c.weights.tolist()) for c in known]
    return [
        ctr_pb2.ScoreRequest(context=contexts[i % len(contexts)], ad_ids=ad_ids).SerializeToString()
        for i, ad_ids in enumerate(rng.choice(ads, (REQUESTS, SCORED)).tolist())
    ]


def _search(targets: Targets, rng: np.random.Generator, security: Security | None) -> list[bytes]:
    with AnnClient(targets.ann, timeout_s=TIMEOUT_S, security=security) as ann:
        dim = ann.stats().dim
    vectors = rng.normal(size=(REQUESTS, dim)).astype("<f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [ann_pb2.SearchRequest(vectors=v.tobytes(), k=FOUND).SerializeToString() for v in vectors]
