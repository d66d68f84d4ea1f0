"""Global batches: which examples and which drawn ads step i reads, a function of seed and sizes alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Batch:
    """examples: (B,) numbers of examples; pool: (M,) ordinals of ads."""

    examples: NDArray[np.int64]
    pool: NDArray[np.int64]


class Batches:
    """Every epoch reads all examples in an order of its own; every step draws a pool by popularity.

    popularity: (A,) share of each ad, sums to 1
    """

    def __init__(
        self, n_examples: int, popularity: NDArray[np.float64], batch: int, pool: int, epochs: int, seed: int
    ) -> None:
        self._n, self._batch, self._pool, self._seed = n_examples, batch, pool, seed
        self._cumulated = np.cumsum(popularity)
        self.per_epoch = -(-n_examples // batch)
        self._epochs = epochs
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.per_epoch * self._epochs

    def size(self, step: int) -> int:
        """Number of examples of a step; an epoch's last may be shorter."""
        return min(self._batch, self._n - step % self.per_epoch * self._batch)

    def __getitem__(self, step: int) -> Batch:
        """The global batch of a step, whichever steps were read before."""
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, 2, epoch]).permutation(self._n)
            self._epoch = epoch
        draws = np.random.default_rng([self._seed, 3, step]).random(self._pool) * self._cumulated[-1]
        pool = np.searchsorted(self._cumulated, draws, side="right")
        return Batch(self._order[i * self._batch : (i + 1) * self._batch], pool)
