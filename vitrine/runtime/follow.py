"""An artifact that a service follows: each version is loaded and warmed beside the one served, then swapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import Counter
from pydantic import Field, model_validator

from vitrine.artifacts import ArtifactStore, LocalArtifact, Watcher
from vitrine.errors import UnavailableError
from vitrine.runtime import metrics
from vitrine.runtime.settings import Settings

refused = Counter(
    "vitrine_artifact_refused_total",
    "Versions refused; the old one is served on.",
    ("name",),
    registry=metrics.REGISTRY,
)

Served = TypeVar("Served")


class RefSettings(Settings):
    """What a process that follows artifacts can be told."""

    ref: str = Field("stable", min_length=1, description="Ref of the artifact to follow.")
    poll_s: float = Field(1, gt=0, description="Time between looks whether the ref names another version.")
    cache: Path | None = Field(None, description="Folder for fetched artifacts; the user's cache folder if unset.")


class FollowSettings(RefSettings):
    """The same for a service, which is nothing without its artifact."""

    @model_validator(mode="after")
    def _complete(self) -> FollowSettings:
        if not self.store:
            raise ValueError("--store (or VITRINE_STORE) is required")
        return self


def open_store(config: RefSettings) -> ArtifactStore:
    """The store of the settings. Raises ArtifactError, UnavailableError."""
    return ArtifactStore(config.store, namespace=config.namespace, cache=config.cache)


class Followed(Generic[Served]):
    """The version being served, of an artifact whose ref is watched from here on until `close`.

    load: reads, checks and warms up a version, and returns what requests need; whatever it raises refuses the
          version, and the old one is served on. It runs on the watcher's thread, beside requests.

    trainer: the one that publishes the artifact, for the message while there is none

    `current` is read by every request, from any thread; a request uses one version from beginning to end.
    """

    def __init__(
        self,
        config: RefSettings,
        store: ArtifactStore,
        name: str,
        load: Callable[[LocalArtifact], Served],
        *,
        max_schema: int,
        trainer: str,
    ) -> None:
        self.name = name
        refused.labels(name)  # shown from 0 on, so that the first one is an increase
        self._trainer = trainer
        self._refusal = ""
        self._served: Served | None = None
        self._load = load
        self._watcher = Watcher(
            store,
            name,
            self._swap,
            max_schema=max_schema,
            ref=config.ref,
            interval_s=config.poll_s,
            on_refused=self._note_refusal,
        )

    @property
    def current(self) -> Served:
        """What `load` made of the version being served; UnavailableError before the first."""
        if self._served is None:
            raise UnavailableError(self.why_not_ready or "")
        return self._served

    @property
    def refusal(self) -> str | None:
        """Why the version that the ref names is not served; None where it is."""
        return self._refusal if self._watcher.refused else None

    @property
    def why_not_ready(self) -> str | None:
        """None once a version is served."""
        if self._served is not None:
            return None
        return self.refusal or f"no {self.name} is loaded yet; `vitrine train {self._trainer}` publishes one"

    def close(self, timeout_s: float = 10.0) -> None:
        """Stop watching; a load under way is waited for so long."""
        self._watcher.close(timeout_s)

    def _swap(self, artifact: LocalArtifact) -> None:
        self._served = self._load(artifact)
        metrics.artifact_served(self.name, artifact.manifest.version)

    def _note_refusal(self, version: str, reason: str) -> None:
        self._refusal = f"{self.name} {version} is refused: {reason}"
        refused.labels(self.name).inc()
