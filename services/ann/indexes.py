"""The indexes of a process, by name or alias."""

from __future__ import annotations

from collections.abc import Callable

from services.ann.loading import FollowedIndex, Served
from services.ann.settings import AnnSettings
from vitrine.artifacts import ArtifactStore
from vitrine.artifacts.aliases import Aliases
from vitrine.errors import NotFoundError


class Indexes:
    """Those that the settings name, each followed until `close`; the first is the default."""

    def __init__(self, config: AnnSettings, store: ArtifactStore) -> None:
        """Raises ArtifactError, UnavailableError where the aliases cannot be read."""
        self._aliases = Aliases(store, interval_s=config.poll_s)
        self._bound_s = config.staleness_bound_s
        self.followed = {name: FollowedIndex(config, store, name) for name in config.index_names}

    def served(self, name: str = "") -> Served:
        """What is served of an index. Raises NotFoundError, UnavailableError."""
        resolved = self._aliases.resolve(name) if name else next(iter(self.followed))
        found = self.followed.get(resolved)
        if found is None:
            there = ", ".join(repr(each) for each in self.followed)
            raise NotFoundError(f"index: there is no {resolved[:100]!r} here; leave it empty, or use {there}")
        return found.current

    def why_not_ready(self) -> str | None:
        """None once a version of every index is served."""
        return self._first(lambda each: each.why_not_ready)

    def refusal(self) -> str | None:
        """Why a version that a ref names is not served."""
        return self._first(lambda each: each.refusal)

    def trouble(self) -> str | None:
        """Why answers may lack updates, or take longer by them."""
        return self._first(lambda each: each.trouble(self._bound_s)) or self._aliases.trouble

    def close(self) -> None:
        """Stops following."""
        self._aliases.close()
        for each in self.followed.values():
            each.close()

    def _first(self, of: Callable[[FollowedIndex], str | None]) -> str | None:
        return next((found for each in self.followed.values() if (found := of(each))), None)
