"""AnnClient: visual search and the updates of its items; `vitrine.client` is where to import it from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vitrine.api.ann.v1 import ann_pb2, ann_pb2_grpc
from vitrine.arguments import count, ids, wrong
from vitrine.calls import Client
from vitrine.filters import AttributeValue, Filter, from_attributes, from_value, to_attributes

_KINDS = ("vectors", "codes", "picture", "item_ids")


@dataclass(frozen=True, slots=True)
class ShardAnswer:
    """What one shard had to say to a router: the version that answered, or why none did."""

    shard: int
    version: str
    error: str


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Nearest items of each query, nearest first; lists are parallel to the queries.

    version:   of the `binary-index` artifact that answered
    ids:       one uint64 (n,) array a query; n = k, or less where fewer items may be results
    scores:    cosine of query and item, float32 (n,) a query; None where the queries were codes
    distances: Hamming distance of the codes, bits, uint32 (n,) a query
    groups:    with `group_by`, the value of each result; else None
    cursors:   one a query, for `search(..., cursors=...)` to go on after these results; b"" where there are no more
    shards:    of a router, each shard by number
    """

    version: str
    ids: list[NDArray[np.uint64]]
    scores: list[NDArray[np.float32]] | None
    distances: list[NDArray[np.uint32]]
    groups: list[list[AttributeValue | None]] | None = None
    cursors: list[bytes] = field(default_factory=list)
    shards: list[ShardAnswer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Items:
    """Those of the items asked for that are indexed, in the order asked; all parallel.

    ids: uint64 (n,); vectors: float32 (n, dim), unit length; attributes: by name
    """

    version: str
    ids: NDArray[np.uint64]
    vectors: NDArray[np.float32]
    attributes: list[dict[str, AttributeValue]]


@dataclass(frozen=True, slots=True)
class Written:
    """Updates that are in the log, and shown by the replica that answered.

    sequences: {partition: offset of the last record}, for `search(..., min_sequences=...)` on any replica
    items:     records written
    """

    sequences: dict[int, int]
    items: int


@dataclass(frozen=True, slots=True)
class IndexStats:
    """The index version being served: sizes, defaults, and whether pictures can be searched by.

    index:   the artifact's name, where an alias was asked for
    visible: {partition: offset of the last record of the log that is shown}
    """

    version: str
    embeddings_version: str
    items: int
    dim: int
    bits: int
    over_recall: int
    pictures: bool
    ef: int = 0
    index: str = ""
    shard: int = 0
    shards: int = 1
    visible: Mapping[int, int] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()


class AnnClient(Client):
    """Visual search, and the items that it is over."""

    @cached_property
    def _stub(self) -> ann_pb2_grpc.AnnServiceStub:
        return ann_pb2_grpc.AnnServiceStub(self._channel)

    def search(
        self,
        vectors: ArrayLike | None = None,
        *,
        codes: NDArray[Any] | None = None,
        picture: bytes | None = None,
        item_ids: Iterable[int] | NDArray[np.uint64] | None = None,
        k: int = 10,
        over_recall: int = 0,
        ef: int = 0,
        exact: bool = False,
        filter: Filter | None = None,
        group_by: str = "",
        radius: int | None = None,
        cursors: Sequence[bytes] = (),
        min_sequences: Mapping[int, int] | None = None,
        allow_partial: bool = False,
        index: str = "",
        timeout_s: float | None = None,
    ) -> SearchResult:
        """The k nearest items of every query, which is one of:

        vectors:  (q, dim) or (dim,), taken as float32; finite
        codes:    (q, bits / 8) uint8, or (q, bits / 64) uint64 in little-endian word order; or one row
        picture:  the bytes of one JPEG or PNG
        item_ids: indexed items, whose nearest other items are wanted

        k is 1 to 1,000. The others, each of which is left out at will:

        over_recall:   candidates re-ranked by real vectors, as a multiple of k, 1 to 100
        ef:            nodes that a walk of the graph keeps: more finds more and takes longer
        exact:         compare with all items instead of walking
        filter:        which items may be results (`vitrine.filters`)
        group_by:      an attribute: one result at most for each of its values, and k is a number of values
        radius:        in bits: nothing farther by its code is a result
        cursors:       of the result before, to go on behind it; of the same queries and index version
        min_sequences: of `upsert` or `delete`: wait, within the deadline, until these are shown
        allow_partial: of a router: answer without the shards that are away, and name them in `shards`

        Raises InvalidArgumentError naming the field, NotFoundError for an index or item that is not there,
        UnavailableError while no index is loaded, VitrineError of FAILED_PRECONDITION for a cursor that another
        version gave.
        """
        given = (vectors, codes, picture, item_ids)
        if sum(each is not None for each in given) != 1:
            raise wrong("vectors", f"exactly one of {', '.join(_KINDS)} is the query")
        request = ann_pb2.SearchRequest(
            index=index,
            k=count("k", k),
            over_recall=count("over_recall", over_recall),
            ef=count("ef", ef),
            exact=exact,
            filter=None if filter is None else filter.message,
            group_by=group_by,
            radius=None if radius is None else count("radius", radius),
            cursors=cursors,
            min_sequences=_sequences(min_sequences or {}),
            allow_partial=allow_partial,
        )
        kind, queries = "picture", 1
        if vectors is not None:
            rows = np.atleast_2d(np.ascontiguousarray(vectors, "<f4"))
            request.vectors, kind, queries = rows.tobytes(), "vectors", len(rows)
        elif codes is not None:
            if codes.dtype not in (np.uint8, np.uint64):
                raise wrong("codes", f"should be uint8 or uint64, not {codes.dtype}")
            rows = np.atleast_2d(codes.astype(codes.dtype.newbyteorder("<"), order="C"))
            request.codes, kind, queries = rows.tobytes(), "codes", len(rows)
        elif item_ids is not None:
            asked = ids("item_ids", item_ids)
            request.item_ids.extend(asked)
            kind, queries = "item_ids", len(asked)
        else:
            request.picture = picture or b""
        response = self._call(self._stub.Search, request, timeout_s)
        if len(response.counts) != queries:  # bytes have no rows: 2 x 64 numbers look like 1 x 128
            raise wrong(kind, f"{queries} rows were read as {len(response.counts)}; `stats` has the right length")
        return _result(response, scored=codes is None, grouped=bool(group_by))

    def get(
        self, item_ids: Iterable[int] | NDArray[np.uint64], *, index: str = "", timeout_s: float | None = None
    ) -> Items:
        """What the index holds of 1 to 1,000 items; those that are not indexed are left out."""
        request = ann_pb2.GetRequest(index=index, item_ids=ids("item_ids", item_ids))
        r = self._call(self._stub.Get, request, timeout_s)
        rows = len(r.item_ids)
        return Items(
            version=r.version,
            ids=np.array(r.item_ids, np.uint64),
            vectors=np.frombuffer(r.vectors, "<f4").astype(np.float32).reshape(rows, -1 if rows else 0),
            attributes=[from_attributes(each) for each in r.attributes],
        )

    def upsert(
        self,
        item_ids: Iterable[int] | NDArray[np.uint64],
        vectors: ArrayLike,
        *,
        embeddings_version: str,
        attributes: Sequence[Mapping[str, AttributeValue]] | None = None,
        index: str = "",
        timeout_s: float | None = None,
    ) -> Written:
        """Adds 1 to 1,000 items, or replaces them whole, and returns once the replica that answers shows them.

        vectors:            (n, dim), taken as float32; finite and not zero, of any length
        embeddings_version: that the vectors come from: `stats().embeddings_version`, or the call is refused
        attributes:         one mapping an item, of values of the index's types; None: none at all

        A call that ends otherwise may have been written; to send it again does no harm. Raises InvalidArgumentError
        naming the field, VitrineError of FAILED_PRECONDITION for vectors of another version of embeddings and where
        the service takes no updates.
        """
        request = ann_pb2.UpsertRequest(
            index=index,
            item_ids=ids("item_ids", item_ids),
            vectors=np.atleast_2d(np.ascontiguousarray(vectors, "<f4")).tobytes(),
            embeddings_version=embeddings_version,
            attributes=[to_attributes("attributes", each) for each in attributes or ()],
        )
        return _written(self._call(self._stub.Upsert, request, timeout_s))

    def delete(
        self,
        item_ids: Iterable[int] | NDArray[np.uint64] | None = None,
        *,
        filter: Filter | None = None,
        index: str = "",
        timeout_s: float | None = None,
    ) -> Written:
        """Removes 1 to 1,000 items, or all that a filter holds for now, and returns once they are not shown.

        Raises as `upsert` does.
        """
        if (item_ids is None) == (filter is None):
            raise wrong("item_ids", "exactly one of item_ids and filter says what is deleted")
        request = ann_pb2.DeleteRequest(
            index=index,
            item_ids=[] if item_ids is None else ids("item_ids", item_ids),
            filter=None if filter is None else filter.message,
        )
        return _written(self._call(self._stub.Delete, request, timeout_s))

    def stats(self, *, index: str = "", timeout_s: float | None = None) -> IndexStats:
        """Version, sizes and defaults of the index being served."""
        r = self._call(self._stub.Stats, ann_pb2.StatsRequest(index=index), timeout_s)
        return IndexStats(
            version=r.version,
            embeddings_version=r.embeddings_version,
            items=int(r.items),
            dim=r.dim,
            bits=r.bits,
            over_recall=r.over_recall,
            pictures=r.pictures,
            ef=r.ef,
            index=r.index,
            shard=r.shard,
            shards=max(1, r.shards),
            visible={each.partition: int(each.offset) for each in r.visible},
            attributes=tuple(r.attributes),
        )


def _result(response: ann_pb2.SearchResponse, *, scored: bool, grouped: bool) -> SearchResult:
    ends = np.cumsum(np.array(response.counts, np.int64))
    groups = None
    if grouped:
        values = [from_value(value) for value in response.groups]
        groups = [values[end - n : end] for n, end in zip(response.counts, ends.tolist(), strict=True)]
    return SearchResult(
        version=response.version,
        ids=np.split(np.array(response.item_ids, np.uint64), ends[:-1]),
        scores=np.split(np.array(response.scores, np.float32), ends[:-1]) if scored else None,
        distances=np.split(np.array(response.distances, np.uint32), ends[:-1]),
        groups=groups,
        cursors=list(response.cursors),
        shards=[ShardAnswer(each.shard, each.version, each.error) for each in response.shards],
    )


def _written(response: ann_pb2.UpsertResponse | ann_pb2.DeleteResponse) -> Written:
    return Written({each.partition: int(each.offset) for each in response.sequences}, int(response.items))


def _sequences(visible: Mapping[int, int]) -> list[ann_pb2.Sequence]:
    return [ann_pb2.Sequence(partition=place, offset=offset) for place, offset in visible.items()]
