"""Deletions in `item-updates` made tombstones, so that compaction drops them: only what nobody needs any more.

A deletion is needed while a retained artifact may bring its item back: a `binary-index` from before it, which a
rollback would serve, or `embeddings` that still have the item, from which the next index would be built.

A tombstone says nothing to readers, who have seen the deletion. But compaction keeps the last record of a key, and
an upsert may be appended between the look and the tombstone. So it is written first and looked at second: what
stood between is appended again, until nothing stands between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from kafka import KafkaProducer
from kafka.errors import KafkaError
from numpy.typing import NDArray

from vitrine.api.events.v1.events_pb2 import ItemUpdate
from vitrine.artifacts import ArtifactStore
from vitrine.errors import UnavailableError
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics
from vitrine.runtime.consume import Record
from vitrine.runtime.contained import offsets_of
from vitrine.runtime.tail import Tail

AGE_MS = 7 * 24 * 3600 * 1000  # longer than any build takes: one that began before the deletion has ended
_TIMEOUT_S = 30.0
_READ_S = 3600.0

Ids = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Buried:
    """Deletions that are the last word on their item: those made tombstones, and those still needed."""

    buried: int
    needed: int


def bury(
    url: str,
    namespace: str,
    store: ArtifactStore,
    embedded: Ids,
    *,
    now_ms: int,
    age_ms: int = AGE_MS,
    dry_run: bool = False,
) -> Buried:
    """Makes tombstones of the deletions that every retained artifact contains and that are older than `age_ms`.

    embedded: ids of the items in any retained version of `embeddings`, ascending
    Raises UnavailableError, ArtifactError (offsets of another cluster), and LogLostError.
    """
    log = _Log(url, qualify(namespace, topics.ITEM_UPDATES))
    try:
        log.read()
        cluster = kafka.cluster_id(url)
        contained: dict[str, Mapping[int, int]] = {}
        ready, needed = [], 0
        for key, last in log.last.items():
            if not last.deleted or last.buried:
                continue
            index, item_id = _parts(key)
            if index not in contained:
                contained[index] = _contained(store, index, log.topic, cluster)
            place = int(np.searchsorted(embedded, item_id))
            if (
                contained[index].get(last.partition, 0) <= last.offset
                or last.time_ms > now_ms - age_ms
                or (place < len(embedded) and embedded[place] == item_id)
            ):
                needed += 1
            else:
                ready.append(key)
        if not dry_run:
            log.bury(ready)
        return Buried(len(ready), needed)
    finally:
        log.close()


def _parts(key: bytes) -> tuple[str, np.uint64]:
    """Index and item of a key; item 0 where it is no such key, which no reader applies."""
    index, _, item = key.decode("utf-8", "replace").rpartition("/")
    digits = item.isascii() and item.isdigit() and len(item) < 20
    return index, np.uint64(int(item) if digits else 0)


def _contained(store: ArtifactStore, index: str, topic: str, cluster: str) -> Mapping[int, int]:
    """Offsets below which every retained version of an index contains the log; none where there is no version."""
    each = [offsets_of(manifest, topic, cluster) for manifest in store.list(index)]
    partitions = set.intersection(*(set(offsets) for offsets in each)) if each else set()
    return {place: min(offsets[place] for offsets in each) for place in partitions}


@dataclass(slots=True)
class _Last:
    """The last record of a key that is neither a tombstone nor appended here.

    buried: a tombstone follows it
    stands: what was appended here follows it, and is another value
    """

    partition: int
    offset: int
    time_ms: int
    deleted: bool
    value: bytes | None = None
    buried: bool = False
    stands: bool = False

    @property
    def lost(self) -> bool:
        """Whether compaction would keep something else."""
        return self.stands or (self.buried and not self.deleted)


class _Log:
    """The last record of each key, and appends that are looked at afterwards."""

    def __init__(self, url: str, topic: str) -> None:
        self.topic = topic
        self.last: dict[bytes, _Last] = {}
        self._url = url
        self._kept: set[bytes] = set()  # keys whose values are kept
        self._own: set[tuple[int, int]] = set()
        self._positions: dict[int, int] = {}
        self._producer: KafkaProducer | None = None

    def read(self) -> None:
        """Up to its end, from where it was read to."""
        tail = Tail(self._url, self.topic, self._take, self._positions)
        try:
            tail.wait_caught_up(_READ_S)
        finally:
            tail.close()
        self._positions = tail.positions

    def bury(self, keys: Sequence[bytes]) -> None:
        """A tombstone for each key; then what came between the look and it, appended again until nothing did.

        So is what an earlier run, killed between the two, has left.
        """
        self._kept = {*keys, *(key for key, last in self.last.items() if last.lost)}
        if self._kept - set(keys):
            self._positions = {}
            self.read()
        self._append(dict.fromkeys(keys))
        while True:
            self.read()
            lost = [key for key in self._kept if self.last[key].lost]
            if not lost:
                return
            self._append({key: self.last[key].value for key in lost})

    def close(self) -> None:
        """Ends the connection."""
        if self._producer is not None:
            self._producer.close(timeout=2)

    def _append(self, records: Mapping[bytes, bytes | None]) -> None:
        if not records:
            return
        if self._producer is None:
            self._producer = kafka.producer(self._url, linger_ms=10)
        try:
            sent = [self._producer.send(self.topic, key=key, value=value) for key, value in records.items()]
            for each in sent:
                there = each.get(timeout=_TIMEOUT_S)
                self._own.add((there.partition, there.offset))
        except KafkaError as error:
            raise UnavailableError(f"{self.topic} does not take tombstones ({error}); run it again") from error

    def _take(self, records: Mapping[int, Sequence[Record]]) -> int:
        for partition, some in records.items():
            for record in some:
                if record.key is not None:
                    self._take_one(partition, record, record.key)
        return 0

    def _take_one(self, partition: int, record: Record, key: bytes) -> None:
        last = self.last.get(key)
        if record.value is None:
            if last is not None:
                last.buried, last.stands = True, False
        elif last is not None and (partition, record.offset) in self._own:
            last.buried, last.stands = False, record.value != last.value
        else:
            value = record.value if key in self._kept else None
            self.last[key] = _Last(partition, record.offset, record.timestamp, _is_deletion(record.value), value)


def _is_deletion(value: bytes) -> bool:
    try:
        return ItemUpdate.FromString(value).deleted
    except DecodeError:
        return False
