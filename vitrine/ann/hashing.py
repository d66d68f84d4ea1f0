"""Binary codes of vectors: centre, keep the principal directions, take signs along the columns of a method.

A bit is the side of a hyperplane, so that the Hamming distance estimates the angle around the centre. The methods
(vitrine/ann/rotations.py) differ in how the planes are chosen; docs/hashing.md says which to take.

Encoding is exact arithmetic: vectors, mean and rotation are multiples of 2^-24, so that every product is a multiple
of 2^-48 and every partial sum, below 16, fits float64 without rounding. Stacked rotations are then sign flips and
Hadamard transforms of integers. A code is the same bits in whatever order, batch, thread count or instruction set.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vitrine import native
from vitrine.ann.rotations import METHODS

Floats = NDArray[np.float32]
Codes = NDArray[np.uint64]

_GRID = 2.0**24
_CHUNK = 4096  # rows encoded at a time: (4096, 512) float64 is 16 MB
_ROUNDS = 3  # of flips and transforms: with two, neighbours are found as well; with one, a fifth as well
_MAX_BITS = 1024
_SHARE = 0.9  # docs/hashing.md has spectra on both sides of it


@dataclass(frozen=True)
class Hashing:
    """A fitted hash function: bits are signs of x' = (x - mean) . rotation, or of random rotations of x'.

    mean:     float32 (dim,), multiples of 2^-24
    rotation: float32 (dim, bits), or (dim, kept) where there are flips; multiples of 2^-24
    flips:    int8 (3, width, blocks), 1 or -1: x', padded with zeros to the power of two `width`, is turned
              `blocks` times by three rounds of flips and a Hadamard transform; bit i * blocks + b is the sign of
              coordinate i of turn b
    """

    mean: Floats
    rotation: Floats
    flips: NDArray[np.int8] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where the arrays do not fit each other."""
        if self.mean.dtype != np.float32 or self.rotation.dtype != np.float32:
            raise ValueError("mean and rotation should be float32")
        if self.mean.ndim != 1 or self.rotation.ndim != 2 or self.rotation.shape[0] != self.dim:
            raise ValueError(f"mean {self.mean.shape} and rotation {self.rotation.shape} do not fit each other")
        if self.flips is not None:
            if self.flips.dtype != np.int8 or self.flips.ndim != 3 or not (np.abs(self.flips) == 1).all():
                raise ValueError("flips should be int8 of three dimensions, each 1 or -1")
            rounds, width, _ = self.flips.shape
            if rounds != _ROUNDS or width != _width(self.rotation.shape[1]) or width > _MAX_BITS:
                raise ValueError(
                    f"flips {self.flips.shape} and rotation {self.rotation.shape} do not fit each other"
                )
        if self.bits == 0 or self.bits % 64:
            raise ValueError(f"rotation gives {self.bits} bits, not a multiple of 64")
        norms = (
            np.linalg.norm(self.mean.astype(np.float64)),
            np.linalg.norm(self.rotation.astype(np.float64), axis=0),
        )
        if not (norms[0] <= 2 and (norms[1] <= 4).all()):  # and a vector's is 1: partial sums stay below 16
            raise ValueError("mean or rotation is not finite, or longer than unit vectors can make it")

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self.mean.shape[0])

    @property
    def bits(self) -> int:
        """Bits of a code, a multiple of 64."""
        return int(self.rotation.shape[1] if self.flips is None else self.flips[0].size)

    @cached_property
    def _wide(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and rotation as float64."""
        return on_grid(self.mean), on_grid(self.rotation)

    @cached_property
    def _stacked(self) -> tuple[Floats, Floats, NDArray[np.int32]]:
        """What the kernel reads: mean, rotation padded to a multiple of 32 columns, flips as 0 or -1."""
        assert self.flips is not None
        mean, rotation = (wide.astype(np.float32) for wide in self._wide)
        padded = np.pad(rotation, ((0, 0), (0, -rotation.shape[1] % 32)))
        return mean, np.ascontiguousarray(padded), np.ascontiguousarray(np.where(self.flips < 0, -1, 0), np.int32)

    def encode(self, vectors: Floats) -> Codes:
        """Codes uint64 (words, n), word-major, of unit vectors float32 (n, dim).

        Bit b of a code is bit b % 64 of its word b // 64, set where the projection is 0 or more.
        """
        if self.flips is not None and len(vectors) <= _CHUNK:
            return native.hash_encode(np.ascontiguousarray(vectors), *self._stacked)
        codes = np.empty((self.bits // 64, len(vectors)), np.uint64)
        for start in range(0, len(vectors), _CHUNK):
            chunk = vectors[start : start + _CHUNK]
            codes[:, start : start + len(chunk)] = (
                self.encode(chunk) if self.flips is not None else self._sides(chunk)
            )
        return codes

    def _sides(self, vectors: Floats) -> Codes:
        """Codes of a chunk without flips."""
        mean, rotation = self._wide
        signs = (on_grid(vectors) - mean) @ rotation >= 0
        codes: Codes = np.packbits(signs, axis=1, bitorder="little").view("<u8").T
        return codes

    def save(self, file: Path) -> None:
        """Writes hashing.safetensors."""
        arrays = {"mean": self.mean, "rotation": self.rotation, "flips": self.flips}
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}, file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what `save` wrote, now or before there were flips; ValueError where the file is something else."""
        try:
            tensors = load_file(file)
            return cls(tensors["mean"], tensors["rotation"], tensors.get("flips"))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{file}: is not a hash function: {error}") from error


def fit(vectors: Floats, bits: int = 512, *, method: str = "turns", dims: int = 0, seed: int = 0) -> Hashing:
    """Hash function of `bits` bits for unit vectors like the sample float32 (n, dim).

    method: "turns", "itq", "lph" or "signs"
    dims:   principal directions kept; 0 for as many, a power of two from 64 on, as hold 90% of the variance
    Raises ValueError where bits is not a multiple of 64 from 64 to 1,024, dims is more than dim, or method is none
    of these.
    """
    dim = vectors.shape[1]
    if bits % 64 or not 64 <= bits <= _MAX_BITS:
        raise ValueError(f"bits: {bits} is not a multiple of 64 from 64 to 1,024")
    if not 0 <= dims <= dim:
        raise ValueError(f"dims: {dims} is not 0 to {dim}, the dimensions of a vector")
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is none of {', '.join(METHODS)}")
    sample = vectors.astype(np.float64)
    mean = on_grid(sample.mean(axis=0))
    centred = sample - mean
    variances, directions = (a[..., ::-1] for a in np.linalg.eigh(centred.T @ centred))  # descending
    kept = directions[:, : dims or _enough(variances)]
    width = _width(kept.shape[1])
    if method == "turns" and bits % width == 0:
        drawn = np.random.Philox(key=seed).random_raw(_ROUNDS * bits).reshape(_ROUNDS, width, -1) >> 63
        columns, flips = kept, 1 - 2 * drawn.astype(np.int8)
    else:
        columns, flips = kept @ METHODS[method](centred @ kept, bits, seed), None
    return Hashing(mean.astype(np.float32), on_grid(columns).astype(np.float32), flips)


def _enough(variances: NDArray[np.float64]) -> int:
    """Directions to keep, of descending variances; where they fall fast, what the rest adds to a bit is noise."""
    kept = 64
    while kept < len(variances) and variances[:kept].sum() < _SHARE * variances.sum():
        kept *= 2
    return min(kept, len(variances))


def _width(kept: int) -> int:
    """Coordinates that a turn works on: a power of two, and whole words."""
    return max(64, 1 << (kept - 1).bit_length())


def on_grid(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Nearest multiples of 2^-24, as float64."""
    return np.rint(values.astype(np.float64) * _GRID) / _GRID
