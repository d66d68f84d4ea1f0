"""What front ends import: numpy in, numpy out, over gRPC; needs grpcio, protobuf and numpy alone.

    with MatchingClient("localhost:7002") as matching, CtrClient("localhost:7003") as ctr:
        matches = matching.get_matches(user_id=17, k=20)
        scores = ctr.score(matches.context, matches.ads)

Clients are thread-safe and cheap: those of one target and security share one channel. Calls that end in UNAVAILABLE
are tried up to four times within their deadline: a test holds that every method here may be repeated without harm.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vitrine.ann_client import AnnClient, IndexStats, Items, SearchResult, ShardAnswer, Written
from vitrine.api.ctr.v1 import ctr_pb2, ctr_pb2_grpc
from vitrine.api.features.v1 import features_pb2
from vitrine.api.matching.v1 import matching_pb2, matching_pb2_grpc
from vitrine.arguments import count, ids, one_id
from vitrine.calls import (
    Client,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    VitrineError,
)
from vitrine.channels import Security
from vitrine.filters import AttributeValue, Filter, in_range, items, one_of

__all__ = [
    "AnnClient",
    "AttributeValue",
    "CtrClient",
    "DeadlineExceededError",
    "Explanation",
    "Explanations",
    "Filter",
    "IndexStats",
    "InvalidArgumentError",
    "Items",
    "Matches",
    "MatchingClient",
    "NotFoundError",
    "PermissionDeniedError",
    "Rematch",
    "ResourceExhaustedError",
    "Scores",
    "SearchResult",
    "Security",
    "ShardAnswer",
    "Source",
    "UnauthenticatedError",
    "UnavailableError",
    "UserContext",
    "Verdict",
    "VitrineError",
    "Written",
    "in_range",
    "items",
    "one_of",
]


@dataclass(frozen=True, slots=True)
class UserContext:
    """A user's features: keys uint64 (n,), weights float32 (n,). Empty for an unknown user."""

    keys: NDArray[np.uint64]
    weights: NDArray[np.float32]


class Source(enum.StrEnum):
    """Where a list came from; UNKNOWN is a server newer than this client."""

    UNKNOWN = "unknown"

    STORED = "stored"
    NO_LIST = "fallback: no list yet"
    STORE_LOST = "fallback: store lost"
    TOO_OLD = "fallback: list too old"


class Verdict(enum.StrEnum):
    """How an ad stands with a user; UNKNOWN is a server newer than this client."""

    UNKNOWN = "unknown"

    LISTED = "listed"
    BELOW_FLOOR = "below the floor"
    NO_SHARED_CROWD = "no shared crowd"
    UNKNOWN_AD = "unknown ad"
    PAUSED = "paused"
    OUT_OF_SCHEDULE = "out of schedule"
    OUT_OF_BUDGET = "out of budget"
    NEGATIVE_CROWD = "negative crowd"
    BLOCKED = "blocked by the user"
    FREQUENCY_CAP = "frequency cap"
    OTHER_PLACEMENT = "other placement"
    ADVERTISER_CAP = "advertiser cap"
    OWED = "owed a rematch"


@dataclass(frozen=True, slots=True)
class Matches:
    """A user's most valuable ads, best first; the arrays are parallel.

    ads:      uint64 (n,)
    values:   float32 (n,), bid x pCTR, currency units an impression
    bids:     float32 (n,), currency units a click
    crowds:   uint64 (n,), the shared crowd whose bid won
    age_ms:   since the broker appended the last event that the list reflects; 0 for a fallback
    revision: the user's events that the list reflects; 0 for a fallback
    context:  the user's features as of the list, for `CtrClient.score`
    arm:      model arm of the user, "a" or "b"
    """

    ads: NDArray[np.uint64]
    values: NDArray[np.float32]
    bids: NDArray[np.float32]
    crowds: NDArray[np.uint64]
    age_ms: int
    revision: int
    source: Source
    catalog_version: str
    towers_version: str
    context: UserContext
    arm: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one ad is, or is not, in a user's list.

    rank:          position in the stored list, 1 is best; 0 where it is not listed
    shared_crowds: uint64 (n,), crowds of the user that the ad bids on, ascending
    shared_bids:   float32 (n,), those bids, currency units a click
    crowd, bid:    the bid that wins; 0 where no crowd is shared
    pctr, value:   click probability, and bid x pCTR
    negative_crowds: uint64 (n,), crowds of the user that exclude the ad, ascending
    """

    ad: int
    verdict: Verdict
    rank: int
    shared_crowds: NDArray[np.uint64]
    shared_bids: NDArray[np.float32]
    crowd: int
    bid: float
    pctr: float
    value: float
    negative_crowds: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))


@dataclass(frozen=True, slots=True)
class Explanations:
    """Explanations in the order asked, the user's crowds (uint64), and the value an ad must beat to be listed."""

    ads: list[Explanation]
    user_crowds: NDArray[np.uint64]
    floor_value: float
    catalog_version: str
    towers_version: str
    arm: str = ""


@dataclass(frozen=True, slots=True)
class Rematch:
    """A request for a list made anew: its name, and its partition of `user-events` and offset there."""

    request_id: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Click probabilities float32 (n,), in the order of the ads; `unknown` of these the model does not know."""

    pctrs: NDArray[np.float32]
    version: str
    unknown: int


class MatchingClient(Client):
    """Stored ad lists."""

    @cached_property
    def _stub(self) -> matching_pb2_grpc.MatchingServiceStub:
        return matching_pb2_grpc.MatchingServiceStub(self._channel)

    _sources: ClassVar[dict[int, Source]] = {
        matching_pb2.SOURCE_STORED: Source.STORED,
        matching_pb2.SOURCE_FALLBACK_NO_LIST: Source.NO_LIST,
        matching_pb2.SOURCE_FALLBACK_STORE_LOST: Source.STORE_LOST,
        matching_pb2.SOURCE_FALLBACK_TOO_OLD: Source.TOO_OLD,
    }
    _verdicts: ClassVar[dict[int, Verdict]] = {
        matching_pb2.VERDICT_LISTED: Verdict.LISTED,
        matching_pb2.VERDICT_BELOW_FLOOR: Verdict.BELOW_FLOOR,
        matching_pb2.VERDICT_NO_SHARED_CROWD: Verdict.NO_SHARED_CROWD,
        matching_pb2.VERDICT_UNKNOWN_AD: Verdict.UNKNOWN_AD,
        matching_pb2.VERDICT_PAUSED: Verdict.PAUSED,
        matching_pb2.VERDICT_OUT_OF_SCHEDULE: Verdict.OUT_OF_SCHEDULE,
        matching_pb2.VERDICT_OUT_OF_BUDGET: Verdict.OUT_OF_BUDGET,
        matching_pb2.VERDICT_NEGATIVE_CROWD: Verdict.NEGATIVE_CROWD,
        matching_pb2.VERDICT_BLOCKED: Verdict.BLOCKED,
        matching_pb2.VERDICT_FREQUENCY_CAP: Verdict.FREQUENCY_CAP,
        matching_pb2.VERDICT_OTHER_PLACEMENT: Verdict.OTHER_PLACEMENT,
        matching_pb2.VERDICT_ADVERTISER_CAP: Verdict.ADVERTISER_CAP,
        matching_pb2.VERDICT_OWED: Verdict.OWED,
    }

    def get_matches(
        self,
        user_id: int,
        k: int = 50,
        *,
        placement_group: int = 0,
        excluded_ads: Iterable[int] | NDArray[np.uint64] = (),
        excluded_advertisers: Iterable[int] | NDArray[np.uint64] = (),
        max_age_ms: int = 0,
        crowds: Iterable[int] | NDArray[np.uint64] = (),
        timeout_s: float | None = None,
    ) -> Matches:
        """The user's k most valuable ads; a user without a list, or a store that is lost, gets the fallback.

        k:                    1 to the served length of a list, 100 by default
        placement_group:      0 to 3: which of the user's rankings
        excluded_ads, excluded_advertisers: left out of the answer; at most 1,000 ads and 100 advertisers
        max_age_ms:           a list whose last event is older is not served, the fallback is; 0: any age
        crowds:               what the caller knows of the user: the fallback takes ads of these first; at most 64

        Raises InvalidArgumentError naming the field.
        """
        request = matching_pb2.GetMatchesRequest(
            user_id=one_id("user_id", user_id),
            k=count("k", k),
            excluded_ad_ids=ids("excluded_ad_ids", excluded_ads),
            excluded_advertiser_ids=ids("excluded_advertiser_ids", excluded_advertisers),
            max_age_ms=one_id("max_age_ms", max_age_ms),
            placement_group=count("placement_group", placement_group),
            crowd_ids=ids("crowd_ids", crowds),
        )
        r = self._call(self._stub.GetMatches, request, timeout_s)
        return Matches(
            ads=np.array(r.ad_ids, np.uint64),
            values=np.array(r.values, np.float32),
            bids=np.array(r.bids, np.float32),
            crowds=np.array(r.crowd_ids, np.uint64),
            age_ms=int(r.age_ms),
            revision=int(r.revision),
            source=self._sources.get(r.source, Source.UNKNOWN),
            catalog_version=r.catalog_version,
            towers_version=r.towers_version,
            context=UserContext(np.array(r.context.keys, np.uint64), np.array(r.context.weights, np.float32)),
            arm=r.arm,
        )

    def rematch(self, user_id: int, *, timeout_s: float | None = None) -> Rematch:
        """Has the user's list made anew from all eligible pairs; returns once the request is in the log."""
        request = matching_pb2.RematchRequest(user_id=one_id("user_id", user_id))
        r = self._call(self._stub.Rematch, request, timeout_s)
        return Rematch(r.request_id, r.partition, r.offset)

    def explain(
        self,
        user_id: int,
        ad_ids: Iterable[int] | NDArray[np.uint64],
        *,
        placement_group: int = 0,
        timeout_s: float | None = None,
    ) -> Explanations:
        """Why each of 1 to 1,000 ads is, or is not, in the user's list of a placement group.

        Raises NotFoundError where the user has no state, InvalidArgumentError naming the field.
        """
        request = matching_pb2.ExplainRequest(
            user_id=one_id("user_id", user_id),
            ad_ids=ids("ad_ids", ad_ids),
            placement_group=count("placement_group", placement_group),
        )
        r = self._call(self._stub.Explain, request, timeout_s)
        ads = [
            Explanation(
                ad=int(e.ad_id),
                verdict=self._verdicts.get(e.verdict, Verdict.UNKNOWN),
                rank=e.rank,
                shared_crowds=np.array(e.shared_crowd_ids, np.uint64),
                shared_bids=np.array(e.shared_bids, np.float32),
                crowd=int(e.crowd_id),
                bid=e.bid,
                pctr=e.pctr,
                value=e.value,
                negative_crowds=np.array(e.negative_crowd_ids, np.uint64),
            )
            for e in r.explanations
        ]
        crowds = np.array(r.user_crowd_ids, np.uint64)
        return Explanations(ads, crowds, r.floor_value, r.catalog_version, r.towers_version, r.arm)


class CtrClient(Client):
    """Click-rate scoring."""

    @cached_property
    def _stub(self) -> ctr_pb2_grpc.CtrServiceStub:
        return ctr_pb2_grpc.CtrServiceStub(self._channel)

    def score(
        self, context: UserContext, ad_ids: Iterable[int] | NDArray[np.uint64], *, timeout_s: float | None = None
    ) -> Scores:
        """Click probability of each of 1 to 5,000 ads for one user.

        context: as `MatchingClient.get_matches` returns it; empty for an unknown user.
        Raises InvalidArgumentError naming the field, UnavailableError while no model is loaded.
        """
        user = features_pb2.UserContext(
            keys=ids("context.keys", context.keys), weights=np.asarray(context.weights, np.float32).tolist()
        )
        request = ctr_pb2.ScoreRequest(context=user, ad_ids=ids("ad_ids", ad_ids))
        r = self._call(self._stub.Score, request, timeout_s)
        return Scores(np.array(r.pctrs, np.float32), r.version, r.unknown_ads)
