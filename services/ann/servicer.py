"""AnnService: queries decoded, searched in one snapshot of one version, answered as a structure of arrays."""

import threading
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from services.ann import decode
from services.ann.coalesce import Between, Coalescer
from services.ann.loading import Served
from services.ann.stages import Stages
from services.ann.updates import Writer
from services.ann.updates_servicer import UpdatesServicer, sequences
from vitrine.ann import pictures, updates
from vitrine.ann.cursor import GenerationError
from vitrine.ann.index import BinaryIndex, Hits, Options
from vitrine.api.ann.v1 import ann_pb2
from vitrine.errors import FieldError
from vitrine.runtime import metrics

_DECODERS = 4  # pictures decoded at a time: a large PNG takes up to 160 MB meanwhile

queries_total = Counter("vitrine_ann_queries_total", "Queries answered.", ("kind",), registry=metrics.REGISTRY)
_of_kind = {kind: queries_total.labels(kind) for kind in decode.KINDS}
visited_total = Counter(
    "vitrine_ann_visited_total",
    "Codes that queries were compared with: nodes of graphs, and items that are scanned.",
    registry=metrics.REGISTRY,
)


class AnnServicer(UpdatesServicer):
    """Search and Stats; Get, Upsert and Delete are inherited.

    served:  the index of this name or alias, "" for the default; raises NotFoundError, UnavailableError
    writer:  None where the service has no Kafka, and so takes no updates
    batches: searches at a time, which answer whoever asks for the same meanwhile; 0: each call by itself
    exact:   compare with all items, whatever the requests say
    threads: that one search may use
    """

    def __init__(
        self,
        served: Callable[[str], Served],
        writer: Writer | None = None,
        *,
        batches: int = 1,
        exact: bool = False,
        threads: int = 1,
    ) -> None:
        super().__init__(served, writer)
        self._exact = exact
        self._threads = threads
        self._coalescer = Coalescer(batches)
        self._decoders = threading.BoundedSemaphore(_DECODERS)

    def Search(self, request: ann_pb2.SearchRequest, context: grpc.ServicerContext) -> ann_pb2.SearchResponse:  # noqa: N802
        stages = Stages(context)
        kind = decode.kind(request)
        served = self.wait_for(request.index, request.min_sequences, context)
        if request.min_sequences:
            stages.end("log")
        index = served.live.current
        options = decode.options(request)
        if self._exact:
            options = replace(options, exact=True)
        if kind == "picture":
            rows: NDArray[Any] = self._encoded(served, request.picture, stages)
        else:
            rows = decode.rows(request, kind, index)
        search = _search(index, kind, options, self._threads)
        try:
            hits = self._coalescer.run(_alike(index, kind, request), rows, search, Hits.split, stages)
        except GenerationError as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        stages.observe()
        _of_kind[kind].inc(len(hits.counts))
        return _response(served.version, hits)

    def Stats(self, request: ann_pb2.StatsRequest, context: grpc.ServicerContext) -> ann_pb2.StatsResponse:  # noqa: N802
        served = self._served(request.index)
        index = served.live.current
        return ann_pb2.StatsResponse(
            version=served.version,
            embeddings_version=served.embeddings_version,
            items=index.items,
            dim=index.dim,
            bits=index.bits,
            over_recall=index.over_recall,
            pictures=served.encoder is not None,
            ef=index.ef,
            index=served.name,
            shard=served.shard.number,
            shards=served.shard.of,
            visible=sequences(served.log.visible) if served.log is not None else [],
            attributes=sorted(index.kinds),
        )

    def _encoded(self, served: Served, picture: bytes, stages: Stages) -> NDArray[np.float32]:
        if served.encoder is None:
            raise FieldError("picture", f"embeddings {served.embeddings_version} has no encoder; search by vectors")
        with self._decoders:
            stages.begin()
            loaded = pictures.load(picture)
        stages.end("decode")
        vector = served.encoder.encode(loaded[np.newaxis])
        stages.end("encode")
        return vector


def _alike(index: BinaryIndex, kind: str, request: ann_pb2.SearchRequest) -> Hashable:
    """Equal for searches that can be one; whoever compares it holds the index, so that its id is its own."""
    if request.cursors:
        return None
    return (
        id(index),
        "vectors" if kind == "picture" else kind,
        request.k,
        request.over_recall,
        request.ef,
        request.exact,
        request.group_by,
        request.radius if request.HasField("radius") else None,
        request.filter.SerializeToString(deterministic=True) if request.HasField("filter") else None,
    )


def _search(
    index: BinaryIndex, kind: str, options: Options, threads: int
) -> Callable[[NDArray[Any], Between], Hits]:
    by = {"codes": index.search_codes, "item_ids": index.search_items}.get(kind, index.search_vectors)

    def search(rows: NDArray[Any], between: Between) -> Hits:
        hits = by(rows, options, threads=threads, between=between)
        visited_total.inc(hits.visited)
        return hits

    return search


def _response(version: str, hits: Hits) -> ann_pb2.SearchResponse:
    return ann_pb2.SearchResponse(
        version=version,
        counts=hits.counts.tolist(),
        item_ids=hits.ids.tolist(),
        scores=[] if hits.scores is None else hits.scores.tolist(),
        distances=hits.distances.tolist(),
        groups=[updates.to_value(value) for value in hits.groups or ()],
        cursors=list(hits.cursors),
    )
