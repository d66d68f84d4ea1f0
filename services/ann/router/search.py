"""A search taken apart into what each shard is asked, and the shards' answers put together as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.ann.decode import KINDS
from services.ann.router.cursors import Cursor, Place, decode_all
from services.ann.router.fanout import Leg
from services.ann.router.merge import Merged, Part, merge
from services.ann.router.shards import Shard
from vitrine.api.ann.v1 import ann_pb2
from vitrine.errors import FieldError
from vitrine.placement import shards_of


@dataclass(frozen=True)
class Asked:
    """A search, understood.

    kind:    which of the four the query is; "" where it is none or several, which a shard refuses in its words
    vectors: of queries by items: their vectors, for the shards that do not hold them; one row a query
    cursors: of the page before, one a query; none for the first page
    """

    request: ann_pb2.SearchRequest
    kind: str
    vectors: tuple[bytes, ...] = ()
    cursors: tuple[Cursor, ...] = ()

    @property
    def by_score(self) -> bool:
        return self.kind != "codes"

    @property
    def version(self) -> str | None:
        """That the pages before are of, mostly; None for the first page."""
        found = Counter(place.version for cursor in self.cursors for place in cursor.places if place.version)
        return found.most_common(1)[0][0] if found else None

    @property
    def absent(self) -> list[int]:
        """Numbers of the shards that some query does not go on in, since they did not answer its first page."""
        return sorted({i for cursor in self.cursors for i, place in enumerate(cursor.places) if place.absent})


def understood(request: ann_pb2.SearchRequest, shards: int, vectors: Sequence[bytes] = ()) -> Asked:
    """Raises FieldError for cursors that are none, or of another number than the queries."""
    kind = kind_of(request)
    cursors = decode_all(request.cursors, shards) if kind else ()
    if cursors:
        queries = {
            "item_ids": len(request.item_ids),
            "picture": 1,
            "vectors": 0 if len(request.vectors) % len(cursors) else len(cursors),
            "codes": 0 if len(request.codes) % len(cursors) else len(cursors),
        }[kind]
        if queries != len(cursors):
            raise FieldError("cursors", f"has {len(cursors)}; send one a query")
    return Asked(request, kind, tuple(vectors), cursors)


def kind_of(request: ann_pb2.SearchRequest) -> str:
    given = [kind for kind in KINDS if getattr(request, kind)]
    return given[0] if len(given) == 1 else ""


def search_legs(shards: Sequence[Shard], asked: Asked) -> list[Leg]:
    """What the shards are asked: those that hold an item search by it, the others by its vector."""
    if not asked.kind or (asked.kind != "item_ids" and not asked.cursors):
        return [Leg(shard, asked.request) for shard in shards]
    by_item = asked.kind == "item_ids"
    queries = len(asked.request.item_ids) if by_item else len(asked.cursors)
    owners = shards_of(np.array(asked.request.item_ids, np.uint64), len(shards)) if by_item else None
    legs = []
    for shard in shards:
        # Queries of one shard that can stand in one request: of one kind, all with a cursor or all without.
        alike: dict[tuple[bool, bool], list[int]] = {}
        for i in range(queries):
            place = asked.cursors[i].places[shard.number] if asked.cursors else None
            if place is None or not (place.ended or place.absent):
                own = owners is not None and bool(owners[i] == shard.number)
                alike.setdefault((own, bool(place and place.taken)), []).append(i)
        legs += [Leg(shard, _of_rows(asked, shard, rows, own=own), rows) for (own, _), rows in alike.items()]
    return legs


def _of_rows(asked: Asked, shard: Shard, rows: Sequence[int], *, own: bool) -> ann_pb2.SearchRequest:
    """The request for some of its queries. own: the shard holds the items that are the queries."""
    request = ann_pb2.SearchRequest()
    request.CopyFrom(asked.request)
    del request.cursors[:]
    if asked.kind == "item_ids":
        del request.item_ids[:]
        if own:
            request.item_ids.extend(asked.request.item_ids[i] for i in rows)
        else:
            request.vectors = b"".join(asked.vectors[i] for i in rows)
    elif asked.kind in ("vectors", "codes"):
        whole: bytes = getattr(asked.request, asked.kind)
        size = len(whole) // len(asked.cursors)
        setattr(request, asked.kind, b"".join(whole[i * size : (i + 1) * size] for i in rows))
    if asked.cursors:
        own_cursors = [asked.cursors[i].of_shard(shard.number) for i in rows]
        request.cursors.extend(filter(None, own_cursors))  # all of them, or none
    return request


def joined(asked: Asked, legs: Sequence[Leg], shards: Sequence[Shard]) -> ann_pb2.SearchResponse:
    """One answer of those legs that have one."""
    answered = [leg for leg in legs if leg.answer is not None]
    parts = [_part(leg) for leg in answered]
    queries = 1 + max((int(part.rows.max()) for part in parts if len(part.rows)), default=-1)
    queries = max(queries, len(asked.cursors), len(asked.vectors))
    merged = merge(parts, queries, asked.request.k, by_score=asked.by_score, grouped=bool(asked.request.group_by))
    return ann_pb2.SearchResponse(
        counts=merged.counts.tolist(),
        item_ids=merged.ids.tolist(),
        scores=[] if merged.scores is None else merged.scores.tolist(),
        distances=merged.distances.tolist(),
        groups=merged.groups or (),
        cursors=list(_cursors(asked, answered, parts, merged, queries, shards)),
    )


def _part(leg: Leg) -> Part:
    queries = len(leg.answer.counts)
    rows = np.arange(queries) if leg.rows is None else np.array(leg.rows, np.int64)
    if len(rows) != queries:  # bytes have no rows: five queries cut into four are read as another number
        raise FieldError("cursors", f"has {len(rows)} where there are {queries} queries; send one a query")
    return Part(leg.answer, rows)


def _cursors(
    asked: Asked,
    answered: Sequence[Leg],
    parts: Sequence[Part],
    merged: Merged,
    queries: int,
    shards: Sequence[Shard],
) -> Iterator[bytes]:
    """Where each query goes on: every shard after the last merged result."""
    of = {
        (leg.shard.number, int(query)): (number, row)
        for number, (leg, part) in enumerate(zip(answered, parts, strict=True))
        for row, query in enumerate(part.rows)
    }
    keys = merged.distances if merged.scores is None else -merged.scores
    ends = np.cumsum(merged.counts)
    for query in range(queries):
        before = asked.cursors[query] if asked.cursors else None
        if merged.counts[query]:
            key, item_id = float(keys[ends[query] - 1]), int(merged.ids[ends[query] - 1])
        elif before is not None:
            key, item_id = before.key, before.item_id
        else:
            key, item_id = -np.inf, 0
        places = []
        for shard in shards:
            was = before.places[shard.number] if before else Place("")
            found = of.get((shard.number, query))
            if found is None:  # not asked, or without an answer
                places.append(was)
                continue
            number, row = found
            answer, taken = parts[number].answer, int(merged.taken[number, query])
            more = taken < answer.counts[row] or bool(answer.cursors and answer.cursors[row])
            places.append(Place(answer.version, was.taken + taken, not more))
        yield Cursor(key, item_id, tuple(places)).encode()
