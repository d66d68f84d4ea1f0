"""One version of an index as requests use it, and the swap to another: nothing that was shown is lost by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from services.ann.engines import with_engine
from services.ann.settings import AnnSettings
from services.ann.updates import Log, Shard
from vitrine.ann import embeddings, index
from vitrine.ann.encoder import Encoder
from vitrine.ann.index import BinaryIndex
from vitrine.ann.live import LiveIndex
from vitrine.ann.pictures import SIDE
from vitrine.artifacts import ArtifactError, ArtifactStore, LocalArtifact
from vitrine.errors import UnavailableError
from vitrine.placement import qualify
from vitrine.runtime import kafka, metrics, topics
from vitrine.runtime.contained import offsets_of
from vitrine.runtime.follow import Followed
from vitrine.runtime.readings import Readings

items = Readings("vitrine_ann_items", "Items in the index being served.", "index")
scanned = Readings("vitrine_ann_scanned_items", "Items that have no graph yet and are scanned.", "index")

_SILENT_S = 30.0  # Kafka silent for longer while a version catches up: tried again later
_LEVEL_S = 10.0  # to reach what the version served shows, while that takes no updates


@dataclass(frozen=True, slots=True)
class Served:
    """One version of an index and what it needs; a request uses one from beginning to end.

    name:    of the artifact
    encoder: None where the embeddings have none, so that pictures cannot be searched by
    log:     None where no updates are followed
    """

    name: str
    version: str
    embeddings_version: str
    live: LiveIndex
    encoder: Encoder | None
    log: Log | None
    shard: Shard

    def close(self) -> None:
        """No update is applied from here on; requests that have it end as they began."""
        if self.log is not None:
            self.log.close()
        self.live.close()


class FollowedIndex:
    """An artifact's ref followed, and with it the log: a version is served once it shows what the last did."""

    def __init__(self, config: AnnSettings, store: ArtifactStore, name: str) -> None:
        self.name = name
        self._config, self._store = config, store
        self._shard = Shard(*config.shard_of)
        self._served: Served | None = None
        self._catching_up: Log | None = None
        self._closing = threading.Event()
        self._readings = (
            (items, lambda: self._reading(lambda live: live.current.items)),
            (scanned, lambda: self._reading(lambda live: live.scanned)),
        )
        for metric, read in self._readings:
            metric.add(read)
        self._followed = Followed(config, store, name, self._load, max_schema=index.SCHEMA, trainer="bdg")

    @property
    def current(self) -> Served:
        """What is served now; UnavailableError before the first version."""
        if self._served is None:
            raise UnavailableError(self.why_not_ready or "")
        return self._served

    @property
    def refusal(self) -> str | None:
        """Why the version that the ref names is not served; None where it is."""
        return self._followed.refusal

    @property
    def why_not_ready(self) -> str | None:
        """None once a version is served."""
        if self._served is not None:
            return None
        log = self._catching_up
        if log is not None:
            return f"{self.name} reads {log.tail.topic}, {log.tail.unread:,} records are left"
        return self._followed.why_not_ready

    def trouble(self, bound_s: float) -> str | None:
        """Why what is served may lack updates, or grow slow by them."""
        served = self._served
        if served is None:
            return None
        return (served.log.trouble(bound_s) if served.log is not None else None) or served.live.trouble

    def close(self) -> None:
        """Stops following."""
        for metric, read in self._readings:
            metric.remove(read)
        self._closing.set()
        self._followed.close()
        if self._served is not None:
            self._served.close()

    def _reading(self, of: Callable[[LiveIndex], int]) -> dict[str, float]:
        served = self._served
        return {} if served is None else {self.name: float(of(served.live))}

    def _load(self, artifact: LocalArtifact) -> Served:
        """Loads a version and swaps it in."""
        before = self._served
        served = self._followed_by_log(artifact)
        try:
            self._swap(before, served)
        except BaseException:
            served.close()
            raise
        finally:
            self._catching_up = None
        metrics.artifact_served(embeddings.KIND, served.embeddings_version)
        if before is not None:
            before.close()
        return served

    def _followed_by_log(self, artifact: LocalArtifact) -> Served:
        manifest = artifact.manifest
        base, parent, encoder = load(artifact, self._store, self._shard)
        live = LiveIndex(with_engine(base, self._config.engine), fold_at=self._config.fold_at)
        try:
            log = self._log(artifact, parent, base.dim, live) if self._config.kafka_url else None
        except BaseException:
            live.close()
            raise
        return Served(self.name, manifest.version, parent, live, encoder, log, self._shard)

    def _log(self, artifact: LocalArtifact, embeddings_version: str, dim: int, live: LiveIndex) -> Log:
        url, namespace = self._config.kafka_url, self._config.namespace
        contained = offsets_of(artifact.manifest, qualify(namespace, topics.ITEM_UPDATES), kafka.cluster_id(url))
        return Log(url, namespace, self.name, embeddings_version, dim, self._shard, live, contained)

    def _swap(self, before: Served | None, served: Served) -> None:
        """Waits until it has all that is in the log, then all that the version before shows, and serves it.

        Raises what ended its reading of the log, and UnavailableError while Kafka is silent.
        """
        if served.log is not None:
            self._catching_up = served.log
            self._wait(served.log, served.log.tail.caught_up.is_set)
        if before is None or before.log is None or served.log is None or before.log.tail.error is not None:
            self._served = served
            return
        log, earlier = served.log, before.log.visible
        self._wait(log, lambda: log.tail.reached(earlier))
        with before.log.tail.held() as shown:  # and what came meanwhile: a few records
            if not log.tail.wait_reached(shown, _LEVEL_S):
                raise UnavailableError(
                    f"{self.name} {served.version} does not reach what {before.version} shows, {shown}; tried again"
                )
            self._served = served

    def _wait(self, log: Log, done: Callable[[], bool]) -> None:
        begin = time.monotonic()
        while not done():
            if log.tail.error is not None:
                raise log.tail.error
            if self._closing.wait(0.02):
                raise UnavailableError("the service ends")
            if min(log.tail.seconds_since_contact, time.monotonic() - begin) > _SILENT_S:
                raise UnavailableError(f"{log.tail.topic} is not read: no word from Kafka for {_SILENT_S:.0f} s")


def load(artifact: LocalArtifact, store: ArtifactStore, shard: Shard) -> tuple[BinaryIndex, str, Encoder | None]:
    """Maps, checks and warms up the index, its parent's version, and the parent's encoder.

    Raises ArtifactError, UnavailableError.
    """
    manifest = artifact.manifest
    loaded = BinaryIndex.load(artifact.path, shard=shard.number, shards=shard.of, generation=manifest.version)
    parent = manifest.parents.get(embeddings.KIND)
    if parent is None:
        raise ArtifactError(f"{manifest.name} {manifest.version}: names no {embeddings.KIND} as its parent")
    encoder = _encoder(store, parent, loaded.dim)
    loaded.warm_up()
    if encoder is not None:
        encoder.encode(np.zeros((1, 3, SIDE, SIDE), np.float32))
    return loaded, parent, encoder


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
