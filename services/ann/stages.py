"""The stages of one search, timed; between two of them it ends once nobody waits for it."""

import time
from typing import Any

import grpc
from prometheus_client import Histogram

from vitrine.runtime import metrics

stage_seconds = Histogram(
    "vitrine_ann_stage_seconds",
    "Time of a search's stages: log (wait for min_sequences), decode (picture to pixels), wait (for a search under "
    "way, and the one that it is part of), encode (to vector and code), graph, scan (items without one), rerank.",
    ("stage",),
    buckets=metrics.LATENCY_BUCKETS,
    registry=metrics.REGISTRY,
)


_of_stage = {
    stage: stage_seconds.labels(stage) for stage in ("log", "decode", "wait", "encode", "graph", "scan", "rerank")
}


class Stages:
    """Of one call."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline; None where there is none."""
        left: Any = self._context.time_remaining()
        return None if left is None else float(left)

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more, or the deadline has passed."""
        left = self.left_s
        return (left is not None and left <= 0) or not self._context.is_active()

    def begin(self) -> None:
        """What went before belongs to no stage."""
        self._since = time.perf_counter()

    def took(self, stage: str) -> None:
        """`stage` ends here, and the next begins."""
        now = time.perf_counter()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._since = now

    def end(self, stage: str) -> None:
        """The same; ends the call where it is too late."""
        self.took(stage)
        left = self.left_s
        if left is not None and left <= 0:
            self._context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"the deadline passed after {stage}")
        if not self._context.is_active():
            self._context.abort(grpc.StatusCode.CANCELLED, f"the caller left after {stage}")

    def observe(self) -> None:
        """Records the whole search, one value a stage."""
        for stage, seconds in self._seconds.items():
            _of_stage[stage].observe(seconds)
