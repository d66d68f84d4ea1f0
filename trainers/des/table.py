"""The parameters: one row a feature key, sharded over processes by the key's hash.

Keys are hashes, so their top byte deals them into 256 partitions, and a process owns a run of whole partitions.
With keys ascending, a partition is a slice, and so is a process's share. Which process owns a row decides nothing
but where it is: rows start from (key, seed), and a step changes a row by its own gradient alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

PARTITIONS = 256


@dataclass(frozen=True, slots=True)
class Shard:
    """What of the ascending `keys` one process owns: partitions [first, last), rows [start, stop)."""

    first: int
    last: int
    bounds: NDArray[np.int64]

    @staticmethod
    def of(keys: NDArray[np.uint64], rank: int, world: int) -> Shard:
        """The share of process `rank` of `world`."""
        tops = np.arange(PARTITIONS + 1, dtype=object) << 56
        bounds = np.append(np.searchsorted(keys, tops[:-1].astype(np.uint64)), len(keys))
        return Shard(PARTITIONS * rank // world, PARTITIONS * (rank + 1) // world, bounds)

    @property
    def start(self) -> int:
        """First row owned."""
        return int(self.bounds[self.first])

    @property
    def stop(self) -> int:
        """One past the last row owned."""
        return int(self.bounds[self.last])


class Table:
    """The rows of one shard and their optimizer state.

    values: (n, dim + 1), the embedding v and, last, the linear weight w
    sums:   (n, 2), row-wise Adagrad's sums of squares for v and for w; a row with zeros was never touched
    """

    def __init__(
        self,
        keys: NDArray[np.uint64],
        shard: Shard,
        dim: int,
        seed: int,
        init_scale: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shard = shard
        own = keys[shard.start : shard.stop]
        values = np.concatenate([initial_rows(own, dim, seed, init_scale), np.zeros((len(own), 1))], axis=1)
        self.values = torch.from_numpy(values).to(device, dtype)
        self.sums = torch.zeros(len(own), 2, dtype=dtype, device=device)

    def adagrad(self, rows: torch.Tensor, values: torch.Tensor, grad: torch.Tensor, lr: float) -> None:
        """One step of row-wise Adagrad (Duchi et al. 2011) on distinct `rows` (U,).

        values, grad: (U, dim + 1) what `rows` hold now, and their gradient

        A row's embedding shares one sum, of the mean of its squares; the linear weight has its own.
        """
        dim = grad.shape[1] - 1
        square = grad * grad
        sums = self.sums[rows]
        if dim:
            sums[:, 0] += square[:, :dim].mean(dim=1)
        sums[:, 1] += square[:, dim]
        self.sums[rows] = sums
        rate = lr / (sums.sqrt() + 1e-10)
        self.values[rows] = values - grad * torch.cat([rate[:, :1].expand(-1, dim), rate[:, 1:]], dim=1)

    def state(self) -> dict[str, torch.Tensor]:
        """Values and sums of every partition owned, for a checkpoint."""
        return {name: torch.cat([self.values[at], self.sums[at]], dim=1).cpu() for name, at in self._pieces()}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Inverse of `state`."""
        for name, at in self._pieces():
            piece = tensors[name].to(self.values)
            self.values[at], self.sums[at] = piece[:, :-2], piece[:, -2:]

    @property
    def names(self) -> list[str]:
        """Names of `state`."""
        return [name for name, _ in self._pieces()]

    def _pieces(self) -> list[tuple[str, slice]]:
        bounds = self.shard.bounds - self.shard.start
        return [
            (piece_name(p), slice(int(bounds[p]), int(bounds[p + 1])))
            for p in range(self.shard.first, self.shard.last)
            if bounds[p] < bounds[p + 1]
        ]


def piece_name(partition: int) -> str:
    """Name of a partition's rows in a checkpoint; an empty partition has none."""
    return f"rows/{partition:03d}"


def initial_rows(keys: NDArray[np.uint64], dim: int, seed: int, scale: float) -> NDArray[np.float64]:
    """(n, dim) embeddings uniform with standard deviation `scale`: a function of each key and the seed alone."""
    with np.errstate(over="ignore"):
        columns = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (keys ^ _mix(np.array([seed], np.uint64)))[:, None] + columns
        uniform = (_mix(_mix(x)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (2 * uniform - 1) * (np.sqrt(3.0) * scale)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finalizer."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
