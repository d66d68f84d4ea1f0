"""One version of the index and its encoder, as requests use them."""

from dataclasses import dataclass

import numpy as np
from prometheus_client import Gauge

from vitrine.ann import embeddings
from vitrine.ann.encoder import Encoder
from vitrine.ann.index import BinaryIndex
from vitrine.ann.pictures import SIDE
from vitrine.artifacts import ArtifactError, ArtifactStore, LocalArtifact
from vitrine.runtime import metrics

items = Gauge("vitrine_ann_items", "Items in the index being served.", registry=metrics.REGISTRY)


@dataclass(frozen=True, slots=True)
class Served:
    """One version of the index and what it needs; a request uses one from beginning to end.

    encoder: None where the embeddings have none, so that pictures cannot be searched by
    """

    version: str
    embeddings_version: str
    index: BinaryIndex
    encoder: Encoder | None


def load(artifact: LocalArtifact, store: ArtifactStore) -> Served:
    """Maps, checks and warms up the index and its parent's encoder; raises ArtifactError, UnavailableError."""
    manifest = artifact.manifest
    loaded = BinaryIndex.load(artifact.path, generation=manifest.version)
    parent = manifest.parents.get(embeddings.KIND)
    if parent is None:
        raise ArtifactError(f"{manifest.name} {manifest.version}: names no {embeddings.KIND} as its parent")
    encoder = _encoder(store, parent, loaded.dim)
    loaded.warm_up()
    if encoder is not None:
        encoder.encode(np.zeros((1, 3, SIDE, SIDE), np.float32))
    items.set(loaded.items)
    metrics.artifact_served(embeddings.KIND, parent)
    return Served(manifest.version, parent, loaded, encoder)


def _encoder(store: ArtifactStore, version: str, dim: int) -> Encoder | None:
    artifact = store.fetch(embeddings.KIND, version, max_schema=embeddings.SCHEMA)
    if embeddings.ENCODER_FILE not in artifact.manifest.files:
        return None
    encoder = Encoder(artifact.path / embeddings.ENCODER_FILE)
    if encoder.dim != dim:
        raise ArtifactError(
            f"{embeddings.KIND} {version}: its encoder gives {encoder.dim} dimensions, the index has {dim}"
        )
    return encoder
