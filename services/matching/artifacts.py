"""The artifacts that matching works from, by ref or version: verified, loaded, made into matchers."""

from typing import NamedTuple

from services.matching.settings import TOWERS_SCHEMA, MatchingSettings
from vitrine.artifacts import ArtifactStore
from vitrine.features import UserTowers
from vitrine.matching.catalog import SCHEMA, Catalog
from vitrine.matching.market import Market
from vitrine.matching.match import Matcher


class LoadedTowers(NamedTuple):
    """A towers artifact."""

    towers: UserTowers
    version: str


class Artifacts:
    """Loads what the store has. Raises ArtifactError, or FieldError or CatalogError where the content is wrong."""

    def __init__(self, settings: MatchingSettings) -> None:
        self._store = ArtifactStore(settings.store, namespace=settings.namespace, cache=settings.cache)

    def catalog(self, ref: str) -> tuple[Catalog, str]:
        """(a catalog, its version) of a ref or version."""
        found = self._store.fetch("catalog", ref, max_schema=SCHEMA)
        return Catalog.load(found.path), found.manifest.version

    def towers(self, ref: str) -> LoadedTowers:
        """The towers of a ref or version."""
        found = self._store.fetch("towers", ref, max_schema=TOWERS_SCHEMA)
        return LoadedTowers(UserTowers.load(found.path), found.manifest.version)


def make_matcher(market: Market, loaded: LoadedTowers, settings: MatchingSettings, *, epoch: int = -1) -> Matcher:
    """A matcher over a market; `epoch` is the offset of the activation that names the towers, -1 for none."""
    return Matcher(
        market,
        loaded.towers,
        towers_version=loaded.version,
        epoch=epoch,
        stored=settings.stored,
        served=settings.served,
        advertiser_cap=settings.advertiser_cap,
        threads=settings.threads,
    )
