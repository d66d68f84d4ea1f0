"""The log of updates: what one served version shows of `item-updates`, and the way to append to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import compress
from typing import Protocol

import numpy as np
from kafka import KafkaProducer
from kafka.errors import KafkaError
from prometheus_client import Counter

from vitrine import trace_context
from vitrine.ann import updates
from vitrine.ann.updates import Update, UpdateError
from vitrine.errors import UnavailableError
from vitrine.placement import qualify, shards_of
from vitrine.runtime import kafka, metrics, topics
from vitrine.runtime.consume import Record
from vitrine.runtime.readings import Readings
from vitrine.runtime.tail import Tail, skip

updates_total = Counter(
    "vitrine_ann_updates_total",
    "Records of item-updates read: upsert, delete, or refused and passed over.",
    ("index", "outcome"),
    registry=metrics.REGISTRY,
)
lag = Readings("vitrine_ann_log_lag_records", "Records of item-updates that an index does not show yet.", "index")


class Applies(Protocol):
    """What takes the updates: a LiveIndex."""

    def apply(self, updates: Sequence[Update]) -> Sequence[tuple[Update, str]]:
        """Shows them from its return on, but for those that it gives back with a reason."""


class Shard:
    """Which items are this process's: those whose murmur2 is `number` modulo `of`."""

    def __init__(self, number: int, of: int) -> None:
        self.number, self.of = number, of

    def has(self, item_ids: Sequence[int]) -> list[bool]:
        """One an item."""
        if self.of == 1:
            return [True] * len(item_ids)
        found: list[bool] = (shards_of(np.array(item_ids, np.uint64), self.of) == self.number).tolist()
        return found


class Log:
    """Applies the log's records of one index and shard to a live index, from the artifact's offsets on.

    What is no update of it (another version of embeddings, a bad vector) is logged, counted and passed over.
    """

    def __init__(
        self,
        url: str,
        namespace: str,
        index: str,
        embeddings_version: str,
        dim: int,
        shard: Shard,
        live: Applies,
        offsets: Mapping[int, int],
    ) -> None:
        self._index, self._embeddings_version, self._dim = index, embeddings_version, dim
        self._shard, self._live = shard, live
        for outcome in ("upsert", "delete", "refused"):
            updates_total.labels(index, outcome)
        self._lag = lambda: {index: float(self.tail.unread)}
        self.tail = Tail(url, qualify(namespace, topics.ITEM_UPDATES), self._apply, offsets)
        lag.add(self._lag)

    @property
    def visible(self) -> dict[int, int]:
        """The next offset of each partition: what is below it is shown."""
        return self.tail.positions

    def trouble(self, bound_s: float) -> str | None:
        """Why updates may be missing: the tail has ended, or Kafka has been silent for longer than the bound."""
        if self.tail.error is not None:
            return str(self.tail.error)
        silent = self.tail.seconds_since_contact
        return f"no word from Kafka for {silent:.0f} s" if silent > bound_s else None

    def close(self) -> None:
        """No record is applied from here on."""
        lag.remove(self._lag)
        self.tail.close()

    def _apply(self, records: Mapping[int, Sequence[Record]]) -> int:
        batch: list[Update] = []
        places: list[tuple[int, Record]] = []
        refused = 0
        for partition, some in records.items():
            for record in some:
                try:
                    update = updates.parse(
                        record.key, record.value, self._index, self._embeddings_version, self._dim
                    )
                except UpdateError as error:
                    refused += 1
                    skip(self.tail.topic, partition, record, str(error))
                    continue
                if update is not None:
                    batch.append(update)
                    places.append((partition, record))
        mine = self._shard.has([update.item_id for update in batch])
        batch, places = list(compress(batch, mine)), list(compress(places, mine))
        unfit = self._live.apply(batch) if batch else []
        where = {id(update): place for update, place in zip(batch, places, strict=True)} if unfit else {}
        for update, reason in unfit:
            skip(self.tail.topic, *where[id(update)], reason)
        deletions = sum(update.vector is None for update in batch)
        for outcome, count in (
            ("upsert", len(batch) - deletions - len(unfit)),
            ("delete", deletions),
            ("refused", refused + len(unfit)),
        ):
            updates_total.labels(self._index, outcome).inc(count)
        return refused + len(unfit)


class Writer:
    """Appends updates to `item-updates`. Connects when first used; safe for threads."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url, self._topic = url, qualify(namespace, topics.ITEM_UPDATES)
        self._producer: KafkaProducer | None = None
        self._lock = threading.Lock()

    def append(
        self, index: str, batch: Sequence[Update], embeddings_version: str, timeout_s: float
    ) -> dict[int, int]:
        """Returns when the broker has all: {partition: offset after the last of them}.

        Raises UnavailableError where it does not within the timeout; some may have been written then.
        """
        deadline = time.monotonic() + timeout_s
        producer = self._connected()
        ends: dict[int, int] = {}
        try:
            sent = [
                producer.send(
                    self._topic,
                    key=updates.key_of(index, update.item_id),
                    value=updates.value_of(index, update, embeddings_version),
                    headers=trace_context.headers(),
                )
                for update in batch
            ]
            for each in sent:
                there = each.get(timeout=max(0.001, deadline - time.monotonic()))
                ends[there.partition] = max(ends.get(there.partition, 0), there.offset + 1)
        except KafkaError as error:
            raise UnavailableError(
                f"the log did not take the updates within {timeout_s:.1f} s ({error}); send them again"
            ) from error
        return ends

    def close(self) -> None:
        """Ends the connection."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=2)
                self._producer = None

    def _connected(self) -> KafkaProducer:
        with self._lock:
            if self._producer is None:
                self._producer = kafka.producer(self._url, bootstrap_timeout_ms=2_000, max_block_ms=5_000)
            return self._producer


def wait_visible(
    log: Callable[[], Log | None],
    positions: Mapping[int, int],
    left_s: Callable[[], float],
) -> bool:
    """Waits until the log that `log` gives (another one after a swap) shows what is below the positions.

    Whether it does before `left_s` is used up.
    """
    while True:
        current = log()
        if current is not None and current.tail.wait_reached(positions, min(0.1, max(0.0, left_s()))):
            return True
        if left_s() <= 0:
            return False
