"""The model being served: loaded, checked and warmed beside the one before it, then swapped in one assignment."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from vitrine.artifacts import LocalArtifact
from vitrine.ctr import model
from vitrine.ctr.scorer import Scorer
from vitrine.errors import UnavailableError
from vitrine.runtime import metrics

known_ads = Gauge("vitrine_ctr_ads", "Ads that the model being served knows.", registry=metrics.REGISTRY)
refused = Counter("vitrine_ctr_refused_versions_total", "Model versions refused.", registry=metrics.REGISTRY)


@dataclass(frozen=True, slots=True)
class Served:
    """One version of the model; a request uses one from beginning to end."""

    version: str
    scorer: Scorer


class Loader:
    """Loads versions for the watcher; `current` is read by every request, from any thread."""

    def __init__(self) -> None:
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
        return self.refusal or f"no {model.KIND} is loaded yet; publish one with trainers/des"

    def load(self, artifact: LocalArtifact) -> None:
        """Reads, checks, finishes the ads' halves, warms up and swaps; raises FieldError, and the old one stays."""
        scorer = Scorer.load(artifact.path)
        scorer.warm_up()
        self._served = Served(artifact.manifest.version, scorer)
        self.refusal = None
        known_ads.set(len(scorer.ads))
        metrics.artifact_served(model.KIND, artifact.manifest.version)

    def note_refusal(self, version: str, reason: str) -> None:
        """The watcher's word that a version was not taken."""
        self.refusal = f"{model.KIND} {version} is refused: {reason}"
        refused.inc()
