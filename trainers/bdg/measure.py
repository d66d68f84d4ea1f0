"""What an index loses: its neighbours against the exact ones, and against the pictures' categories."""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.embeddings import Embeddings
from vitrine.ann.index import BinaryIndex, Options

T = TypeVar("T", bound=np.generic)
Metrics = dict[str, float | int | str]

K = 10
_QUERIES = 1000
_CHUNK = 100  # queries compared with all items at a time
_ROUNDING = 1e-6  # of a cosine


def measure(index: BinaryIndex, vectors: Embeddings, chosen: NDArray[np.int64]) -> Metrics:
    """Metrics of the manifest.

    recall_at_10:               share of the 10 nearest found by codes and re-ranking at the default over_recall; a
                                result counts whose cosine is the true 10th or more
    recall_at_10_by_codes:      the same for the codes alone
    search_same_category_at_10: share of neighbours of the query's own category, where pictures are held out

    Queries are held-out pictures, those not indexed; without any, indexed ones, spread evenly.
    """
    held_out = np.setdiff1d(np.arange(len(vectors.ids)), chosen)
    pool = held_out if len(held_out) else chosen
    rows = pool[np.linspace(0, len(pool) - 1, min(_QUERIES, len(pool))).astype(np.int64)]
    queries = np.asarray(vectors.vectors[rows])
    hits = index.search_vectors(queries, Options(K))
    bounds = exact_bounds(index.segments[0].segment.vectors, queries, K)
    by_codes = index.search_vectors(queries, Options(K, over_recall=1))
    metrics: Metrics = {
        "items": index.items,
        "bits": index.bits,
        "dim": index.dim,
        "over_recall": index.over_recall,
        "queries": len(rows),
        "queries_held_out": int(len(held_out) > 0),
        "recall_at_10": recall(_rows(hits.scores, rows), bounds),
        "recall_at_10_by_codes": recall(_rows(by_codes.scores, rows), bounds),
    }
    if len(held_out):
        category = vectors.thumbnails(["category"])["category"].to_numpy(zero_copy_only=False)
        found = category[np.searchsorted(vectors.ids, _rows(hits.ids, rows))]
        metrics["search_same_category_at_10"] = float((found == category[rows][:, None]).mean())
    return metrics


def exact_bounds(items: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The k-th highest cosine of each query over all items, float32 (q,)."""
    bounds = np.empty(len(queries), np.float32)
    k = min(k, len(items))
    for start in range(0, len(queries), _CHUNK):
        cosines = queries[start : start + _CHUNK] @ items.T
        bounds[start : start + _CHUNK] = np.partition(cosines, -k, axis=1)[:, -k]
    return bounds


def recall(scores: NDArray[np.float32], bounds: NDArray[np.float32]) -> float:
    """Share of results at least as near as the true k-th."""
    return float((scores >= bounds[:, None] - _ROUNDING).mean())


def _rows(values: NDArray[T] | None, queries: NDArray[np.int64]) -> NDArray[T]:
    """Results of all queries, of which each has as many, one row a query."""
    assert values is not None
    return values.reshape(len(queries), -1)
