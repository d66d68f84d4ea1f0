"""MatchingService: a list by one Redis read, a fallback where there is none, and why an ad ranks as it does."""

import time
from collections.abc import Callable, Iterable

import grpc
from prometheus_client import Counter, Histogram
from redis.exceptions import ResponseError

from services.matching import requests
from services.matching.explain import explain
from services.matching.rematch import RematchLog
from services.matching.serving import Now
from services.matching.watch import StoreWatch
from vitrine.api.matching.v1 import matching_pb2 as pb
from vitrine.api.matching.v1 import matching_pb2_grpc
from vitrine.errors import NotFoundError, UnavailableError
from vitrine.matching import answer, record, state
from vitrine.matching.events import RecordError
from vitrine.matching.record import Header
from vitrine.matching.showing import NOTHING, Excluded
from vitrine.matching.store import Store
from vitrine.runtime import logs, metrics

_PATIENCE_S = 5.0  # of a Rematch without a deadline

_log = logs.get_logger(__name__)

answers = Counter(
    "vitrine_matching_answers_total",
    "GetMatches answers by source and model arm.",
    ("source", "arm"),
    registry=metrics.REGISTRY,
)
_answered = {  # found once: labels() costs more than inc()
    (source, arm): answers.labels(name, arm) for name, source in pb.Source.items() if source for arm in "ab"
}
list_age = Histogram(
    "vitrine_matching_list_age_seconds",
    "Of lists served, since the append of the last event that they reflect.",
    buckets=(1, 10, 60, 600, 3_600, 21_600, 86_400, 604_800, 2_592_000),
    registry=metrics.REGISTRY,
)


class MatchingServicer(matching_pb2_grpc.MatchingServiceServicer):
    """Answers from the store; what may not be shown is hidden here, before any worker rewrites a list."""

    def __init__(
        self,
        now: Callable[[], Now],
        store: Store,
        watch: StoreWatch,
        rematches: RematchLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._store = store
        self._watch = watch
        self._rematches = rematches
        self._clock = clock

    def GetMatches(  # noqa: N802 (the proto's name)
        self, request: pb.GetMatchesRequest, context: grpc.ServicerContext
    ) -> pb.GetMatchesResponse:
        now = self._now()
        requests.check_matches(request, now.served, now.groups)
        excluded = NOTHING
        if request.excluded_ad_ids or request.excluded_advertiser_ids:
            excluded = Excluded(request.excluded_ad_ids, request.excluded_advertiser_ids)
        response, source = self._read(now, request, excluded)
        if source != pb.SOURCE_STORED:
            response = _fall_back(now, request, response, excluded)
        response.source = source
        _answered[source, response.arm].inc()
        return response

    def Rematch(  # noqa: N802 (the proto's name)
        self, request: pb.RematchRequest, context: grpc.ServicerContext
    ) -> pb.RematchResponse:
        requests.check_user(request.user_id)
        left_s = context.time_remaining()
        return self._rematches.append(request.user_id, _PATIENCE_S if left_s is None else min(left_s, _PATIENCE_S))

    def Explain(  # noqa: N802 (the proto's name)
        self, request: pb.ExplainRequest, context: grpc.ServicerContext
    ) -> pb.ExplainResponse:
        now = self._now()
        requests.check_explain(request, now.groups)
        held, listed = self._store.read_user(request.user_id)
        if held is None:
            raise NotFoundError(f"user {request.user_id} has no state: no event of this user was applied yet")
        user = state.decode(held)
        stored = None if listed is None else record.decode(listed, now.showing.market.catalog)
        return explain(now, user, stored, request.ad_ids, request.placement_group)

    def _read(
        self, now: Now, request: pb.GetMatchesRequest, excluded: Excluded
    ) -> tuple[pb.GetMatchesResponse, pb.Source.ValueType]:
        """The answer from the user's list, and its source; where that is a fallback, what is known of the user."""
        if self._watch.lost is not None:
            return pb.GetMatchesResponse(), pb.SOURCE_FALLBACK_STORE_LOST
        user_id = request.user_id
        try:
            held = self._store.read_list(user_id)
            if held is None:
                return pb.GetMatchesResponse(), pb.SOURCE_FALLBACK_NO_LIST
            response, header = answer.from_record(held, request.k, request.placement_group, now.showing, excluded)
        except UnavailableError as error:
            self._watch.lost = str(error)
            return pb.GetMatchesResponse(), pb.SOURCE_FALLBACK_STORE_LOST
        except (ResponseError, RecordError) as error:
            _log.error("a stored list cannot be read", user_id=user_id, reason=str(error))
            return pb.GetMatchesResponse(), pb.SOURCE_FALLBACK_NO_LIST
        if not response.ad_ids:  # a list without a single live ad is no list to serve
            return response, pb.SOURCE_FALLBACK_NO_LIST
        return self._aged(response, header, request.max_age_ms)

    def _aged(
        self, response: pb.GetMatchesResponse, header: Header, max_age_ms: int
    ) -> tuple[pb.GetMatchesResponse, pb.Source.ValueType]:
        age_ms = max(0, int(self._clock() * 1000) - header.append_ms)
        if max_age_ms and age_ms > max_age_ms:
            return response, pb.SOURCE_FALLBACK_TOO_OLD
        response.revision = header.revision
        response.age_ms = age_ms
        list_age.observe(age_ms / 1000)  # 0.8 us
        return response, pb.SOURCE_STORED


def _fall_back(
    now: Now, request: pb.GetMatchesRequest, found: pb.GetMatchesResponse, excluded: Excluded
) -> pb.GetMatchesResponse:
    """Ads of the crowds that the caller names, then of those that won in the user's list, then of all.

    found: what the list gave, if anything: its crowds, and the user's features, which are answered all the same
    """
    arm = now.arm(request.user_id)
    crowds: Iterable[int] = (*request.crowd_ids, *found.crowd_ids)
    best = now.fallbacks[arm].best(request.k, request.placement_group, crowds, excluded)
    matcher = now.matchers[arm]
    response = pb.GetMatchesResponse(
        catalog_version=matcher.catalog_version,
        towers_version=matcher.towers_version,
        ad_ids=best.ads.tolist(),
        values=best.values.tolist(),
        bids=best.bids.tolist(),
        crowd_ids=best.crowds.tolist(),
        arm=arm,
    )
    if found.HasField("context"):
        response.context.CopyFrom(found.context)
    return response
