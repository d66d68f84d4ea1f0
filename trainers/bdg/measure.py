"""What an index loses: its neighbours against the exact ones, and against the pictures' categories."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vitrine.ann.embeddings import Embeddings
from vitrine.ann.index import BinaryIndex, Hits, Options

Metrics = dict[str, float | int | str]

K = 10
_QUERIES = 1000
_ASKED = 100  # queries compared with
_CHUNK = 1 << 16  # items at a time
_ROUNDING = 1e-6  # of a cosine


def measure(index: BinaryIndex, vectors: Embeddings) -> Metrics:
    """Metrics of the manifest.

    recall_at_10:               share of the 10 nearest found at the default ef and over_recall; a result counts
                                whose cosine is the true 10th or more
    recall_at_10_by_codes:      the same for the codes alone
    search_same_category_at_10: share of neighbours of the query's own category, where pictures are held out

    Queries are held-out pictures, those not indexed; without any, indexed ones, spread evenly.
    """
    indexed = np.zeros(len(vectors.ids), bool)
    for view in index.segments:
        for start in range(0, len(view.segment.ids), _CHUNK):
            ids = view.segment.ids[start : start + _CHUNK]
            place = np.minimum(np.searchsorted(vectors.ids, ids), len(indexed) - 1)
            indexed[place[vectors.ids[place] == ids]] = True
    held_out = np.flatnonzero(~indexed)
    pool = held_out if len(held_out) else np.arange(len(vectors.ids))
    rows = pool[np.linspace(0, len(pool) - 1, min(_QUERIES, len(pool))).astype(np.int64)]
    queries = np.asarray(vectors.vectors[rows])
    hits = index.search_vectors(queries, Options(K))
    bounds = exact_bounds([view.segment.vectors for view in index.segments], queries, K)
    by_codes = index.search_vectors(queries, Options(K, over_recall=1))
    metrics: Metrics = {
        "items": index.items,
        "bits": index.bits,
        "dim": index.dim,
        "over_recall": index.over_recall,
        "ef": index.ef,
        "shards": len(index.segments),
        "queries": len(rows),
        "queries_held_out": int(len(held_out) > 0),
        "recall_at_10": recall(hits, bounds),
        "recall_at_10_by_codes": recall(by_codes, bounds),
    }
    if len(held_out):
        category = vectors.thumbnails(["category"])["category"]
        place = np.minimum(np.searchsorted(vectors.ids, hits.ids), len(vectors.ids) - 1)
        known = vectors.ids[place] == hits.ids  # updates bring items that have no picture here
        same = _text(category, place) == np.repeat(_text(category, rows), hits.counts)
        if known.any():
            metrics["search_same_category_at_10"] = float(same[known].mean())
    return metrics


def _text(column: pa.ChunkedArray, rows: NDArray[np.integer]) -> NDArray[np.object_]:
    """A column's values in these rows."""
    found: NDArray[np.object_] = column.take(pa.array(rows)).to_numpy()
    return found


def exact_bounds(parts: Sequence[NDArray[np.float32]], queries: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The k-th highest cosine of each query over the vectors of all parts, or the lowest of fewer; float32 (q,)."""
    bounds = np.empty(len(queries), np.float32)
    k = min(k, sum(map(len, parts)))
    for start in range(0, len(queries), _ASKED):
        some = queries[start : start + _ASKED]
        best = np.empty((len(some), 0), np.float32)
        for part in parts:
            for row in range(0, len(part), _CHUNK):
                best = np.concatenate([best, some @ part[row : row + _CHUNK].T], axis=1)
                if best.shape[1] > k:
                    best = np.partition(best, -k, axis=1)[:, -k:]
        bounds[start : start + len(some)] = best.min(axis=1)
    return bounds


def recall(hits: Hits, bounds: NDArray[np.float32]) -> float:
    """Share of results at least as near as the true k-th."""
    assert hits.scores is not None
    return float((hits.scores >= np.repeat(bounds, hits.counts) - _ROUNDING).mean())
