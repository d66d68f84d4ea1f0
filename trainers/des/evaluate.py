"""AUC of the held-out ads, and of the two simple rules that a model must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from trainers.des.examples import Examples
from trainers.des.operators import halves, sums

if TYPE_CHECKING:
    from trainers.des.train import Trainer

_BAGS_AT_ONCE = 8192


def auc(positives: NDArray[np.floating], negatives: NDArray[np.floating]) -> float:
    """Share of (positive, negative) pairs in which the positive scores higher, ties counting half."""
    scores = np.concatenate([positives, negatives])
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    n = len(positives)
    return float((rank[place[:n]].sum() - n * (n + 1) / 2) / (n * len(negatives)))


def held_out_auc(trainer: Trainer) -> float:
    """AUC of every held-out user's ad against the ad drawn by popularity, pooled; NaN without a hold-out.

    Called by all processes together: halves come from partial sums, as in a step.
    """
    e = trainer.examples
    if not len(e.held_ad):
        return float("nan")
    own_user, vec_user = _halves(trainer, e.held_bags())
    own_ad, vec_ad = _halves(trainer, e.ad_bags(np.arange(len(e.ads))))

    def scores(ads: NDArray[np.int32]) -> NDArray[np.floating]:
        ad = torch.from_numpy(ads.astype(np.int64)).to(own_ad.device)
        return (own_user + own_ad[ad] + (vec_user * vec_ad[ad]).sum(dim=1)).cpu().numpy()

    return auc(scores(e.held_ad), scores(e.held_against))


def simple_rules(e: Examples) -> dict[str, float]:
    """AUC of popularity alone, and of the share of an ad's crowds that the user has; empty without a hold-out."""
    if not len(e.held_ad):
        return {}
    return {
        "auc_by_popularity": auc(e.popularity[e.held_ad], e.popularity[e.held_against]),
        "auc_by_crowd_overlap": auc(e.held_overlap[0], e.held_overlap[1]),
    }


def _halves(trainer: Trainer, bags: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
    parts = []
    for start in range(0, len(bags), _BAGS_AT_ONCE):
        pulled = trainer.pull(trainer.own.take(bags[start : start + _BAGS_AT_ONCE]))
        parts.append(trainer.group.all_reduce(sums(trainer.table.values[pulled.rows], pulled)))
    return halves(torch.cat(parts))
