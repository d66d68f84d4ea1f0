"""The compacted topic `ad-updates`, read whole into a catalog: what records say wins over the tables."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vitrine.matching.catalog import OFF, Catalog
from vitrine.matching.merge import without
from vitrine.matching.updates import Updates
from vitrine.placement import qualify
from vitrine.runtime import kafka, topics
from vitrine.runtime.ad_log import read_whole
from vitrine.runtime.contained import offsets
from vitrine.runtime.tail import stamped


@dataclass(frozen=True, slots=True)
class Read:
    """A catalog and what it contains of the topic: offsets as a manifest has them, and records refused."""

    catalog: Catalog
    offsets: dict[str, Any] = field(default_factory=dict)
    refused: int = 0


def read_updates(url: str, namespace: str, catalog: Catalog) -> Read:
    """The catalog as of the topic's end. Ended ads go; paused, out of schedule or budget stays as `ad_off`.

    Raises UnavailableError, NotFoundError and LogLostError.
    """
    topic = qualify(namespace, topics.AD_UPDATES)
    cluster = kafka.cluster_id(url)
    updates = Updates(catalog, "", 0)
    tail = read_whole(url, topic, stamped(topic, updates.apply))
    position = tail.positions[0]
    updates.fold()
    folded = updates.market().catalog
    ended = np.flatnonzero(folded.ad_off & OFF["ended"]).astype(np.uint32)
    read = replace(without(folded, ended), offset=position)
    return Read(read, offsets(topic, cluster, {0: position}), tail.skipped)
