"""RaBitQ: one bit a rotated dimension of what is left of a vector after its centre (Gao and Long, SIGMOD 2024).

With r = x - c, a random orthogonal P and s the signs of P r, <q - c, r> is estimated for a real-valued query by
<P(q - c), s> |r|^2 / <P r, s>: unbiased over P, with an error of order |q - c| |r| / sqrt(bits). More bits than
dimensions pad the vectors with zeros. With many centres codes of different centres cannot be compared by Hamming
distance, so these re-rank and do nothing else; docs/hashing.md has their place beside the codes of
vitrine/ann/coarse.py, which are the ones in use.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vitrine.ann.hashing import Floats

_ROUNDS = 10  # of k-means
_CHUNK = 4096  # rows encoded at a time


@dataclass(frozen=True, eq=False)
class RaBitQ:
    """Codes of n vectors and what estimates products with them.

    centres:  float32 (c, dim)
    rotation: float32 (dim, bits), orthonormal rows
    codes:    uint8 (n, bits / 8), bit b is bit b % 8 of byte b // 8
    nearest:  uint32 (n,), each vector's centre
    factors:  float32 (n,), |r|^2 / <P r, s>
    offsets:  float32 (n,), <c, r> less what the estimator takes it for
    """

    centres: Floats
    rotation: Floats
    codes: NDArray[np.uint8]
    nearest: NDArray[np.uint32]
    factors: Floats
    offsets: Floats

    @classmethod
    def fit(cls, sample: Floats, bits: int = 0, *, centres: int = 64, seed: int = 0) -> Self:
        """Centres and rotation for vectors like the sample float32 (n, dim), without any codes.

        bits: a multiple of 64, at least dim; 0 for the least
        Raises ValueError where bits is another, or there are more centres than vectors or none.
        """
        n, dim = sample.shape
        bits = bits or -(-dim // 64) * 64
        if bits % 64 or bits < dim:
            raise ValueError(f"bits: {bits} is not a multiple of 64 from {dim}, the dimensions, on")
        if not 1 <= centres <= n:
            raise ValueError(f"centres: {centres} is not 1 to {n}, the vectors of the sample")
        draws = np.random.Generator(np.random.Philox(key=seed))
        rotation = np.linalg.qr(draws.standard_normal((bits, bits)))[0][:dim]
        chosen = sample[np.sort(draws.choice(n, centres, replace=False))].astype(np.float64)
        for _ in range(_ROUNDS if centres > 1 else 0):
            nearest = _nearest(sample, chosen)
            counts = np.bincount(nearest, minlength=centres)
            sums = np.zeros_like(chosen)
            np.add.at(sums, nearest, sample)
            chosen[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
        if centres == 1:
            chosen = sample.mean(axis=0, dtype=np.float64, keepdims=True)
        none = np.empty(0, np.float32)
        codes = np.empty((0, bits // 8), np.uint8)
        return cls(
            chosen.astype(np.float32), rotation.astype(np.float32), codes, np.empty(0, np.uint32), none, none
        )

    def encode(self, vectors: Floats) -> Self:
        """The same centres and rotation with the codes of float32 (n, dim)."""
        n = len(vectors)
        codes, nearest = np.empty((n, self.rotation.shape[1] // 8), np.uint8), np.empty(n, np.uint32)
        factors, offsets = np.empty(n, np.float32), np.empty(n, np.float32)
        turned_centres = self.centres @ self.rotation
        for start in range(0, n, _CHUNK):
            part = slice(start, start + _CHUNK)
            nearest[part] = _nearest(vectors[part], self.centres.astype(np.float64))
            centre = self.centres[nearest[part]]
            rest = vectors[part] - centre
            turned = rest @ self.rotation
            codes[part] = np.packbits(turned >= 0, axis=1, bitorder="little")
            signs = np.where(turned >= 0, np.float32(1), np.float32(-1))
            lengths = np.square(rest).sum(axis=1)
            factors[part] = lengths / np.maximum((turned * signs).sum(axis=1), 1e-30)
            taken = (turned_centres[nearest[part]] * signs).sum(axis=1) * factors[part]
            offsets[part] = (centre * rest).sum(axis=1) - taken
        return replace(self, codes=codes, nearest=nearest, factors=factors, offsets=offsets)

    def scores(self, query: Floats, rows: NDArray[np.integer]) -> Floats:
        """Unbiased estimates float32 (len(rows),) of the products of a query float32 (dim,) with these rows."""
        turned = query @ self.rotation
        bits = np.unpackbits(self.codes[rows], axis=1, bitorder="little")
        products = 2 * (bits.astype(np.float32) @ turned) - turned.sum()
        near = (self.centres @ query)[self.nearest[rows]]
        scores: Floats = near + self.offsets[rows] + self.factors[rows] * products
        return scores

    def save(self, file: Path) -> None:
        """Writes what `load` reads."""
        save_file({name: np.ascontiguousarray(getattr(self, name)) for name in self.__dataclass_fields__}, file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what `save` wrote; ValueError where the file is something else."""
        try:
            return cls(**load_file(file))
        except (SafetensorError, TypeError) as error:
            raise ValueError(f"{file}: is not RaBitQ codes: {error}") from error


def _nearest(vectors: Floats, centres: NDArray[np.float64]) -> NDArray[np.int64]:
    """The nearest centre of each vector; equal distances: the lower."""
    halves = np.square(centres).sum(axis=1) / 2
    found: NDArray[np.int64] = np.argmin(halves - vectors @ centres.T, axis=1)
    return found
