"""Settings of the matching worker and server, and the artifacts that both load."""

from pathlib import Path

from pydantic import Field, model_validator

from vitrine.artifacts import ArtifactStore
from vitrine.features import UserTowers
from vitrine.matching.catalog import SCHEMA as CATALOG_SCHEMA
from vitrine.matching.catalog import Catalog
from vitrine.matching.market import Market
from vitrine.matching.match import SERVED, STORED, Matcher
from vitrine.runtime import metrics
from vitrine.runtime.settings import Settings

TOWERS_SCHEMA = 1


class MatchingSettings(Settings):
    """What the worker and the server share."""

    catalog: str = Field("stable", min_length=1, description="Ref or version of the catalog artifact.")
    towers: str = Field("stable", min_length=1, description="Ref or version of the towers artifact.")
    cache: Path | None = Field(None, description="Folder for fetched artifacts; the user's cache folder if unset.")
    stored: int = Field(STORED, ge=1, le=1000, description="Entries of a stored list.")
    served: int = Field(SERVED, ge=1, le=1000, description="Entries of a list that may be served, at most stored.")
    advertiser_cap: int = Field(
        0, ge=0, le=1000, description="Most ads of one advertiser in a ranking; 0: no bound."
    )
    staleness_bound_s: float = Field(60, gt=0, description="Kafka silent for longer: not serving.")

    @model_validator(mode="after")
    def _complete(self) -> "MatchingSettings":
        for field in ("store", "kafka_url", "redis_url"):
            if not getattr(self, field):
                raise ValueError(f"--{field.replace('_', '-')} (or VITRINE_{field.upper()}) is required")
        if self.served > self.stored:
            raise ValueError(f"--served: {self.served} is more than --stored, {self.stored}")
        return self


class WorkerSettings(MatchingSettings):
    """What the matching worker can be told."""

    worker_id: str = Field(
        "", max_length=128, description="Name of this worker: under it a restart gets its partitions back at once."
    )
    session_timeout_s: float = Field(30, ge=1, description="Silence after which others get a worker's partitions.")
    batch_records: int = Field(2_000, ge=1, le=100_000, description="Most events folded before one write.")
    list_expiry_h: float = Field(
        720, ge=0, description="A list neither written nor found unchanged for so long goes; 0: none does."
    )
    failpoint: str = Field("", description="For tests: NAME:N ends the process at the N-th pass of a point.")


class ServerSettings(MatchingSettings):
    """What the matching server can be told."""

    redis_timeout_ms: int = Field(100, ge=1, description="Wait for Redis before the fallback answers.")


def load_matcher(settings: MatchingSettings) -> Matcher:
    """The matcher of the catalog and towers that the settings name, both verified.

    Raises ArtifactError, and FieldError or CatalogError where their content is wrong.
    """
    store = ArtifactStore(settings.store, namespace=settings.namespace, cache=settings.cache)
    catalog = store.fetch("catalog", settings.catalog, max_schema=CATALOG_SCHEMA)
    towers = store.fetch("towers", settings.towers, max_schema=TOWERS_SCHEMA)
    matcher = Matcher(
        Market.of(Catalog.load(catalog.path), catalog.manifest.version),
        UserTowers.load(towers.path),
        towers_version=towers.manifest.version,
        stored=settings.stored,
        served=settings.served,
        advertiser_cap=settings.advertiser_cap,
        threads=settings.threads,
    )
    metrics.artifact_served("catalog", matcher.catalog_version)
    metrics.artifact_served("towers", matcher.towers_version)
    return matcher
