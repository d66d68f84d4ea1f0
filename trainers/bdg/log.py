"""The updates of one index that `item-updates` holds now, read once a job."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from vitrine.ann import updates
from vitrine.ann.updates import Update, UpdateError
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics
from vitrine.runtime.consume import Record
from vitrine.runtime.contained import offsets
from vitrine.runtime.tail import Tail, skip

_READ_S = 3600.0


@dataclass(frozen=True)
class Logged:
    """What an index is changed by.

    last:    the last update of each item
    offsets: what of the log they are, for a manifest
    refused: records that are no update of this index
    """

    last: dict[int, Update]
    offsets: dict[str, Any]
    refused: int

    def also_refused(self, count: int) -> Self:
        """With so many more."""
        return replace(self, refused=self.refused + count)


def read(url: str, namespace: str, index: str, embeddings_version: str, dim: int) -> Logged:
    """Everything up to the log's end now. Raises UnavailableError where Kafka does not answer."""
    last: dict[int, Update] = {}
    topic = qualify(namespace, topics.ITEM_UPDATES)
    cluster = kafka.cluster_id(url)

    def apply(records: Mapping[int, Sequence[Record]]) -> int:
        refused = 0
        for partition, some in records.items():
            for record in some:
                try:
                    update = updates.parse(record.key, record.value, index, embeddings_version, dim)
                except UpdateError as error:
                    refused += 1
                    skip(topic, partition, record, str(error))
                else:
                    if update is not None:
                        last[update.item_id] = update
        return refused

    tail = Tail(url, topic, apply)
    try:
        tail.wait_caught_up(_READ_S)
    finally:
        tail.close()
    return Logged(last, offsets(topic, cluster, tail.positions), tail.skipped)


def save(logged: Logged, index: str, embeddings_version: str, folder: Path) -> None:
    """The updates as a file, for a job that is killed and goes on from what it has read."""
    values = [updates.value_of(index, update, embeddings_version) for _, update in sorted(logged.last.items())]
    np.savez(
        folder / "updates.npz",
        ids=np.array(sorted(logged.last), np.uint64),
        ends=np.cumsum([len(value) for value in values], dtype=np.int64),
        values=np.frombuffer(b"".join(values), np.uint8),
    )
    note = {"offsets": logged.offsets, "refused": logged.refused}
    (folder / "offsets.json").write_text(json.dumps(note))


def load(folder: Path, index: str, embeddings_version: str, dim: int) -> Logged:
    """What `save` wrote."""
    note = json.loads((folder / "offsets.json").read_text())
    for topic, of in note["offsets"]["topics"].items():
        note["offsets"]["topics"][topic] = {int(partition): offset for partition, offset in of.items()}
    last = {}
    with np.load(folder / "updates.npz", allow_pickle=False) as saved:
        values, begin = saved["values"].tobytes(), 0
        for item_id, end in zip(saved["ids"].tolist(), saved["ends"].tolist(), strict=True):
            update = updates.parse(
                updates.key_of(index, item_id), values[begin:end], index, embeddings_version, dim
            )
            assert update is not None
            last[item_id], begin = update, end
    return Logged(last, note["offsets"], note["refused"])
