"""`vitrine topics bury`: which items the retained embeddings have, and the tombstones of the others."""

import time

import numpy as np
from numpy.typing import NDArray

from vitrine.ann import embeddings
from vitrine.ann.arrays import map_array
from vitrine.artifacts import ArtifactStore
from vitrine.errors import FieldError
from vitrine.runtime import tombstones
from vitrine.runtime.tombstones import Buried


def bury_deletions(kafka_url: str, namespace: str, store: str, *, age_ms: int, dry_run: bool) -> Buried:
    """As `tombstones.bury`, with the embeddings of the store; FieldError where no store is named."""
    if not store:
        raise FieldError("--store", "say which store, here or in VITRINE_STORE")
    artifacts = ArtifactStore(store, namespace=namespace)
    return tombstones.bury(
        kafka_url,
        namespace,
        artifacts,
        _embedded(artifacts),
        now_ms=int(time.time() * 1000),
        age_ms=age_ms,
        dry_run=dry_run,
    )


def _embedded(artifacts: ArtifactStore) -> NDArray[np.uint64]:
    """Ids of the items in any retained version of `embeddings`, ascending."""
    found: NDArray[np.uint64] = np.empty(0, np.uint64)
    for version in artifacts.versions(embeddings.KIND):
        folder = artifacts.fetch(embeddings.KIND, version, max_schema=embeddings.SCHEMA).path
        found = np.union1d(found, map_array(folder / "ids.npy", np.uint64, 1))
    return found
