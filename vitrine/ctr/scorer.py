"""Scores one user against many ads: the ads' halves are finished once, the user's once a request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ctr.model import CtrModel
from vitrine.errors import FieldError
from vitrine.features.towers import lookup

MAX_FEATURES = 10_000
MAX_ADS = 5_000
MAX_WEIGHT = 1e6


class Scorer:
    """A `ctr-model`, ready to score. Immutable, so threads share it."""

    def __init__(self, model: CtrModel) -> None:
        towers = model.towers()
        self._towers = towers
        # One more half, empty, stands for every unknown ad: its score is the user's side alone.
        self._ad_bias = np.append(towers.ad_bias, np.float32(0))
        self._ad_vecs = np.vstack([towers.ad_vecs, np.zeros((1, towers.dim), np.float32)])

    @staticmethod
    def load(path: Path) -> Scorer:
        """Read a `ctr-model` artifact's folder; FieldError names the file that is wrong."""
        return Scorer(CtrModel.load(path))

    @property
    def ads(self) -> NDArray[np.uint64]:
        """Ads that the model knows, ascending."""
        return self._towers.ads

    def score(
        self, keys: NDArray[np.uint64], weights: NDArray[np.float32], ad_ids: NDArray[np.uint64]
    ) -> tuple[NDArray[np.float32], int]:
        """Click probabilities of (n,) ads for the user with these features, and how many of the ads are unknown.

        keys, weights: (m,) uint64, float32, m at most 10,000; empty for an unknown user; unknown keys are ignored
        ad_ids:        (n,) uint64, 1 to 5,000; an unknown ad is scored by the user's side alone

        Raises FieldError naming "context.keys", "context.weights" or "ad_ids".
        """
        check_sizes(len(keys), len(weights), len(ad_ids))
        check_weights(weights)
        bias, vec = self._towers.user(keys, weights)
        rows = lookup(self._towers.ads, ad_ids)
        unknown = rows < 0
        rows[unknown] = len(self._towers.ads)
        pctrs = native.tower_pctr(float(bias), vec, rows.astype(np.uint32), self._ad_bias, self._ad_vecs)
        return pctrs, int(np.count_nonzero(unknown))

    def warm_up(self) -> None:
        """Touch every ad's half once, so that the first request finds them in memory."""
        keys = self._towers.user_keys[:1]
        for start in range(0, len(self.ads), MAX_ADS):
            self.score(keys, np.ones(len(keys), np.float32), self.ads[start : start + MAX_ADS])


def check_sizes(keys: int, weights: int, ads: int) -> None:
    """FieldError where a request holds too little or too much."""
    if keys > MAX_FEATURES:
        raise FieldError("context.keys", f"at most {MAX_FEATURES:,} features, not {keys:,}")
    if weights != keys:
        raise FieldError("context.weights", f"one weight for each of the {keys:,} keys, not {weights:,}")
    if not 1 <= ads <= MAX_ADS:
        raise FieldError("ad_ids", f"1 to {MAX_ADS:,} ads, not {ads:,}")


def check_weights(weights: NDArray[np.float32]) -> None:
    """FieldError where a weight is not a number whose square is one too."""
    wrong = np.flatnonzero(~(np.abs(weights) <= MAX_WEIGHT))
    if len(wrong):
        raise FieldError(
            "context.weights", f"weight {wrong[0]} is {weights[wrong[0]]}; finite, at most {MAX_WEIGHT:g}"
        )
