"""The simulator's truth, which decides clicks and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitrine.data import draws
from vitrine.data.simulator import click_probability
from vitrine.data.world import World


@dataclass(frozen=True, slots=True)
class Truth:
    """Tastes (users, d), ads (ads, d) and quality (ads,) by ordinal."""

    seed: int
    tastes: NDArray[np.floating[Any]]
    items: NDArray[np.floating[Any]]
    quality: NDArray[np.floating[Any]]

    @classmethod
    def of(cls, meta: Mapping[str, Any], users: NDArray[np.uint64]) -> Self:
        """The truth of a simulated market, by its market.json."""
        world = World.of_market(meta)
        return cls(world.seed, world.tastes(users), world.items[: world.ads], world.quality[: world.ads])

    def clicks(
        self, users: NDArray[np.int64], ads: NDArray[np.int64], requests: NDArray[np.int64], noise: int
    ) -> NDArray[np.bool_]:
        """Whether each user clicks the ad shown at that request.

        The draw belongs to the request, so that two systems that show the same ad get the same click, under the
        same `noise`.
        """
        p = click_probability(self.tastes[users], self.items[ads], self.quality[ads])
        return np.asarray(draws.uniform(self.seed, f"truncation/click/{noise}", requests) < p)
