"""The factorization machine cut in two: a user's half and an ad's half (Rendle 2010, eq. 5).

A factorization machine over the features of a user and an ad has the logit

    bias + sum_i w_i x_i + (|sum_i v_i x_i|^2 - sum_i |v_i|^2 x_i^2) / 2.

The features fall into the user's and the ad's, so with V_u and V_a the two halves of the vector sum it is exactly

    b_u + b_a + <V_u, V_a>,    b_u = bias + sum w x + (|V_u|^2 - sum |v|^2 x^2) / 2 over the user's features,
                               b_a likewise over the ad's, without the bias.

Sums run in float32 from left to right in the order given, without BLAS, so that every path and machine gets the
same bits. Logistic regression is the case of dimension 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.errors import FieldError
from vitrine.features.schema import FeatureSchema

_FILES = ("user_keys", "user_w", "user_v", "ads", "ad_bias", "ad_vecs")


def tower(
    w: NDArray[np.float32], v: NDArray[np.float32], x: NDArray[np.float32]
) -> tuple[np.float32, NDArray[np.float32]]:
    """One side's half: w (n,), v (n, d) and weights x (n,) in order -> (b, V (d,)), b without the model's bias."""
    if len(w) == 0:
        return v.dtype.type(0), np.zeros(v.shape[1], v.dtype)
    xv = v * x[:, None]
    vec = np.add.accumulate(xv, axis=0)[-1]
    linear = np.add.accumulate(w * x)[-1]
    if len(vec) == 0:
        return linear, vec
    own = np.add.accumulate(_norms(xv))[-1]
    return linear + (_norms(vec[None])[0] - own) * v.dtype.type(0.5), vec


def towers(
    w: NDArray[np.float32],
    v: NDArray[np.float32],
    indptr: NDArray[np.int64],
    rows: NDArray[np.int64],
    x: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """`tower` of many, the same bits.

    w, v:   (n,), (n, d) the model's rows
    indptr: (A + 1,); half a has the features rows[indptr[a]:indptr[a + 1]] with weights x; a row of -1 is unknown
            and contributes nothing
    Returns b (A,) and V (A, d), float32.
    """
    known = rows >= 0
    owner = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))[known]
    rows, x = rows[known], x[known]
    counts = np.bincount(owner, minlength=len(indptr) - 1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    linear = np.zeros(len(counts), v.dtype)
    own = np.zeros(len(counts), v.dtype)
    vec = np.zeros((len(counts), v.shape[1]), v.dtype)
    for j in range(int(counts.max(initial=0))):  # the j-th feature of all that have one: the order of `tower`
        has = np.flatnonzero(counts > j)
        at = starts[has] + j
        xv = v[rows[at]] * x[at, None]
        vec[has] += xv
        linear[has] += w[rows[at]] * x[at]
        if v.shape[1]:
            own[has] += _norms(xv)
    if v.shape[1]:
        linear += (_norms(vec) - own) * v.dtype.type(0.5)
    return linear, vec


class UserTowers:
    """The `towers` artifact: rows of the user's features, and the finished half of every ad.

    user_keys: (n,) uint64 ascending; user_w (n,), user_v (n, d) float32; bias, the model's
    ads:       (A,) uint64 ascending; ad_bias (A,), ad_vecs (A, d) float32
    """

    def __init__(
        self,
        user_keys: NDArray[np.uint64],
        user_w: NDArray[np.float32],
        user_v: NDArray[np.float32],
        bias: float,
        ads: NDArray[np.uint64],
        ad_bias: NDArray[np.float32],
        ad_vecs: NDArray[np.float32],
    ) -> None:
        _check("user_keys", user_keys, np.uint64, (len(user_keys),))
        _check("user_w", user_w, np.float32, (len(user_keys),))
        _check("user_v", user_v, np.float32, (len(user_keys), user_v.shape[-1]))
        _check("ads", ads, np.uint64, (len(ads),))
        _check("ad_bias", ad_bias, np.float32, (len(ads),))
        _check("ad_vecs", ad_vecs, np.float32, (len(ads), user_v.shape[-1]))
        for name, ids in (("user_keys", user_keys), ("ads", ads)):
            if np.any(ids[1:] <= ids[:-1]):
                raise FieldError(name, "not in ascending order, each once")
        if not np.isfinite(bias):
            raise FieldError("bias", "not finite")
        self.user_keys = user_keys
        self.user_w = user_w
        self.user_v = user_v
        self.bias = np.float32(bias)
        self.ads = ads
        self.ad_bias = ad_bias
        self.ad_vecs = ad_vecs

    @property
    def dim(self) -> int:
        """Length of the vectors; 0 for a logistic regression."""
        return int(self.user_v.shape[1])

    @staticmethod
    def load(path: Path) -> UserTowers:
        """Read a `towers` artifact's folder. FieldError names the file or array that is wrong."""
        try:
            bias = float(json.loads((path / "meta.json").read_text("utf-8"))["bias"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FieldError("meta.json", f'{{"bias": number}} was expected ({error})') from None
        FeatureSchema.load(path / "schema.json")
        a = {name: load_array(path / f"{name}.npy") for name in _FILES}
        return UserTowers(a["user_keys"], a["user_w"], a["user_v"], bias, a["ads"], a["ad_bias"], a["ad_vecs"])

    def write(self, path: Path, schema: FeatureSchema) -> None:
        """Write the `towers` artifact's files into a folder, made where missing."""
        path.mkdir(parents=True, exist_ok=True)
        for name in _FILES:
            np.save(path / f"{name}.npy", np.ascontiguousarray(getattr(self, name)), allow_pickle=False)
        (path / "meta.json").write_text(json.dumps({"bias": float(self.bias)}) + "\n", "utf-8")
        (path / "schema.json").write_text(schema.to_json(), "utf-8")

    def user(
        self, keys: NDArray[np.uint64], weights: NDArray[np.float32]
    ) -> tuple[np.float32, NDArray[np.float32]]:
        """The user's half: keys (n,) uint64 and weights (n,) float32 -> (b_u, V_u (d,)), b_u with the model's bias.

        Keys that the model has never seen contribute nothing.
        """
        rows = lookup(self.user_keys, keys)
        known = rows >= 0
        rows, x = rows[known], np.asarray(weights, np.float32)[known]
        b, vec = tower(self.user_w[rows], self.user_v[rows], x)
        return self.bias + b, vec


def load_array(path: Path) -> NDArray[Any]:
    """An npy file as an array; FieldError where it is missing or unreadable."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FieldError(path.name, f"not a readable npy file ({error}); publish the artifact again") from None
    return array


def lookup(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Positions of `wanted` (m,) in the ascending `keys` (n,): (m,) int64, -1 where it is not there."""
    if len(keys) == 0:
        return np.full(len(wanted), -1, np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1)


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """|v|^2 of each row (n, d) -> (n,), added from left to right; d > 0."""
    return np.ascontiguousarray(np.add.accumulate(vectors * vectors, axis=1)[:, -1])


def _check(name: str, array: NDArray[np.generic], dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise FieldError(name, f"{dtype.__name__} of shape {shape} was expected, not {array.dtype} {array.shape}")
