"""One version of the click model, as requests use it."""

from dataclasses import dataclass

from prometheus_client import Gauge

from vitrine.artifacts import LocalArtifact
from vitrine.ctr.scorer import Scorer
from vitrine.runtime import metrics

known_ads = Gauge("vitrine_ctr_ads", "Ads that the model being served knows.", registry=metrics.REGISTRY)


@dataclass(frozen=True, slots=True)
class Served:
    """A version and its scorer."""

    version: str
    scorer: Scorer


def load(artifact: LocalArtifact) -> Served:
    """Reads, checks, finishes the ads' halves, warms up; raises FieldError."""
    scorer = Scorer.load(artifact.path)
    scorer.warm_up()
    known_ads.set(len(scorer.ads))
    return Served(artifact.manifest.version, scorer)
