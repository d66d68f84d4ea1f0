"""The version being served: loaded, checked and warmed beside the one before it, then swapped in one assignment."""

from dataclasses import dataclass

import numpy as np
from prometheus_client import Counter, Gauge

from vitrine.ann import embeddings, index
from vitrine.ann.encoder import Encoder
from vitrine.ann.index import BinaryIndex
from vitrine.ann.pictures import SIDE
from vitrine.artifacts import ArtifactError, ArtifactStore, LocalArtifact
from vitrine.errors import UnavailableError
from vitrine.runtime import metrics

items = Gauge("vitrine_ann_items", "Items in the index being served.", registry=metrics.REGISTRY)
refused = Counter("vitrine_ann_refused_versions_total", "Index versions refused.", registry=metrics.REGISTRY)


@dataclass(frozen=True, slots=True)
class Served:
    """One version of the index and what it needs; a request uses one from beginning to end.

    encoder: None where the embeddings have none, so that pictures cannot be searched by
    """

    version: str
    embeddings_version: str
    index: BinaryIndex
    encoder: Encoder | None


class Loader:
    """Loads versions for the watcher; `current` is read by every request, from any thread."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self._served: Served | None = None
        self.refusal: str | None = None

    @property
    def current(self) -> Served:
        """The version being served; UnavailableError before the first."""
        if self._served is None:
            raise UnavailableError(self.why_not_ready or "")
        return self._served

    @property
    def why_not_ready(self) -> str | None:
        """None once a version is served."""
        if self._served is not None:
            return None
        return self.refusal or f"no {index.KIND} is loaded yet; publish one with trainers/bdg"

    def load(self, artifact: LocalArtifact) -> None:
        """Maps, checks, warms up and swaps; raises ArtifactError or UnavailableError, and the old version stays."""
        manifest = artifact.manifest
        loaded = BinaryIndex.load(artifact.path)
        parent = manifest.parents.get(embeddings.KIND)
        if parent is None:
            raise ArtifactError(f"{manifest.name} {manifest.version}: names no {embeddings.KIND} as its parent")
        encoder = self._encoder(parent, loaded.dim)
        loaded.warm_up()
        if encoder is not None:
            encoder.encode(np.zeros((1, 3, SIDE, SIDE), np.float32))
        self._served = Served(manifest.version, parent, loaded, encoder)
        self.refusal = None
        items.set(loaded.items)
        metrics.artifact_served(index.KIND, manifest.version)
        metrics.artifact_served(embeddings.KIND, parent)

    def note_refusal(self, version: str, reason: str) -> None:
        """The watcher's word that a version was not taken."""
        self.refusal = f"{index.KIND} {version} is refused: {reason}"
        refused.inc()

    def _encoder(self, version: str, dim: int) -> Encoder | None:
        artifact = self._store.fetch(embeddings.KIND, version, max_schema=embeddings.SCHEMA)
        if embeddings.ENCODER_FILE not in artifact.manifest.files:
            return None
        encoder = Encoder(artifact.path / embeddings.ENCODER_FILE)
        if encoder.dim != dim:
            raise ArtifactError(
                f"{embeddings.KIND} {version}: its encoder gives {encoder.dim} dimensions, the index has {dim}"
            )
        return encoder
