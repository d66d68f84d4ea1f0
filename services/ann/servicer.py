"""AnnService: queries checked and decoded, searched in one version, answered as a structure of arrays."""

import threading
import time
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter, Histogram

from services.ann.loading import Served
from vitrine.ann import index, pictures
from vitrine.ann.index import Hits, Options
from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.errors import FieldError, NotFoundError
from vitrine.runtime import metrics
from vitrine.runtime.follow import Followed

MAX_QUERIES = 256
_DECODERS = 4  # pictures decoded at a time: a large PNG takes up to 160 MB meanwhile

stage_seconds = Histogram(
    "vitrine_ann_stage_seconds",
    "Time of a search's stages: decode (picture to pixels), encode (to vector and code), graph, rerank.",
    ("stage",),
    buckets=metrics.LATENCY_BUCKETS,
    registry=metrics.REGISTRY,
)
queries_total = Counter("vitrine_ann_queries_total", "Queries answered.", ("kind",), registry=metrics.REGISTRY)


class AnnServicer(ann_pb2_grpc.AnnServiceServicer):
    """Search and Stats over the index being served.

    threads: that one scan may use
    """

    def __init__(self, followed: Followed[Served], *, threads: int = 1) -> None:
        self._followed = followed
        self._threads = threads
        self._decoders = threading.BoundedSemaphore(_DECODERS)

    def Search(self, request: ann_pb2.SearchRequest, context: grpc.ServicerContext) -> ann_pb2.SearchResponse:  # noqa: N802
        served = self._served(request.index)
        kind = _kind(request)
        _check_sizes(request)
        stages = _Stages(context)
        if kind == "codes":
            codes = _codes(request.codes, served.index.bits)
            hits = served.index.search_codes(codes, Options(request.k), threads=self._threads, between=stages.end)
        else:
            if kind == "vectors":
                vectors = _vectors(request.vectors, served.index.dim)
            else:
                vectors = self._encoded(served, request.picture, stages)
            hits = served.index.search_vectors(
                vectors,
                Options(request.k, request.over_recall or None),
                threads=self._threads,
                between=stages.end,
            )
        stages.observe()
        queries_total.labels(kind).inc(len(hits.counts))
        return _response(served.version, hits)

    def Stats(self, request: ann_pb2.StatsRequest, context: grpc.ServicerContext) -> ann_pb2.StatsResponse:  # noqa: N802
        served = self._served(request.index)
        return ann_pb2.StatsResponse(
            version=served.version,
            embeddings_version=served.embeddings_version,
            items=served.index.items,
            dim=served.index.dim,
            bits=served.index.bits,
            over_recall=served.index.over_recall,
            pictures=served.encoder is not None,
        )

    def _served(self, name: str) -> Served:
        if name not in ("", index.KIND):
            raise NotFoundError(f"index: there is no {name[:100]!r}; leave it empty for {index.KIND!r}")
        return self._followed.current

    def _encoded(self, served: Served, picture: bytes, stages: "_Stages") -> NDArray[np.float32]:
        if served.encoder is None:
            raise FieldError("picture", f"embeddings {served.embeddings_version} has no encoder; search by vectors")
        with self._decoders:
            stages.begin()
            loaded = pictures.load(picture)
        stages.end("decode")
        return served.encoder.encode(loaded[np.newaxis])


class _Stages:
    """Times a search's stages, and ends it between two of them once nobody waits for it."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def begin(self) -> None:
        """What went before belongs to no stage."""
        self._since = time.perf_counter()

    def end(self, stage: str) -> None:
        """`stage` ends here, and the next begins."""
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._since = now
        left: Any = self._context.time_remaining()
        if left is not None and left <= 0:
            self._context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"the deadline passed after {stage}")
        if not self._context.is_active():
            self._context.abort(grpc.StatusCode.CANCELLED, f"the caller left after {stage}")

    def observe(self) -> None:
        """Record the whole search, one value a stage."""
        for stage, seconds in self._seconds.items():
            stage_seconds.labels(stage).observe(seconds)


def _kind(request: ann_pb2.SearchRequest) -> str:
    """Which of the three the query is."""
    given = [kind for kind in ("vectors", "codes", "picture") if getattr(request, kind)]
    if not given:
        raise FieldError("vectors", "no query: give one of vectors, codes and picture, of one row or more")
    if len(given) > 1:
        raise FieldError(given[1], f"comes with {given[0]}; give exactly one of vectors, codes and picture")
    return given[0]


def _check_sizes(request: ann_pb2.SearchRequest) -> None:
    if not 1 <= request.k <= index.MAX_K:
        raise FieldError("k", f"is {request.k}; use 1 to {index.MAX_K:,}")
    if request.over_recall > index.MAX_OVER_RECALL:
        raise FieldError(
            "over_recall", f"is {request.over_recall}; use 1 to {index.MAX_OVER_RECALL}, or 0 for the default"
        )


def _vectors(data: bytes, dim: int) -> NDArray[np.float32]:
    """float32 (q, dim)."""
    _check_rows("vectors", data, 4 * dim, f"{dim} float32")
    return np.frombuffer(data, "<f4").reshape(-1, dim).astype(np.float32, copy=False)


def _codes(data: bytes, bits: int) -> NDArray[np.uint64]:
    """uint64 (q, bits / 64)."""
    _check_rows("codes", data, bits // 8, f"{bits} bits")
    return np.frombuffer(data, "<u8").reshape(-1, bits // 64).astype(np.uint64, copy=False)


def _check_rows(field: str, data: bytes, row_bytes: int, row: str) -> None:
    rows, rest = divmod(len(data), row_bytes)
    if rest:
        raise FieldError(field, f"has {len(data)} bytes, not a multiple of {row_bytes} ({row} a query)")
    if rows > MAX_QUERIES:
        raise FieldError(field, f"has {rows} queries; send at most {MAX_QUERIES} a call")


def _response(version: str, hits: Hits) -> ann_pb2.SearchResponse:
    return ann_pb2.SearchResponse(
        version=version,
        counts=hits.counts.tolist(),
        item_ids=hits.ids.tolist(),
        scores=[] if hits.scores is None else hits.scores.tolist(),
        distances=hits.distances.tolist(),
    )
