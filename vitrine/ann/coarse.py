"""Re-rank codes: each vector in 4 bits or int8 a dimension, small enough to stay in memory.

The stage between Hamming distances and real vectors (docs/hashing.md): it scores the pool of a search so well that
few real vectors are left to read.

A vector is turned first, by two rounds of random sign flips and a Hadamard transform, after which no coordinate
stands out; then its coordinates are rounded to a grid that its largest spans. With c the grid's integers, <q, x> is
estimated by <q, c> |x|^2 / <c, x>, whose error has mean zero over rotations (as RaBitQ's, vitrine/ann/rabitq.py).
Nothing is fitted: the flips are constants, so codes of all segments and versions agree.

A query is rounded to 14 bits a coordinate and the product summed in integers; turning is float32 additions in a
fixed order. Codes and scores are therefore the same bits on every machine, for a row anywhere, in a batch or alone.
"""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann.arrays import refuse
from vitrine.ann.hashing import Floats

BITS = (4, 8)

_GROUP = 64  # dimensions that a row is padded to a multiple of
_CHUNK = 4096  # rows encoded at a time
_MAX_DIM = 1 << 16
_FLIPS = np.random.Philox(key=0x0C0A25E).random_raw(2 * _MAX_DIM).reshape(2, _MAX_DIM) >> 63


@dataclass(frozen=True, eq=False)
class Coarse:
    """Codes of n vectors of `dim` dimensions; read-only and safe for threads.

    bits:    4 or 8 a dimension
    codes:   uint8 (n, width * bits / 8), width being dim up to a multiple of 64
    factors: float32 (n,), what a product with a row's integers is multiplied by
    """

    dim: int
    bits: int
    codes: NDArray[np.uint8]
    factors: Floats

    @property
    def items(self) -> int:
        """Vectors encoded."""
        return len(self.factors)

    @classmethod
    def encode(cls, vectors: Floats, bits: int = 4, file: Path | None = None) -> Self:
        """Codes of float32 (n, dim), none of them all zero, chunk by chunk.

        file: where given the codes are written there as they come, mapped, and take no memory of their own
        """
        n, dim = vectors.shape
        if bits not in BITS:
            raise ValueError(f"bits: {bits} is neither 4 nor 8")
        if not 1 <= dim <= _MAX_DIM:
            raise ValueError(f"vectors: have {dim} dimensions; re-rank codes take 1 to {_MAX_DIM}")
        if file is None:
            coarse = cls(dim, bits, np.empty((n, _width(dim) * bits // 8), np.uint8), np.empty(n, np.float32))
        else:
            coarse = cls(dim, bits, *_create(file, n, dim, bits))
        for start in range(0, n, _CHUNK):
            part = slice(start, min(start + _CHUNK, n))
            rows = np.ascontiguousarray(vectors[part], np.float32)
            coarse.codes[part], coarse.factors[part] = native.coarse_encode(rows, flips(dim), bits)
        return coarse

    def scores(self, query: Floats, rows: NDArray[np.integer]) -> Floats:
        """Estimated inner products float32 (len(rows),) of a query float32 (dim,) with these rows."""
        given = np.ascontiguousarray(rows, np.uint32)[None]
        one = np.ascontiguousarray(query, np.float32)[None]
        scores: Floats = native.coarse_scores(self.codes, self.factors, flips(self.dim), one, given)[0]
        return scores

    def all_scores(self, queries: Floats, rows: NDArray[np.uint32], threads: int = 1) -> Floats:
        """`scores` of each query of float32 (q, dim) with its own rows (q, p)."""
        scores: Floats = native.coarse_scores(self.codes, self.factors, flips(self.dim), queries, rows, threads)
        return scores

    def best(
        self, queries: Floats, rows: NDArray[np.uint32], k: int, threads: int = 1
    ) -> tuple[NDArray[np.uint32], Floats]:
        """Each query's k best among its own rows: rows and scores, both (q, k), best first, equal scores by row.

        queries: float32 (q, dim)
        rows:    uint32 (q, p), a query's ending at 2^32 - 1; so do the best where there are fewer than k
        """
        return native.coarse_topk(self.codes, self.factors, flips(self.dim), queries, rows, k, threads)

    def save(self, file: Path) -> None:
        """Writes coarse.safetensors, which `load` maps."""
        codes, factors = _create(file, self.items, self.dim, self.bits)
        codes[:], factors[:] = self.codes, self.factors

    @classmethod
    def load(cls, file: Path) -> Self:
        """Maps what `save` or `encode` wrote; ArtifactError where the file is something else or cut short."""
        try:
            with file.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header: dict[str, Any] = json.loads(stream.read(size) if size < 1 << 20 else b"")
            dim, bits = (int(header["__metadata__"][name]) for name in ("dim", "bits"))
            n = int(header["factors"]["shape"][0])
            if header != _header(n, dim, bits) or file.stat().st_size != _end(header, size):
                raise ValueError(f"{file.stat().st_size} bytes do not hold {n} codes of {bits} bits a dimension")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            refuse(file.name, f"is not re-rank codes: {error!r}")
        return cls(dim, bits, *_map(file, header, size, "r"))


@cache
def flips(dim: int) -> Floats:
    """The constant signs of both rounds, 1 or -1, float32 (2, width)."""
    drawn = _FLIPS[:, : _width(dim)]
    return np.ascontiguousarray(1 - 2 * drawn.astype(np.float32))


def _width(dim: int) -> int:
    return -(-dim // _GROUP) * _GROUP


def _header(n: int, dim: int, bits: int) -> dict[str, Any]:
    """The safetensors header: codes come first, so that rows of whole cache lines begin at one."""
    row = _width(dim) * bits // 8
    return {
        "__metadata__": {"dim": str(dim), "bits": str(bits)},
        "codes": {"dtype": "U8", "shape": [n, row], "data_offsets": [0, n * row]},
        "factors": {"dtype": "F32", "shape": [n], "data_offsets": [n * row, n * row + 4 * n]},
    }


def _end(header: dict[str, Any], size: int) -> int:
    return 8 + size + int(header["factors"]["data_offsets"][1])


def _create(file: Path, n: int, dim: int, bits: int) -> tuple[NDArray[np.uint8], Floats]:
    """A new file for n codes, mapped to be written."""
    header = _header(n, dim, bits)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.flush()
        # A full disk is an error now: a mapped page that finds no room would end the process by a signal.
        os.posix_fallocate(stream.fileno(), 0, _end(header, len(text)))
    return _map(file, header, len(text), "r+")


def _map(file: Path, header: dict[str, Any], size: int, mode: Any) -> tuple[NDArray[np.uint8], Floats]:
    """The two arrays of a file, mapped."""
    if header["factors"]["shape"] == [0]:
        return np.empty(header["codes"]["shape"], np.uint8), np.empty(0, np.float32)
    codes, factors = (
        np.memmap(file, dtype, mode, 8 + size + header[name]["data_offsets"][0], tuple(header[name]["shape"]))
        for name, dtype in (("codes", np.uint8), ("factors", np.float32))
    )
    return codes.view(np.ndarray), factors.view(np.ndarray)
