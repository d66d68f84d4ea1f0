"""The artifacts that matching works from, by ref or version: verified, loaded, made into matchers."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from services.matching.settings import TOWERS_SCHEMA, MatchingSettings
from vitrine import native
from vitrine.artifacts import ArtifactStore
from vitrine.features import UserTowers
from vitrine.matching.catalog import SCHEMA, Catalog
from vitrine.matching.market import Market
from vitrine.matching.match import Matcher, Reason
from vitrine.matching.state import UserState


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


def make_matcher(
    market: Market, loaded: LoadedTowers, settings: MatchingSettings, *, epoch: int = -1
) -> "MarketMatcher":
    """A matcher over a market; `epoch` is the offset of the activation that names the towers, -1 for none."""
    return MarketMatcher(market, loaded, settings)


class MarketMatcher(Matcher):
    """The matcher of a market's base, until it knows markets itself."""

    advertiser_cap = 0

    def __init__(self, market: Market, loaded: LoadedTowers, settings: MatchingSettings) -> None:
        super().__init__(
            market.catalog,
            loaded.towers,
            catalog_version=market.catalog_version,
            towers_version=loaded.version,
            stored=settings.stored,
            served=settings.served,
            threads=settings.threads,
        )
        self.market = market

    def explain(self, state: UserState, ad_ids: Sequence[int], group: int = 0) -> list[Reason]:
        """By the bids of now; an ad that the base lacks has the tower of an ad without features."""
        return [self._as_now(state, reason) for reason in super().explain(state, ad_ids)]

    def _as_now(self, state: UserState, reason: Reason) -> Reason:
        ad = self.market.ad(reason.ad)
        if ad is None:
            return reason
        pctr = np.float32(reason.pctr)
        if not reason.known:
            nothing = np.zeros((1, len(state.vec)), np.float32)
            pctr = native.tower_pctr(state.bias, state.vec, np.zeros(1, np.uint32), nothing[0, :1], nothing)[0]
        shared = np.array([crowd in state.crowds for crowd in ad.crowds.tolist()], bool)
        crowds, bids = ad.crowds[shared], ad.bids[shared]
        best = int(np.argmax(bids)) if len(bids) else -1
        bid = bids[best] if len(bids) else np.float32(0)
        crowd = int(crowds[best]) if len(bids) else 0
        return Reason(reason.ad, True, crowds, bids, crowd, float(bid), float(pctr), float(bid * pctr))

    def moved(self, market: Market) -> "MarketMatcher":
        other = copy.copy(self)
        other.market = market
        return other
