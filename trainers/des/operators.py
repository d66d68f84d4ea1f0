"""The substituted operators: what of a factorization machine each process computes over the keys it owns.

A bag is one side's features, a user's or an ad's. Over the rows S_m that process m holds (arXiv 1909.04823, sec. 3)

    linear:                 l_m = sum w_i x_i           1 number a bag
    factorization machine:  a_m = sum v_i x_i           k numbers
                            s_m = sum |v_i|^2 x_i^2     1 number

and what is summed over m is [a | l | s]: k + 2 numbers a bag, whatever the number of its features. A bag's own part
of the logit is then l + (|a|^2 - s) / 2, and a pair's <a_user, a_ad>: the split of `vitrine.features.towers`. The
gradient of the sums is the same on every process, so each updates its own rows and no sparse gradient moves.
Logistic regression is k = 0, without s.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from trainers.des.history import Bags


@dataclass(frozen=True, slots=True)
class Pulled:
    """The distinct rows that some bags use, and the bags in terms of them: both ways round.

    rows:    (U,) int64 distinct rows
    entries, offsets, x: bags as CSR into `rows`
    bags, bag_offsets, bag_x: the transpose, rows as CSR into bags
    """

    rows: torch.Tensor
    entries: torch.Tensor
    offsets: torch.Tensor
    x: torch.Tensor
    bags: torch.Tensor
    bag_offsets: torch.Tensor
    bag_x: torch.Tensor


class Puller:
    """Arranges bags of row numbers for `sums` and `row_gradient`, in time linear in their entries."""

    def __init__(self, n_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        self._place = np.empty(n_rows, np.int32)  # of a row among the distinct rows of the current bags
        self._dtype = dtype
        self._device = device

    def __call__(self, bags: Bags) -> Pulled:
        """The distinct rows of `bags`, in the order of last use, and both arrangements."""
        numbers = np.arange(len(bags.ids), dtype=np.int32)
        self._place[bags.ids] = numbers  # the last entry of a row wins
        rows = bags.ids[self._place[bags.ids] == numbers]
        self._place[rows] = np.arange(len(rows), dtype=np.int32)
        entries = self._place[bags.ids]
        # numpy sorts 16-bit numbers by radix, ten times faster than by comparison
        order = np.argsort(entries.astype(np.uint16) if len(rows) <= 1 << 16 else entries, kind="stable")
        counts = np.bincount(entries, minlength=len(rows))
        bag = np.repeat(np.arange(len(bags)), np.diff(bags.indptr))
        return Pulled(
            rows=self._tensor(rows.astype(np.int64)),
            entries=self._tensor(entries.astype(np.int64)),
            offsets=self._tensor(bags.indptr[:-1]),
            x=self._tensor(bags.x).to(self._dtype),
            bags=self._tensor(bag[order]),
            bag_offsets=self._tensor(np.cumsum(counts) - counts),
            bag_x=self._tensor(bags.x[order]).to(self._dtype),
        )

    def _tensor(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def sums(values: torch.Tensor, pulled: Pulled) -> torch.Tensor:
    """This process's partial sums of every bag, [a | l | s]: (G, k + 2), or [l]: (G, 1) where k is 0.

    values: (U, k + 1), the rows of `pulled.rows`, v and then w
    """
    linear = _weighted(values, pulled.entries, pulled.offsets, pulled.x)
    if values.shape[1] == 1:
        return linear
    norms = (values[:, :-1] ** 2).sum(dim=1, keepdim=True)
    return torch.cat([linear, _weighted(norms, pulled.entries, pulled.offsets, pulled.x**2)], dim=1)


def row_gradient(values: torch.Tensor, pulled: Pulled, grad: torch.Tensor) -> torch.Tensor:
    """Gradient of this process's rows (U, k + 1) from the gradient of the sums (G, k + 2), or (G, 1)."""
    k = values.shape[1] - 1
    linear = _weighted(grad[:, : k + 1].contiguous(), pulled.bags, pulled.bag_offsets, pulled.bag_x)
    if k:
        of_norm = _weighted(grad[:, k + 1 :].contiguous(), pulled.bags, pulled.bag_offsets, pulled.bag_x**2)
        linear[:, :k] += 2 * of_norm * values[:, :k]
    return linear


def halves(total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums over all processes (G, k + 2) -> each bag's own part of the logit (G,) and its vector (G, k)."""
    if total.shape[1] == 1:
        return total[:, 0], total[:, :0]
    a, linear, norm = total[:, :-2], total[:, -2], total[:, -1]
    return linear + ((a * a).sum(dim=1) - norm) / 2, a


def halves_gradient(total: torch.Tensor, of_own: torch.Tensor, of_vec: torch.Tensor) -> torch.Tensor:
    """Backward of `halves`: gradients of own parts (G,) and vectors (G, k) -> gradient of the sums (G, k + 2)."""
    if total.shape[1] == 1:
        return of_own[:, None]
    return torch.cat([of_vec + of_own[:, None] * total[:, :-2], of_own[:, None], -of_own[:, None] / 2], dim=1)


def _weighted(table: torch.Tensor, rows: torch.Tensor, offsets: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Bag b -> sum of x times table rows, (bags, columns)."""
    return F.embedding_bag(rows, table, offsets, mode="sum", per_sample_weights=x)
