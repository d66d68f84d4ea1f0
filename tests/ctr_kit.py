"""Small click models for the tests, and the plain factorization machine that their scores must equal."""

import numpy as np

from vitrine.ctr import CtrModel
from vitrine.features import SCHEMA, ad_features, feature_keys

ADS = 40


def random_model(seed: int = 0, dim: int = 6, ads: int = ADS) -> CtrModel:
    """A model of 30 items, 10 crowds and `ads` ads with ids 100, 101, ...; every fifth key is left out of it."""
    rng = np.random.default_rng(seed)
    ad_ids = np.arange(100, 100 + ads, dtype=np.uint64)
    counts = rng.integers(0, 4, ads)
    crowds = np.concatenate([rng.choice(10, n, replace=False) for n in counts]).astype(np.uint64) + np.uint64(1)
    indptr, ad_keys, ad_x = ad_features(ad_ids, np.concatenate([[0], np.cumsum(counts)]), crowds)
    user = [feature_keys("user_item", user_items()), feature_keys("user_crowd", np.arange(1, 11, dtype=np.uint64))]
    keys = np.unique(np.concatenate([*user, ad_keys]))
    keys = keys[np.arange(len(keys)) % 5 != 0]
    return CtrModel(
        keys=keys,
        w=rng.normal(size=len(keys)).astype(np.float32),
        v=rng.normal(size=(len(keys), dim)).astype(np.float32) / 2,
        ads=ad_ids,
        ad_key_indptr=indptr,
        ad_keys=ad_keys,
        ad_weights=ad_x,
        bias=-1.5,
        kind="fm" if dim else "lr",
        schema=SCHEMA,
    )


def user_items() -> np.ndarray:
    """Items that the model's users may have."""
    return np.arange(1, 31, dtype=np.uint64)


def random_user(seed: int, features: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """(keys, weights) of a user, some of whose keys the model lacks."""
    rng = np.random.default_rng(seed)
    keys = feature_keys("user_item", rng.choice(user_items(), features, replace=False))
    return keys, rng.random(features).astype(np.float32)


def plain_pctr(model: CtrModel, keys: np.ndarray, weights: np.ndarray, ad_id: int) -> float:
    """Rendle 2010, eq. 1, in float64, over the features that the model knows."""
    row = {int(key): i for i, key in enumerate(model.keys)}
    features = list(zip(keys.tolist(), weights.tolist(), strict=True))
    if ad_id in model.ads:
        a = int(np.searchsorted(model.ads, ad_id))
        at = slice(model.ad_key_indptr[a], model.ad_key_indptr[a + 1])
        features += zip(model.ad_keys[at].tolist(), model.ad_weights[at].tolist(), strict=True)
    known = [(row[key], x) for key, x in features if key in row]
    v, w = model.v.astype(float), model.w.astype(float)
    logit = model.bias + sum(w[i] * x for i, x in known)
    for n, (i, x) in enumerate(known):
        logit += sum(v[i] @ v[j] * x * y for j, y in known[n + 1 :])
    return 1 / (1 + np.exp(-logit))
