"""MatchingService: a list by one Redis read, a fallback where there is none, and why an ad ranks as it does."""

import threading
import time
from collections.abc import Callable, Set

import grpc
from google.protobuf.message import DecodeError
from prometheus_client import Counter, Histogram
from redis.exceptions import ResponseError

from services.matching import requests
from services.matching.rematch import RematchLog
from vitrine.api.events.v1 import events_pb2
from vitrine.api.matching.v1 import matching_pb2, matching_pb2_grpc
from vitrine.errors import NotFoundError, UnavailableError
from vitrine.matching import answer, record, state
from vitrine.matching.events import RecordError
from vitrine.matching.match import Matcher
from vitrine.matching.store import Store
from vitrine.runtime import logs, metrics

# Entries of the fallback: enough that hiding paused ads leaves a full answer.
FALLBACK_ENTRIES = 1_000
_PATIENCE_S = 5.0  # of a Rematch without a deadline

_log = logs.get_logger(__name__)

answers = Counter(
    "vitrine_matching_answers_total", "GetMatches answers by source.", ("source",), registry=metrics.REGISTRY
)
_answered = {  # found once: labels() costs more than inc()
    source: answers.labels(name) for name, source in matching_pb2.Source.items() if source
}
list_age = Histogram(
    "vitrine_matching_list_age_seconds",
    "Of lists served, since the append of the last event that they reflect.",
    buckets=(1, 10, 60, 600, 3_600, 21_600, 86_400, 604_800, 2_592_000),
    registry=metrics.REGISTRY,
)


class PausedAds:
    """Ads that `ad-updates` says are paused; `apply` is a tail's."""

    def __init__(self) -> None:
        self._paused: set[int] = set()

    @property
    def ids(self) -> Set[int]:
        """The paused ads as of now; it changes under the reader."""
        return self._paused

    def apply(self, offset: int, key: bytes | None, value: bytes | None) -> None:
        """Takes one record; a tombstone means active. Raises RecordError for one that is no AdUpdate."""
        if key is None or not key.isdigit():
            raise RecordError(f"key: {key!r} is no ad id in decimal ASCII")
        ad_id = int(key)
        if value is None:
            self._paused.discard(ad_id)
            return
        try:
            update = events_pb2.AdUpdate.FromString(value)
        except DecodeError as error:
            raise RecordError(f"value: no AdUpdate: {error}") from error
        if update.ad_id != ad_id:
            raise RecordError(f"ad_id: {update.ad_id}, where the key is {ad_id}")
        if update.state == events_pb2.AdUpdate.STATE_PAUSED:
            self._paused.add(ad_id)
        elif update.state == events_pb2.AdUpdate.STATE_ACTIVE:
            self._paused.discard(ad_id)
        else:
            raise RecordError(f"state: {update.state} is none that this reader knows")


class StoreWatch:
    """Whether Redis answers: asked in a thread, so that while it does not, calls need not wait for its timeout."""

    def __init__(self, ping: Callable[[], object], *, interval_s: float = 0.25) -> None:
        self.lost: str | None = None
        self._answered = time.monotonic()
        self._ping = ping
        self._closed = threading.Event()
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._run, name="store watch", daemon=True)
        self._thread.start()

    @property
    def seconds_since_contact(self) -> float:
        return time.monotonic() - self._answered

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._ping()
                self.lost = None
                self._answered = time.monotonic()
            except Exception as error:  # whatever answers there, it is not Redis
                self.lost = str(error) or repr(error)
            self._closed.wait(self._interval_s)


class MatchingServicer(matching_pb2_grpc.MatchingServiceServicer):
    """Answers from the store; what is paused is hidden here, before any worker rewrites a list."""

    def __init__(
        self,
        matcher: Matcher,
        store: Store,
        paused: PausedAds,
        watch: StoreWatch,
        rematches: RematchLog,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._matcher = matcher
        self._store = store
        self._paused = paused
        self._watch = watch
        self._rematches = rematches
        self._clock = clock
        self._fallback = matcher.fallback(FALLBACK_ENTRIES)

    def GetMatches(  # noqa: N802 (the proto's name)
        self, request: matching_pb2.GetMatchesRequest, context: grpc.ServicerContext
    ) -> matching_pb2.GetMatchesResponse:
        requests.check_matches(request, self._matcher.served)
        response, source = self._read(request.user_id, request.k)
        if source != matching_pb2.SOURCE_STORED:
            self._fall_back(response, request.k)
        response.source = source
        _answered[source].inc()
        return response

    def Rematch(  # noqa: N802 (the proto's name)
        self, request: matching_pb2.RematchRequest, context: grpc.ServicerContext
    ) -> matching_pb2.RematchResponse:
        requests.check_user(request.user_id)
        left_s = context.time_remaining()
        return self._rematches.append(request.user_id, _PATIENCE_S if left_s is None else min(left_s, _PATIENCE_S))

    def Explain(  # noqa: N802 (the proto's name)
        self, request: matching_pb2.ExplainRequest, context: grpc.ServicerContext
    ) -> matching_pb2.ExplainResponse:
        requests.check_explain(request)
        held, listed = self._store.read_user(request.user_id)
        if held is None or listed is None:
            raise NotFoundError(f"user {request.user_id} has no state: no event of this user was applied yet")
        user, stored = state.decode(held), record.decode(listed, self._matcher.catalog)
        ranking = stored.rankings[0]
        made_from = (stored.catalog_version, stored.towers_version)
        served = (self._matcher.catalog_version, self._matcher.towers_version)
        if made_from != served:
            raise UnavailableError(
                f"the list of user {request.user_id} was made from catalog {made_from[0]} and towers"
                f" {made_from[1]}, and this server holds {served[0]} and {served[1]}; it can explain the list after"
                " the user's next event, or once server and worker run the same versions"
            )
        ranks = {ad: rank for rank, ad in enumerate(ranking.ads.tolist(), start=1)}
        response = matching_pb2.ExplainResponse(
            catalog_version=stored.catalog_version,
            towers_version=stored.towers_version,
            floor_value=ranking.floor_value,
            user_crowd_ids=sorted(user.crowds),
        )
        for reason in self._matcher.explain(user, list(request.ad_ids)):
            rank = ranks.get(reason.ad, 0)
            if not reason.known:
                verdict = matching_pb2.VERDICT_UNKNOWN_AD
            elif rank:
                paused = reason.ad in self._paused.ids
                verdict = matching_pb2.VERDICT_PAUSED if paused else matching_pb2.VERDICT_LISTED
            elif len(reason.crowds):
                verdict = matching_pb2.VERDICT_BELOW_FLOOR
            else:
                verdict = matching_pb2.VERDICT_NO_SHARED_CROWD
            response.explanations.add(
                ad_id=reason.ad,
                verdict=verdict,
                rank=rank,
                shared_crowd_ids=reason.crowds.tolist(),
                shared_bids=reason.bids.tolist(),
                crowd_id=reason.crowd,
                bid=reason.bid,
                pctr=reason.pctr,
                value=reason.value,
            )
        return response

    def _read(self, user_id: int, k: int) -> tuple[matching_pb2.GetMatchesResponse, matching_pb2.Source.ValueType]:
        """The answer from the user's list, and its source; where that is a fallback, without ads yet."""
        if self._watch.lost is not None:
            return matching_pb2.GetMatchesResponse(), matching_pb2.SOURCE_FALLBACK_STORE_LOST
        try:
            held = self._store.read_list(user_id)
            if held is None:
                return matching_pb2.GetMatchesResponse(), matching_pb2.SOURCE_FALLBACK_NO_LIST
            response, header = answer.from_record(held, k, self._paused.ids, self._matcher.catalog)
        except UnavailableError as error:
            self._watch.lost = str(error)
            return matching_pb2.GetMatchesResponse(), matching_pb2.SOURCE_FALLBACK_STORE_LOST
        except (ResponseError, RecordError) as error:
            _log.error("a stored list cannot be read", user_id=user_id, reason=str(error))
            return matching_pb2.GetMatchesResponse(), matching_pb2.SOURCE_FALLBACK_NO_LIST
        if not response.ad_ids:  # a list without a single live ad is no list to serve
            return response, matching_pb2.SOURCE_FALLBACK_NO_LIST
        response.revision = header.revision
        response.age_ms = age_ms = max(0, int(self._clock() * 1000) - header.append_ms)
        list_age.observe(age_ms / 1000)  # 0.8 us
        return response, matching_pb2.SOURCE_STORED

    def _fall_back(self, response: matching_pb2.GetMatchesResponse, k: int) -> None:
        """The first k ads of the fallback that are not paused, beside the user's features."""
        best, ranking = self._fallback, self._fallback.rankings[0]
        rows = [row for row, ad in enumerate(ranking.ads.tolist()) if ad not in self._paused.ids][:k]
        response.catalog_version, response.towers_version = best.catalog_version, best.towers_version
        response.ad_ids.extend(ranking.ads[rows].tolist())
        response.values.extend(ranking.values[rows].tolist())
        response.bids.extend(answer.bids(self._matcher.catalog, ranking.ads[rows], ranking.crowds[rows]).tolist())
        response.crowd_ids.extend(ranking.crowds[rows].tolist())
