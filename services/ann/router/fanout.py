"""One call to several shards at once: each leg goes to one replica, and to another where that one cannot answer."""

from __future__ import annotations

import heapq
import itertools
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from prometheus_client import Counter, Histogram

from services.ann.router.shards import Fleet, Replica, Shard
from vitrine.runtime import metrics

# What another replica may do better, and what every shard would say.
_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
CALLERS_FAULT = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
_PAUSE_S = 0.02  # between looks for a replica where a shard has just lost its last one
_LATE_S = 0.5  # grpc ends a call at its deadline; this is for its thread to say so

shard_seconds = Histogram(
    "vitrine_ann_router_shard_seconds",
    "From a leg's begin to its answer, tries at other replicas included.",
    ("shard",),
    buckets=metrics.LATENCY_BUCKETS,
    registry=metrics.REGISTRY,
)
failures_total = Counter(
    "vitrine_ann_router_failures_total",
    "Calls to a replica that failed, by status; another replica may have answered.",
    ("shard", "code"),
    registry=metrics.REGISTRY,
)
retries_total = Counter(
    "vitrine_ann_router_retries_total",
    "Legs sent to another replica: after a failure, or because the first was slow.",
    ("shard", "reason"),
    registry=metrics.REGISTRY,
)


@dataclass(frozen=True)
class Failure:
    """Why a shard has no answer: grpc's status, with the metadata that its details travel in."""

    code: grpc.StatusCode
    message: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()


class CallerGoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Leg:
    """What one shard is asked, and in the end what it said: `answer`, or `failure`.

    rows: positions of the leg's queries or items in the caller's request; None where the leg has all of them
    """

    shard: Shard
    request: Any
    rows: Sequence[int] | None = None
    answer: Any = None
    failure: Failure | None = None
    tried: list[Replica] = field(default_factory=list)
    under_way: dict[Replica, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.answer is not None or self.failure is not None


def fan_out(
    fleet: Fleet,
    method: str,
    legs: Sequence[Leg],
    left_s: float,
    *,
    version: str | None = None,
    hedge_s: float = 0.0,
    context: grpc.ServicerContext | None = None,
) -> None:
    """Ends every leg with an answer or a failure within `left_s`. Raises CallerGoneError where the caller leaves.

    A replica that is UNAVAILABLE has the leg taken to another one; of all methods a repeated call does no harm.
    version: replicas of this one are preferred; None for that which most shards have
    hedge_s: after so long without an answer another replica is asked as well, and the first to answer counts
    """
    _FanOut(fleet, method, legs, left_s, version, hedge_s).run(context)


class _FanOut:
    def __init__(
        self, fleet: Fleet, method: str, legs: Sequence[Leg], left_s: float, version: str | None, hedge_s: float
    ) -> None:
        self._method, self._legs, self._hedge_s = method, legs, hedge_s
        self._begun = time.monotonic()
        self._deadline = self._begun + left_s
        self._name: str = legs[0].request.index if legs else ""
        self._version = version or fleet.version(self._name)
        self._events: queue.SimpleQueue[tuple[Leg, Replica, Any] | None] = queue.SimpleQueue()
        # (when, tie, what): what is to be done at a time.
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = itertools.count()
        self._open = len(legs)

    def run(self, context: grpc.ServicerContext | None) -> None:
        if context is not None and not context.add_callback(lambda: self._events.put(None)):
            raise CallerGoneError
        try:
            for leg in self._legs:
                self._start(leg)
            while self._open:
                self._step()
        finally:
            for leg in self._legs:
                for future in leg.under_way.values():
                    future.cancel()

    def _step(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        if not self._open:
            return
        until = min([self._deadline + _LATE_S, *(when for when, _, _ in self._later[:1])])
        try:
            event = self._events.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            if time.monotonic() >= self._deadline:
                for leg in self._legs:
                    self._end(leg, failure=_too_late(leg.shard))
            return
        if event is None:
            raise CallerGoneError
        self._take(*event)

    def _start(self, leg: Leg, reason: str = "") -> None:
        """Asks the best replica there is; fails the leg, or looks again in a moment, where there is none."""
        if leg.ended:
            return
        left = self._deadline - time.monotonic()
        if left <= 0:
            self._end(leg, failure=_too_late(leg.shard))
            return
        replica = leg.shard.pick(self._name, self._version, leg.tried)
        if replica is None:
            if leg.shard.comes_back:
                self._at(_PAUSE_S, lambda: self._start(leg, reason))
            elif not leg.under_way:
                self._end(leg, failure=Failure(grpc.StatusCode.UNAVAILABLE, leg.shard.trouble or leg.shard.name))
            return
        if replica in leg.under_way:
            return  # hedged, and there is no other
        if reason:
            retries_total.labels(str(leg.shard.number), reason).inc()
        leg.tried.append(replica)
        leg.under_way[replica] = replica.begin(
            self._method, leg.request, left, lambda future: self._events.put((leg, replica, future))
        )
        if self._hedge_s and len(leg.tried) == 1:
            self._at(self._hedge_s, lambda: self._start(leg, "slow"))

    def _take(self, leg: Leg, replica: Replica, future: Any) -> None:
        """A replica's answer or failure."""
        leg.under_way.pop(replica, None)
        if leg.ended:
            return
        code = future.code()
        if code is grpc.StatusCode.OK:
            answer = future.result()
            if version := getattr(answer, "version", ""):
                replica.versions[self._name] = version
            self._end(leg, answer=answer)
            return
        failures_total.labels(str(leg.shard.number), code.name).inc()
        if code in _ELSEWHERE:
            if leg.under_way:
                return  # the other one may answer
            if len(leg.tried) <= len(leg.shard.replicas):
                all_tried = set(leg.tried) >= set(leg.shard.replicas)
                self._at(_PAUSE_S if all_tried else 0.0, lambda: self._start(leg, "failed"))
                return
        told = future.details() or ""
        message = told if code in CALLERS_FAULT else f"{leg.shard.name}: {replica.address}: {told}"
        details = [each for each in future.trailing_metadata() or () if each[0] == "grpc-status-details-bin"]
        self._end(leg, failure=Failure(code, message, tuple(details)))

    def _end(self, leg: Leg, *, answer: Any = None, failure: Failure | None = None) -> None:
        if leg.ended:
            return
        leg.answer, leg.failure = answer, failure
        self._open -= 1
        for future in leg.under_way.values():
            future.cancel()
        leg.under_way.clear()
        shard_seconds.labels(str(leg.shard.number)).observe(time.monotonic() - self._begun)

    def _at(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._ties), act))


def _too_late(shard: Shard) -> Failure:
    return Failure(grpc.StatusCode.DEADLINE_EXCEEDED, f"{shard.name}: no answer within the deadline")
