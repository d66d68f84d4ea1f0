"""The `ctr-model` artifact: a logistic regression or factorization machine as arrays, and every ad's features."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vitrine.errors import FieldError
from vitrine.features import FeatureSchema, UserTowers, towers
from vitrine.features.towers import load_array, lookup

KIND = "ctr-model"
SCHEMA = 1
TOWERS_KIND = "towers"
TOWERS_SCHEMA = 1

_DTYPES: dict[str, type[np.generic]] = {
    "keys": np.uint64,
    "w": np.float32,
    "v": np.float32,
    "ads": np.uint64,
    "ad_key_indptr": np.int64,
    "ad_keys": np.uint64,
    "ad_weights": np.float32,
}


@dataclass(frozen=True)
class CtrModel:
    """n feature keys, A ads.

    keys:          (n,) uint64 ascending; w: (n,) float32; v: (n, k) float32, k = 0 for a logistic regression
    ads:           (A,) uint64 ascending
    ad_key_indptr: (A + 1,) int64; ad a's features are ad_keys[ad_key_indptr[a]:ad_key_indptr[a + 1]], uint64, with
                   ad_weights, float32; keys that `keys` lacks contribute nothing
    bias:          the model's; kind: "fm" or "lr"; schema: the fields that the keys come from
    """

    keys: NDArray[np.uint64]
    w: NDArray[np.float32]
    v: NDArray[np.float32]
    ads: NDArray[np.uint64]
    ad_key_indptr: NDArray[np.int64]
    ad_keys: NDArray[np.uint64]
    ad_weights: NDArray[np.float32]
    bias: float
    kind: Literal["fm", "lr"]
    schema: FeatureSchema

    def __post_init__(self) -> None:
        """Raises FieldError naming the array that does not fit the others."""
        n, a = len(self.keys), len(self.ads)
        shapes = {"w": (n,), "v": (n, self.v.shape[-1]), "ad_key_indptr": (a + 1,)}
        shapes["ad_weights"] = (len(self.ad_keys),)
        for name, dtype in _DTYPES.items():
            array = getattr(self, name)
            wanted = shapes.get(name, (len(array),))
            if array.dtype != dtype or array.shape != wanted:
                raise FieldError(name, f"{np.dtype(dtype)} of shape {wanted}, not {array.dtype} of {array.shape}")
        indptr = self.ad_key_indptr
        if indptr[0] != 0 or indptr[-1] != len(self.ad_keys) or np.any(np.diff(indptr) < 0):
            raise FieldError("ad_key_indptr", f"must rise from 0 to {len(self.ad_keys)}")
        if self.kind not in ("fm", "lr"):
            raise FieldError("meta.model", f'"fm" or "lr", not {self.kind!r}')
        for name in ("keys", "ads"):
            ids = getattr(self, name)
            if np.any(ids[1:] <= ids[:-1]):
                raise FieldError(name, "must be ascending, each once")
        for name in ("w", "v", "ad_weights"):
            if not np.isfinite(getattr(self, name)).all():
                raise FieldError(name, "must be finite")
        if not np.isfinite(self.bias):
            raise FieldError("meta.bias", "must be finite")

    @staticmethod
    def load(path: Path) -> CtrModel:
        """Read the artifact's folder; FieldError names the file that is wrong."""
        arrays = {name: load_array(path / f"{name}.npy") for name in _DTYPES}
        try:
            meta = json.loads((path / "meta.json").read_text("utf-8"))
            bias, kind = float(meta["bias"]), meta["model"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            wanted = '{"bias": number, "model": "fm" or "lr"}'
            raise FieldError("meta.json", f"{wanted} was expected ({error})") from None
        schema = FeatureSchema.load(path / "schema.json")
        return CtrModel(**arrays, bias=bias, kind=kind, schema=schema)

    def write(self, path: Path) -> None:
        """Write the artifact's files into a folder, made where missing."""
        path.mkdir(parents=True, exist_ok=True)
        for name, dtype in _DTYPES.items():
            np.save(path / f"{name}.npy", np.ascontiguousarray(getattr(self, name), dtype), allow_pickle=False)
        meta = {"bias": self.bias, "model": self.kind}
        (path / "meta.json").write_text(json.dumps(meta) + "\n", "utf-8")
        (path / "schema.json").write_text(self.schema.to_json(), "utf-8")

    def towers(self, user_keys: NDArray[np.uint64] | None = None) -> UserTowers:
        """The model cut in two, with every ad's half finished.

        user_keys: the keys a user can have, ascending; all of the model's where not given
        """
        rows = lookup(self.keys, self.ad_keys)
        ad_bias, ad_vecs = towers(self.w, self.v, self.ad_key_indptr, rows, self.ad_weights)
        keep = slice(None) if user_keys is None else np.flatnonzero(lookup(user_keys, self.keys) >= 0)
        return UserTowers(self.keys[keep], self.w[keep], self.v[keep], self.bias, self.ads, ad_bias, ad_vecs)
