"""Shards' answers as one: the k nearest of all, by (score, id) or (distance, id), one a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrine.api.ann.v1 import ann_pb2
from vitrine.api.items.v1 import items_pb2

Number = TypeVar("Number", np.uint64, np.uint32, np.float32)


@dataclass(frozen=True)
class Part:
    """What one shard said of some of the queries. rows: int64, the position of each in the caller's request."""

    answer: ann_pb2.SearchResponse
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Merged:
    """The best of all parts, query by query, nearest first.

    counts: int64 (q,)
    ids, scores, distances, groups: flat, as in the response; scores and groups are None where nobody asked for them
    taken:  int64 (parts, q): how many of a part's results of a query are among them
    """

    counts: NDArray[np.int64]
    ids: NDArray[np.uint64]
    scores: NDArray[np.float32] | None
    distances: NDArray[np.uint32]
    groups: list[items_pb2.Value] | None
    taken: NDArray[np.int64]


def merge(parts: Sequence[Part], queries: int, k: int, *, by_score: bool, grouped: bool) -> Merged:
    """The k best results of each query, or with groups the best of each of the k best groups.

    by_score: the key is the score, higher first; else the distance. Equal keys: the lower id first, as in a shard.
    """
    ids = _flat([part.answer.item_ids for part in parts], np.uint64)
    distances = _flat([part.answer.distances for part in parts], np.uint32)
    scores = _flat([part.answer.scores for part in parts], np.float32)
    query = np.concatenate([np.repeat(part.rows, part.answer.counts) for part in parts] or [np.empty(0, np.int64)])
    sizes = [len(part.answer.item_ids) for part in parts]
    of_part = np.repeat(np.arange(len(parts)), sizes)
    order = np.lexsort((ids, -scores if by_score else distances, query))
    groups = [value for part in parts for value in part.answer.groups] if grouped else None
    if groups is not None:
        order = order[_first_of_each(query[order], _numbered(groups)[order])]
    # The rank of each result within its query: those below k stay.
    asked = query[order]
    starts = np.searchsorted(asked, np.arange(queries + 1))
    order = order[np.arange(len(order)) - starts[asked] < k]
    taken = np.zeros((len(parts), queries), np.int64)
    np.add.at(taken, (of_part[order], query[order]), 1)
    return Merged(
        counts=taken.sum(axis=0),
        ids=ids[order],
        scores=scores[order] if by_score else None,
        distances=distances[order],
        groups=None if groups is None else [groups[i] for i in order],
        taken=taken,
    )


def _flat(lists: Sequence[Sequence[float]], kind: type[Number]) -> NDArray[Number]:
    return np.concatenate([np.array(each, kind) for each in lists] or [np.empty(0, kind)])


def _numbered(values: Sequence[items_pb2.Value]) -> NDArray[np.int64]:
    """A number for each value, the same for equal values."""
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(v.SerializeToString(), len(numbers)) for v in values], np.int64)


def _first_of_each(queries: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions, ascending, of the first row of each (query, group)."""
    if len(groups) == 0:
        return np.empty(0, np.int64)
    first: NDArray[np.int64] = np.unique(queries * (groups.max() + 1) + groups, return_index=True)[1]
    return np.sort(first)
