"""Binary codes of vectors: centre, keep the principal directions, take signs along the columns of a method.

A bit is the side of a hyperplane, so that the Hamming distance estimates the angle around the centre. The methods
(vitrine/ann/rotations.py) differ in how the planes are chosen; docs/hashing.md says which to take.

Encoding is exact arithmetic: vectors, mean and planes are multiples of 2^-24, so that every product is a multiple
of 2^-48 and every partial sum, below 16, fits float64 without rounding. A code is then the same bits in whatever
order, batch, thread count or instruction set the sum is taken.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vitrine.ann.rotations import METHODS

Floats = NDArray[np.float32]
Codes = NDArray[np.uint64]

_GRID = 2.0**24
_CHUNK = 4096  # rows encoded at a time: (4096, 512) float64 is 16 MB


@dataclass(frozen=True)
class Hashing:
    """A fitted hash function.

    mean:     float32 (dim,), multiples of 2^-24
    rotation: float32 (dim, bits), multiples of 2^-24; bit b is the sign of (x - mean) . rotation[:, b]
    """

    mean: Floats
    rotation: Floats

    def __post_init__(self) -> None:
        """Raises ValueError where the arrays do not fit each other."""
        if self.mean.dtype != np.float32 or self.rotation.dtype != np.float32:
            raise ValueError("mean and rotation should be float32")
        if self.mean.ndim != 1 or self.rotation.ndim != 2 or self.rotation.shape[0] != self.dim:
            raise ValueError(f"mean {self.mean.shape} and rotation {self.rotation.shape} do not fit each other")
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
        return int(self.rotation.shape[1])

    @cached_property
    def _wide(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and rotation as float64."""
        return on_grid(self.mean), on_grid(self.rotation)

    def encode(self, vectors: Floats) -> Codes:
        """Codes uint64 (words, n), word-major, of unit vectors float32 (n, dim).

        Bit b of a code is bit b % 64 of its word b // 64, set where the projection is 0 or more.
        """
        codes = np.empty((self.bits // 64, len(vectors)), np.uint64)
        mean, rotation = self._wide
        for start in range(0, len(vectors), _CHUNK):
            chunk = on_grid(vectors[start : start + _CHUNK])
            signs = (chunk - mean) @ rotation >= 0
            packed = np.packbits(signs, axis=1, bitorder="little").view("<u8")
            codes[:, start : start + len(chunk)] = packed.T
        return codes

    def save(self, file: Path) -> None:
        """Writes hashing.safetensors."""
        save_file({"mean": self.mean, "rotation": np.ascontiguousarray(self.rotation)}, file)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads what `save` wrote; ValueError where the file is something else."""
        try:
            tensors = load_file(file)
            return cls(tensors["mean"], tensors["rotation"])
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{file}: is not a hash function: {error}") from error


def fit(vectors: Floats, bits: int, *, method: str = "turns", dims: int = 0, seed: int = 0) -> Hashing:
    """Hash function of `bits` bits for unit vectors like the sample float32 (n, dim).

    method: "turns", "itq", "lph" or "signs"
    dims:   principal directions kept, 0 for all; fewer leave out directions in which the sample hardly varies
    Raises ValueError where bits is not a multiple of 64 from 64 to 1,024, dims is more than dim, or method is none
    of these.
    """
    dim = vectors.shape[1]
    if bits % 64 or not 64 <= bits <= 1024:
        raise ValueError(f"bits: {bits} is not a multiple of 64 from 64 to 1,024")
    if not 0 <= dims <= dim:
        raise ValueError(f"dims: {dims} is not 0 to {dim}, the dimensions of a vector")
    if method not in METHODS:
        raise ValueError(f"method: {method!r} is none of {', '.join(METHODS)}")
    sample = vectors.astype(np.float64)
    mean = on_grid(sample.mean(axis=0))
    centred = sample - mean
    _, directions = np.linalg.eigh(centred.T @ centred)  # ascending variance
    kept = directions[:, ::-1][:, : dims or dim]
    columns = METHODS[method](centred @ kept, bits, seed)
    return Hashing(mean.astype(np.float32), on_grid(kept @ columns).astype(np.float32))


def on_grid(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Nearest multiples of 2^-24, as float64."""
    return np.rint(values.astype(np.float64) * _GRID) / _GRID
