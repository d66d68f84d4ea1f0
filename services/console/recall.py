"""Search against exact search: how much of the true nearest items each over-recall finds."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.client import AnnClient, IndexStats, VitrineError
from vitrine.runtime import logs

K = 10
SLIDER = 20  # largest over-recall on the slider; the service takes up to 100
_MOST_K, _MOST_OVER_RECALL = 1_000, 100  # of a Search call
_STEPS = (1, 2, 3, 4, 5, 7, 10, 15, 20)
_QUERIES, _AT_A_TIME = 64, 16
_PATIENCE_S = 15.0  # nobody waits for the curve's own calls

_log = logs.get_logger(__name__)

U64 = NDArray[np.uint64]


@dataclass(frozen=True)
class Reference:
    """The nearest items by the deepest search; `exact` where it re-ranked every item."""

    ids: U64
    scores: NDArray[np.float32]
    distances: NDArray[np.uint32]
    exact: bool


def reference(ann: AnnClient, stats: IndexStats, query: dict[str, Any], k: int) -> list[Reference]:
    """Of each query in `query` (arguments of `AnnClient.search`): k x over_recall covers the index where it can."""
    wide = min(_MOST_K, max(k, stats.items))
    depth = min(_MOST_OVER_RECALL, -(-stats.items // wide))
    found = ann.search(**query, k=wide, over_recall=depth)
    assert found.scores is not None
    exact = wide * depth >= stats.items
    answers = zip(found.ids, found.scores, found.distances, strict=True)
    return [Reference(ids[:k], scores[:k], distances[:k], exact) for ids, scores, distances in answers]


def recall(found: U64, wanted: U64) -> float:
    """Share of the wanted ids that were found."""
    return len(np.intersect1d(found, wanted)) / max(1, len(wanted))


@dataclass(frozen=True)
class Curve:
    """Mean recall over some held-out photos by over-recall."""

    queries: int
    points: list[tuple[int, float]]

    def at(self, over_recall: int) -> float:
        """Mean recall, between the measured steps by a straight line."""
        return float(np.interp(over_recall, [x for x, _ in self.points], [y for _, y in self.points]))


def measure(ann: AnnClient, stats: IndexStats, vectors: NDArray[np.float32]) -> Curve:
    """The curve over the queries float32 (n, dim). Raises VitrineError."""
    sums = dict.fromkeys(_STEPS, 0.0)
    for start in range(0, len(vectors), _AT_A_TIME):
        query = {"vectors": vectors[start : start + _AT_A_TIME], "timeout_s": _PATIENCE_S}
        wanted = reference(ann, stats, query, K)
        for step in _STEPS:
            found = ann.search(**query, k=K, over_recall=step).ids
            sums[step] += sum(recall(ids, exact.ids) for ids, exact in zip(found, wanted, strict=True))
    return Curve(len(vectors), [(step, total / len(vectors)) for step, total in sums.items()])


class Curves:
    """The curve of the index version being served, measured once on a thread beside the requests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._version = ""
        self._curve: Curve | None = None

    def get(self, ann: AnnClient, stats: IndexStats, vectors: NDArray[np.float32]) -> Curve | None:
        """The curve, or None while it is being measured; `vectors` are held-out ones of the index's embedding."""
        with self._lock:
            if self._version != stats.version and len(vectors):
                self._version, self._curve = stats.version, None
                arguments = (ann, stats, np.array(vectors[:_QUERIES]))
                threading.Thread(target=self._measure, args=arguments, name="recall", daemon=True).start()
            return self._curve

    def _measure(self, ann: AnnClient, stats: IndexStats, vectors: NDArray[np.float32]) -> None:
        try:
            curve = measure(ann, stats, vectors)
        except (VitrineError, ValueError) as error:  # ValueError: the client was closed meanwhile
            _log.warning("the recall curve was not measured", index=stats.version, reason=str(error))
            curve = None
        with self._lock:
            if self._version == stats.version:
                self._curve = curve
                if curve is None:
                    self._version = ""  # tried again at the next request
