"""The features of a user and of ads: ids and weights in, keys and normalised weights out.

This is the only place that says what the model sees. The matching worker calls `user_features` on a user's state,
the trainer's vectorised builder (`trainers/des/examples.py`) is tested against it, and `ad_features` is computed
once at export and travels in the artifact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitrine.features.schema import feature_keys


def user_features(
    items: NDArray[np.uint64],
    item_weights: NDArray[np.float64],
    crowds: NDArray[np.uint64],
    crowd_weights: NDArray[np.float64],
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    """A user's features: fields `user_item` and `user_crowd`, each scaled to length 1, keys ascending in each.

    items, crowds:  (n,), (m,) uint64 ids, each id once, in any order
    *_weights:      (n,), (m,) float64, positive and finite; only their ratios matter, so that a decayed weight may
                    stand at any landmark, and a rescaling by a power of two leaves the same bits
    Returns keys (n + m,) uint64 and weights (n + m,) float32.
    """
    item_keys, item_x = _unit("user_item", items, item_weights)
    crowd_keys, crowd_x = _unit("user_crowd", crowds, crowd_weights)
    return np.concatenate([item_keys, crowd_keys]), np.concatenate([item_x, crowd_x])


def ad_features(
    ads: NDArray[np.uint64], crowd_indptr: NDArray[np.int64], crowds: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float32]]:
    """Features of many ads: field `ad` (weight 1), then `ad_crowd` scaled to length 1.

    ads:          (A,) uint64 ids
    crowd_indptr: (A + 1,) int64; ad a's crowds are crowds[crowd_indptr[a]:crowd_indptr[a + 1]], each crowd once:
                  the crowds of the item it advertises and those it bids on
    Returns CSR: indptr (A + 1,) int64, keys and weights of length A + len(crowds).
    """
    counts = np.diff(crowd_indptr)
    indptr = crowd_indptr + np.arange(len(ads) + 1)
    keys = np.empty(len(ads) + len(crowds), np.uint64)
    weights = np.empty(len(keys), np.float32)
    firsts = indptr[:-1]
    rest = np.ones(len(keys), bool)
    rest[firsts] = False
    keys[firsts] = feature_keys("ad", ads)
    weights[firsts] = 1.0
    keys[rest] = feature_keys("ad_crowd", crowds)
    weights[rest] = np.repeat(1.0 / np.sqrt(np.maximum(counts, 1)), counts)
    return indptr, keys, weights


def _unit(
    field: str, ids: NDArray[np.uint64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.uint64], NDArray[np.float32]]:
    if len(ids) == 0:
        return np.empty(0, np.uint64), np.empty(0, np.float32)
    keys = feature_keys(field, np.asarray(ids, np.uint64))
    order = np.argsort(keys)
    w = np.asarray(weights, np.float64)[order]
    w = w / w.max()  # squares of the largest then neither overflow nor vanish
    # accumulate adds from left to right on every machine; sum may not
    length = np.sqrt(np.add.accumulate(w * w)[-1])
    return keys[order], (w / length).astype(np.float32)
