"""The loss and its gradient, written out: what the example's own ad and a pool of drawn ads say of its user.

An example (user, ad, label y, weight) costs its log loss. Where y is 1 the user's features stand for an unseen
impression of every ad too: `negatives` times the mean, over a pool of ads that the batch shares, of the log loss of
label 0. In a shared pool a negative costs one inner product, not one bag, so that each positive meets hundreds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from trainers.des.operators import halves, halves_gradient


@dataclass(frozen=True, slots=True)
class Labels:
    """label, weight: (B,) of the batch's examples; negatives: weight of the pool as a whole."""

    label: torch.Tensor
    weight: torch.Tensor
    negatives: float


def logits(own: torch.Tensor, vec: torch.Tensor, bias: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Halves of 2n + m bags (n users, n ads, m pool ads) -> logits (n,) of pairs and (n, m) of users by pool."""
    user, ad, pool = vec[:n], vec[n : 2 * n], vec[2 * n :]
    pair = bias + own[:n] + own[n : 2 * n] + (user * ad).sum(dim=1)
    return pair, bias + own[:n, None] + own[None, 2 * n :] + user @ pool.T


def loss_and_gradient(
    total: torch.Tensor, bias: torch.Tensor, labels: Labels
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean loss of the batch, its gradient by the sums of all bags, and by the bias.

    total: (2B + M, k + 2) sums over all processes: the users' bags, their ads', then the pool's
    """
    n = len(labels.label)
    m = len(total) - 2 * n
    own, vec = halves(total)
    pair, against = logits(own, vec, bias, n)
    each = labels.weight / n
    of_pool = (each * labels.label * (labels.negatives / max(m, 1)))[:, None]
    loss = (each * F.binary_cross_entropy_with_logits(pair, labels.label, reduction="none")).sum()
    loss = loss + (of_pool * F.softplus(against)).sum()

    g_pair = each * (torch.sigmoid(pair) - labels.label)
    g_pool = of_pool * torch.sigmoid(against)
    g_user = g_pair + g_pool.sum(dim=1)
    user, ad, pool = vec[:n], vec[n : 2 * n], vec[2 * n :]
    of_own = torch.cat([g_user, g_pair, g_pool.sum(dim=0)])
    of_vec = torch.cat([g_pair[:, None] * ad + g_pool @ pool, g_pair[:, None] * user, g_pool.T @ user])
    return loss, halves_gradient(total, of_own, of_vec), g_user.sum()
