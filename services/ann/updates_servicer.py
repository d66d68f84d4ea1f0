"""Get, Upsert and Delete: items read from what is served, and written to the log until they are shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import grpc
import numpy as np

from services.ann.decode import filter_of
from services.ann.loading import Served
from services.ann.updates import Log, Writer, wait_visible
from vitrine.ann import updates
from vitrine.ann.index import unit_queries
from vitrine.ann.updates import Update
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.errors import FieldError, UnavailableError

MAX_ITEMS = 1000
_PATIENCE_S = 10.0  # of calls without a deadline


class UpdatesServicer(ann_pb2_grpc.AnnServiceServicer):
    """The half of AnnService that is about items; the other half inherits from it.

    served: the index of this name or alias, "" for the default; raises NotFoundError, UnavailableError
    writer: None where the service has no Kafka, and so takes no updates
    """

    def __init__(self, served: Callable[[str], Served], writer: Writer | None) -> None:
        self._served = served
        self._writer = writer

    def Get(self, request: ann_pb2.GetRequest, context: grpc.ServicerContext) -> ann_pb2.GetResponse:  # noqa: N802
        served = self._served(request.index)
        _check_count(request.item_ids)
        found = served.live.current.get(np.array(request.item_ids, np.uint64))
        return ann_pb2.GetResponse(
            version=served.version,
            item_ids=found.ids.tolist(),
            vectors=np.ascontiguousarray(found.vectors, "<f4").tobytes(),
            attributes=[updates.to_message(each) for each in found.attributes],
        )

    def Upsert(self, request: ann_pb2.UpsertRequest, context: grpc.ServicerContext) -> ann_pb2.UpsertResponse:  # noqa: N802
        served = self._served(request.index)
        log, writer = self._writing(served, context)
        if request.embeddings_version != served.embeddings_version:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"embeddings_version: {request.embeddings_version[:100]!r}, where index {served.name!r} holds "
                f"vectors of {served.embeddings_version!r}; a new embedding is a new index",
            )
        batch = _upserts(request, served)
        _check_shard(served, [update.item_id for update in batch])
        ends = self._write(served, log, writer, batch, context)
        return ann_pb2.UpsertResponse(sequences=sequences(ends), items=len(batch))

    def Delete(self, request: ann_pb2.DeleteRequest, context: grpc.ServicerContext) -> ann_pb2.DeleteResponse:  # noqa: N802
        served = self._served(request.index)
        log, writer = self._writing(served, context)
        by_filter = request.HasField("filter")
        if by_filter and request.item_ids:
            raise FieldError("filter", "comes with item_ids; give one of the two")
        if by_filter:
            ids = served.live.current.matching(filter_of(request.filter)).tolist()
        else:
            _check_count(request.item_ids)
            ids = list(dict.fromkeys(request.item_ids))
            _check_shard(served, ids)
        ends: dict[int, int] = {}
        for start in range(0, len(ids), MAX_ITEMS):
            batch = [Update(item_id, None) for item_id in ids[start : start + MAX_ITEMS]]
            ends |= self._write(served, log, writer, batch, context)
        return ann_pb2.DeleteResponse(sequences=sequences(ends), items=len(ids))

    def wait_for(self, name: str, wanted: Sequence[ann_pb2.Sequence], context: grpc.ServicerContext) -> Served:
        """What is served, once it shows these sequences; ends the call where its deadline comes first."""
        served = self._served(name)
        if not wanted:
            return served
        if served.log is None:
            raise FieldError("min_sequences", f"index {served.name!r} follows no log here (VITRINE_KAFKA_URL)")
        known = served.log.visible
        ends: dict[int, int] = {}
        for each in wanted:
            if each.offset < 0 or (known and each.partition not in known):
                raise FieldError(
                    "min_sequences", f"partition {each.partition}, offset {each.offset}: there is no such place"
                )
            ends[each.partition] = max(ends.get(each.partition, 0), each.offset + 1)
        self._wait(name, ends, context)
        return self._served(name)

    def _writing(self, served: Served, context: grpc.ServicerContext) -> tuple[Log, Writer]:
        if served.log is None or self._writer is None:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION, "this service takes no updates: it is started without Kafka"
            )
        if served.log.tail.error is not None:
            raise UnavailableError(f"updates are not read any more: {served.log.tail.error}")
        return served.log, self._writer

    def _write(
        self, served: Served, log: Log, writer: Writer, batch: Sequence[Update], context: grpc.ServicerContext
    ) -> dict[int, int]:
        """Appends, and waits until it is shown: {partition: offset after the last}."""
        ends = writer.append(served.name, batch, served.embeddings_version, _left_s(context))
        self._wait(served.name, ends, context)
        return ends

    def _wait(self, name: str, ends: Mapping[int, int], context: grpc.ServicerContext) -> None:
        end = time.monotonic() + _left_s(context)
        shown = wait_visible(
            lambda: self._served(name).log,
            ends,
            lambda: end - time.monotonic() if context.is_active() else 0.0,
        )
        if not shown:
            context.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the log is not shown up to {dict(ends)} (partition: next offset) yet; what was written stays "
                "written, and will be",
            )


def sequences(ends: Mapping[int, int]) -> list[ann_pb2.Sequence]:
    """The last records below these offsets, by partition."""
    return [ann_pb2.Sequence(partition=place, offset=end - 1) for place, end in sorted(ends.items()) if end > 0]


def _upserts(request: ann_pb2.UpsertRequest, served: Served) -> list[Update]:
    _check_count(request.item_ids)
    if len(set(request.item_ids)) < len(request.item_ids):
        raise FieldError("item_ids", "has an id twice; send each item once a call")
    dim = served.live.current.dim
    if len(request.vectors) != 4 * dim * len(request.item_ids):
        raise FieldError(
            "vectors",
            f"has {len(request.vectors)} bytes, not {4 * dim * len(request.item_ids)}: {dim} float32 an item",
        )
    if len(request.attributes) not in (0, len(request.item_ids)):
        raise FieldError("attributes", f"has {len(request.attributes)}; send one an item, or none at all")
    vectors = unit_queries(np.frombuffer(request.vectors, "<f4").reshape(-1, dim), dim)
    attributes = [updates.from_message(each) for each in request.attributes] or [{} for _ in request.item_ids]
    for each in attributes:
        served.live.check(each)
    return [
        Update(item_id, vector, named)
        for item_id, vector, named in zip(request.item_ids, vectors, attributes, strict=True)
    ]


def _check_count(item_ids: Sequence[int]) -> None:
    if not 1 <= len(item_ids) <= MAX_ITEMS:
        raise FieldError("item_ids", f"has {len(item_ids)}; send 1 to {MAX_ITEMS:,}")
    if 0 in item_ids:
        raise FieldError("item_ids", "has a 0; ids begin at 1")


def _check_shard(served: Served, item_ids: Sequence[int]) -> None:
    for item_id, here in zip(item_ids, served.shard.has(item_ids), strict=True):
        if not here:
            raise FieldError(
                "item_ids",
                f"{item_id} does not belong to shard {served.shard.number} of {served.shard.of}; ask a router",
            )


def _left_s(context: grpc.ServicerContext) -> float:
    """Seconds until the call's deadline."""
    left = context.time_remaining()
    return _PATIENCE_S if left is None else max(0.001, left)
