"""Requests taken apart by the shard that holds each item, and what the shards said of their items put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from services.ann.router.fanout import Leg
from services.ann.router.shards import Shard
from vitrine.api.ann.v1 import ann_pb2
from vitrine.placement import shards_of

MAX_ITEMS = 1000  # of a call, as a shard has it: a larger call may not become several that are not


def by_owner(shards: Sequence[Shard], item_ids: Sequence[int]) -> list[tuple[Shard, list[int]]]:
    """Each shard that holds some of the items, and their positions."""
    owners = shards_of(np.array(item_ids, np.uint64), len(shards))
    return [(shards[i], np.flatnonzero(owners == i).tolist()) for i in np.unique(owners).tolist()]


def get_legs(shards: Sequence[Shard], request: ann_pb2.GetRequest) -> list[Leg]:
    if not 1 <= len(request.item_ids) <= MAX_ITEMS:
        return [Leg(shards[0], request)]  # which says what is wrong
    return [
        Leg(shard, ann_pb2.GetRequest(index=request.index, item_ids=[request.item_ids[i] for i in rows]), rows)
        for shard, rows in by_owner(shards, request.item_ids)
    ]


def upsert_legs(shards: Sequence[Shard], request: ann_pb2.UpsertRequest) -> list[Leg]:
    items = len(request.item_ids)
    if not 1 <= items <= MAX_ITEMS or len(request.vectors) % items or len(request.attributes) not in (0, items):
        return [Leg(shards[0], request)]
    size = len(request.vectors) // items
    return [
        Leg(
            shard,
            ann_pb2.UpsertRequest(
                index=request.index,
                item_ids=[request.item_ids[i] for i in rows],
                vectors=b"".join(request.vectors[i * size : (i + 1) * size] for i in rows),
                embeddings_version=request.embeddings_version,
                attributes=[request.attributes[i] for i in rows] if request.attributes else (),
            ),
            rows,
        )
        for shard, rows in by_owner(shards, request.item_ids)
    ]


def delete_legs(shards: Sequence[Shard], request: ann_pb2.DeleteRequest) -> list[Leg]:
    """A filter is each shard's to resolve."""
    if request.HasField("filter"):
        return [Leg(shard, request) for shard in shards]
    if not 1 <= len(request.item_ids) <= MAX_ITEMS:
        return [Leg(shards[0], request)]
    return [
        Leg(shard, ann_pb2.DeleteRequest(index=request.index, item_ids=[request.item_ids[i] for i in rows]), rows)
        for shard, rows in by_owner(shards, request.item_ids)
    ]


def joined_items(asked: Sequence[int], answers: Sequence[ann_pb2.GetResponse]) -> ann_pb2.GetResponse:
    """The items of all answers, in the order asked for."""
    found: dict[int, tuple[ann_pb2.GetResponse, int]] = {}
    for answer in answers:
        for row, item_id in enumerate(answer.item_ids):
            found[item_id] = answer, row
    response = ann_pb2.GetResponse(version=oldest(answer.version for answer in answers))
    rows = []
    for item_id in asked:
        if item_id in found:
            answer, row = found[item_id]
            size = len(answer.vectors) // len(answer.item_ids)
            rows.append(answer.vectors[row * size : (row + 1) * size])
            response.item_ids.append(item_id)
            response.attributes.append(answer.attributes[row])
    response.vectors = b"".join(rows)
    return response


def joined_sequences(answers: Iterable[ann_pb2.UpsertResponse | ann_pb2.DeleteResponse]) -> list[ann_pb2.Sequence]:
    """The last record of each partition."""
    last: dict[int, int] = {}
    for answer in answers:
        for place in answer.sequences:
            last[place.partition] = max(last.get(place.partition, -1), place.offset)
    return [ann_pb2.Sequence(partition=partition, offset=offset) for partition, offset in sorted(last.items())]


def joined_stats(answers: Sequence[ann_pb2.StatsResponse]) -> ann_pb2.StatsResponse:
    """Of the whole index: items of all shards, records that all of them show, attributes that any knows."""
    whole = ann_pb2.StatsResponse()
    whole.CopyFrom(answers[0])
    whole.version = oldest(answer.version for answer in answers)
    whole.items = sum(answer.items for answer in answers)
    whole.pictures = all(answer.pictures for answer in answers)
    whole.shard, whole.shards = 0, len(answers)
    shown = [{place.partition: place.offset for place in answer.visible} for answer in answers]
    del whole.visible[:]
    for partition in sorted(set[int]().union(*shown)):
        if all(partition in each for each in shown):
            whole.visible.add(partition=partition, offset=min(each[partition] for each in shown))
    whole.attributes[:] = sorted({name for answer in answers for name in answer.attributes})
    return whole


def oldest(versions: Iterable[str]) -> str:
    """A version begins with its time."""
    return min(versions)
