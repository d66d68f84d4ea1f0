"""AnnService as a router answers it: every call goes to the shards that it concerns, and comes back as one."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence

import grpc
from prometheus_client import Counter

from services.ann.decode import MAX_QUERIES
from services.ann.router import split
from services.ann.router.fanout import CALLERS_FAULT, CallerGoneError, Failure, Leg, fan_out
from services.ann.router.search import Asked, joined, kind_of, search_legs, understood
from services.ann.router.shards import Fleet
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.errors import FieldError, NotFoundError
from vitrine.runtime import metrics

_PATIENCE_S = 10.0  # of calls without a deadline

partial_total = Counter(
    "vitrine_ann_router_partial_answers_total", "Searches answered without some shard.", registry=metrics.REGISTRY
)
mixed_total = Counter(
    "vitrine_ann_router_mixed_answers_total", "Searches answered from several versions.", registry=metrics.REGISTRY
)


class RouterServicer(ann_pb2_grpc.AnnServiceServicer):
    """hedge_s: time without an answer after which a second replica is asked too; 0: never."""

    def __init__(self, fleet: Fleet, *, hedge_s: float = 0.0) -> None:
        self._fleet = fleet
        self._hedge_s = hedge_s

    def Search(self, request: ann_pb2.SearchRequest, context: grpc.ServicerContext) -> ann_pb2.SearchResponse:  # noqa: N802
        shards = self._fleet.shards
        call = _Call(self._fleet, context, self._hedge_s)
        vectors: Sequence[bytes] = ()
        if kind_of(request) == "item_ids":
            vectors = self._vectors_of(request, call)
        asked = understood(request, len(shards), vectors)
        absent = asked.absent
        if absent and not request.allow_partial:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"cursors: are of a partial answer, without {shards[absent[0]].name}; allow_partial, or begin anew",
            )
        legs = search_legs(shards, asked)
        call.make("Search", legs, partly=request.allow_partial, version=asked.version)
        if not asked.cursors:  # which hold a shard to the version that they are of
            _agree(self._fleet, request.index, legs, call)
        response = joined(asked, legs, shards)
        response.shards.extend(_told(asked, legs, len(shards)))
        versions = {each.version for each in response.shards if each.version}
        response.version = split.oldest(versions) if versions else ""
        partial_total.inc(any(each.error for each in response.shards))
        mixed_total.inc(len(versions) > 1)
        return response

    def Get(self, request: ann_pb2.GetRequest, context: grpc.ServicerContext) -> ann_pb2.GetResponse:  # noqa: N802
        legs = split.get_legs(self._fleet.shards, request)
        _Call(self._fleet, context, self._hedge_s).make("Get", legs)
        return split.joined_items(request.item_ids, [leg.answer for leg in legs])

    def Upsert(self, request: ann_pb2.UpsertRequest, context: grpc.ServicerContext) -> ann_pb2.UpsertResponse:  # noqa: N802
        legs = split.upsert_legs(self._fleet.shards, request)
        _Call(self._fleet, context).make("Upsert", legs)
        answers = [leg.answer for leg in legs]
        return ann_pb2.UpsertResponse(
            sequences=split.joined_sequences(answers), items=sum(answer.items for answer in answers)
        )

    def Delete(self, request: ann_pb2.DeleteRequest, context: grpc.ServicerContext) -> ann_pb2.DeleteResponse:  # noqa: N802
        legs = split.delete_legs(self._fleet.shards, request)
        _Call(self._fleet, context).make("Delete", legs)
        answers = [leg.answer for leg in legs]
        return ann_pb2.DeleteResponse(
            sequences=split.joined_sequences(answers), items=sum(answer.items for answer in answers)
        )

    def Stats(self, request: ann_pb2.StatsRequest, context: grpc.ServicerContext) -> ann_pb2.StatsResponse:  # noqa: N802
        legs = [Leg(shard, request) for shard in self._fleet.shards]
        _Call(self._fleet, context, self._hedge_s).make("Stats", legs)
        return split.joined_stats([leg.answer for leg in legs])

    def _vectors_of(self, request: ann_pb2.SearchRequest, call: _Call) -> list[bytes]:
        """The vectors of the items that a search names, one a query; NotFoundError where one is not indexed."""
        ids = list(request.item_ids)
        if len(ids) > MAX_QUERIES:
            raise FieldError("item_ids", f"has {len(ids)} queries; send at most {MAX_QUERIES} a call")
        legs = split.get_legs(self._fleet.shards, ann_pb2.GetRequest(index=request.index, item_ids=ids))
        call.make("Get", legs)
        found = split.joined_items(ids, [leg.answer for leg in legs])
        there = set(found.item_ids)
        for item_id in ids:
            if item_id not in there:
                raise NotFoundError(f"item_ids: {item_id} is not in the index")
        size = len(found.vectors) // len(ids)
        return [found.vectors[i * size : (i + 1) * size] for i in range(len(ids))]


class _Call:
    """What the calls to shards for one caller share: the deadline, less what the router itself needs of it."""

    def __init__(self, fleet: Fleet, context: grpc.ServicerContext, hedge_s: float = 0.0) -> None:
        self._fleet, self._context, self._hedge_s = fleet, context, hedge_s
        left = context.time_remaining()
        left = _PATIENCE_S if left is None else left
        self._deadline = time.monotonic() + left - min(0.05, left / 10)

    def try_(self, method: str, legs: Sequence[Leg], *, version: str | None = None) -> None:
        """Ends every leg with an answer or a failure."""
        left_s = self._deadline - time.monotonic()
        try:
            fan_out(
                self._fleet, method, legs, left_s, version=version, hedge_s=self._hedge_s, context=self._context
            )
        except CallerGoneError:
            self._context.abort(grpc.StatusCode.CANCELLED, "the caller has gone")

    def make(self, method: str, legs: Sequence[Leg], *, partly: bool = False, version: str | None = None) -> None:
        """Ends the caller's call where a leg fails; with `partly`, where all do or it is the caller's fault."""
        self.try_(method, legs, version=version)
        failures = [leg.failure for leg in legs if leg.failure is not None]
        theirs = [failure for failure in failures if failure.code in CALLERS_FAULT]
        if theirs or (failures and (not partly or len(failures) == len(legs))):
            self._context.abort_with_status(_status(theirs or failures))


def _agree(fleet: Fleet, name: str, legs: Sequence[Leg], call: _Call) -> None:
    """Asks shards again that answered from another version than most, where a replica of theirs has it now."""
    if len({leg.answer.version for leg in legs if leg.answer is not None}) < 2:
        return
    version = fleet.version(name)
    again = {
        i: Leg(leg.shard, leg.request, leg.rows)
        for i, leg in enumerate(legs)
        if leg.answer is not None
        and leg.answer.version != version
        and any(replica.usable and replica.versions.get(name) == version for replica in leg.shard.replicas)
    }
    call.try_("Search", list(again.values()))
    for i, leg in again.items():
        if leg.answer is not None:
            legs[i].answer = leg.answer


def _told(asked: Asked, legs: Sequence[Leg], shards: int) -> list[ann_pb2.ShardAnswer]:
    """Each shard's version, or why it has none."""
    told = [ann_pb2.ShardAnswer(shard=i) for i in range(shards)]
    for i in asked.absent:
        told[i].error = "is not among the shards of the page before; begin anew to have its items"
    for leg in legs:
        each = told[leg.shard.number]
        if leg.failure is not None:
            each.error = each.error or leg.failure.message
        elif not each.version or leg.answer.version < each.version:
            each.version = leg.answer.version
    return told


_STATUS = collections.namedtuple("_STATUS", ("code", "details", "trailing_metadata"))


class _Status(_STATUS, grpc.Status):
    """What grpc ends a call with."""


def _status(failures: Sequence[Failure]) -> grpc.Status:
    """The first failure's status; of shards' own troubles, all are told."""
    first = failures[0]
    alike = dict.fromkeys(failure.message for failure in failures if failure.code is first.code)
    details = first.message if first.code in CALLERS_FAULT else "; ".join(alike)
    return _Status(first.code, details, first.metadata)
