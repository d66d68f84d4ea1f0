"""The searchable index of a `binary-index` artifact: a Hamming scan over codes, re-ranked by real vectors.

Files of the artifact, schema 1: codes.npy uint64 (words, n), word-major; ids.npy uint64 (n,), ascending;
vectors.npy float32 (n, dim), unit length; hashing.safetensors; meta.json {"bits", "dim", "over_recall"}. Its parent
`embeddings` has the encoder of pictures.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vitrine import native
from vitrine.ann.arrays import check_unit_vectors, map_array, refuse
from vitrine.ann.hashing import Codes, Floats, Hashing
from vitrine.errors import FieldError

KIND = "binary-index"
SCHEMA = 1

MAX_K = 1000
MAX_OVER_RECALL = 100

_POOLED = 1 << 18  # candidates held at a time: the scan's rows and distances of one block of queries
_GATHERED = 1 << 14  # candidates whose vectors are gathered at a time: 8 MB at 128 dimensions

Ids = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Hits:
    """The k' = min(k, n) nearest items of each query, nearest first, ties by ascending id.

    ids:       uint64 (q, k')
    scores:    float32 (q, k'), cosine; None for queries by code
    distances: uint32 (q, k'), Hamming distance in bits
    """

    ids: Ids
    scores: Floats | None
    distances: NDArray[np.uint32]


@dataclass(frozen=True)
class BinaryIndex:
    """Codes, vectors and the hash function between them; read-only and safe for threads.

    codes:       uint64 (words, n), word-major
    ids:         uint64 (n,), ascending
    vectors:     float32 (n, dim), unit length
    over_recall: default number of candidates re-ranked, as a multiple of k
    """

    codes: Codes
    ids: Ids
    vectors: Floats
    hashing: Hashing
    over_recall: int

    @property
    def items(self) -> int:
        """Items in the index."""
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self.hashing.dim

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return self.hashing.bits

    def search_vectors(
        self,
        queries: Floats,
        k: int,
        over_recall: int | None = None,
        *,
        threads: int = 1,
        between: Callable[[str], None] = lambda stage: None,
    ) -> Hits:
        """The k items of highest cosine among the k x over_recall of nearest codes.

        queries: float32 (q, dim), finite and not zero; of any length
        between: called with "encode", "scan" and "rerank" after each block of queries has gone through that stage;
                 what it raises ends the search

        Exact where k x over_recall is n or more. Raises FieldError("vectors" | "k" | "over_recall").
        """
        over_recall = self.over_recall if over_recall is None else over_recall
        if not 1 <= over_recall <= MAX_OVER_RECALL:
            raise FieldError("over_recall", f"is {over_recall}; use 1 to {MAX_OVER_RECALL}")
        pool = min(_checked_k(k) * over_recall, self.items)
        queries = unit_queries(queries, self.dim)
        kept = min(k, self.items)
        hits = Hits(*(np.empty((len(queries), kept), dtype) for dtype in (np.uint64, np.float32, np.uint32)))
        for block in _blocks(len(queries), pool):
            words = np.ascontiguousarray(self.hashing.encode(queries[block]).T)
            between("encode")
            rows, distances = native.hamming_topk(self.codes, words, pool, threads)
            between("scan")
            for i, query in enumerate(queries[block], block.start):
                row = rows[i - block.start]
                scores = self._cosines(row, query)
                best = np.lexsort((row, -scores))[:kept]
                hits.ids[i], hits.scores[i] = self.ids[row[best]], scores[best]  # type: ignore[index]
                hits.distances[i] = distances[i - block.start][best]
            between("rerank")
        return hits

    def search_codes(
        self,
        codes: NDArray[np.uint64],
        k: int,
        *,
        threads: int = 1,
        between: Callable[[str], None] = lambda stage: None,
    ) -> Hits:
        """The k items of nearest code, exactly; codes: uint64 (q, words). Raises FieldError("codes" | "k")."""
        if codes.ndim != 2 or codes.shape[1] * 64 != self.bits:
            raise FieldError("codes", f"has shape {codes.shape}; codes here have {self.bits // 64} words")
        kept = min(_checked_k(k), self.items)
        hits = Hits(np.empty((len(codes), kept), np.uint64), None, np.empty((len(codes), kept), np.uint32))
        for block in _blocks(len(codes), kept):
            rows, distances = native.hamming_topk(self.codes, np.ascontiguousarray(codes[block]), kept, threads)
            hits.ids[block], hits.distances[block] = self.ids[rows], distances
            between("scan")
        return hits

    def _cosines(self, rows: NDArray[np.uint32], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines float32 (len(rows),); equal vectors get equal ones wherever they stand; not so BLAS."""
        cosines = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _GATHERED):
            part = slice(start, start + _GATHERED)
            np.einsum("nd,d->n", self.vectors[rows[part]], query, out=cosines[part])
        return cosines

    def warm_up(self) -> None:
        """Reads what a search reads, by searching for the first items.

        Raises ArtifactError where their codes are not those of their vectors.
        """
        sample = np.asarray(self.vectors[: min(16, self.items)])
        codes = self.hashing.encode(sample)
        if not np.array_equal(codes, self.codes[:, : len(sample)]):
            refuse("codes.npy", "does not hold the codes of vectors.npy")
        self.search_vectors(sample, min(10, self.items))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The index in an artifact's folder, memory-mapped and checked.

        Raises ArtifactError naming the file that is missing, cut short, or does not fit the others.
        """
        codes = map_array(folder / "codes.npy", np.uint64, 2)
        ids = map_array(folder / "ids.npy", np.uint64, 1)
        vectors = map_array(folder / "vectors.npy", np.float32, 2)
        try:
            hashing = Hashing.load(folder / "hashing.safetensors")
        except (ValueError, OSError) as error:
            refuse("hashing.safetensors", str(error))
        bits, dim, over_recall = _read_meta(folder / "meta.json")
        if (hashing.bits, hashing.dim) != (bits, dim):
            refuse(
                "hashing.safetensors", f"gives {hashing.bits} bits of {hashing.dim} dimensions, not {bits} of {dim}"
            )
        if codes.shape != (bits // 64, len(ids)):
            refuse("codes.npy", f"has shape {codes.shape}, not {(bits // 64, len(ids))}")
        if vectors.shape != (len(ids), dim):
            refuse("vectors.npy", f"has shape {vectors.shape}, not {(len(ids), dim)}")
        if len(ids) == 0:
            refuse("ids.npy", "has no items")
        if ids[0] == 0 or not (ids[1:] > ids[:-1]).all():
            refuse("ids.npy", "is not ascending ids from 1")
        check_unit_vectors("vectors.npy", vectors)
        return cls(codes, ids, vectors, hashing, over_recall)

    def write(self, folder: Path) -> None:
        """The files of the artifact, which `load` reads."""
        for name, array in (("codes", self.codes), ("ids", self.ids), ("vectors", self.vectors)):
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        self.hashing.save(folder / "hashing.safetensors")
        meta = {"bits": self.bits, "dim": self.dim, "over_recall": self.over_recall}
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def unit_queries(queries: Floats, dim: int) -> Floats:
    """Queries float32 (q, dim) scaled to unit length, contiguous.

    Raises FieldError("vectors") for another shape, and naming the row that is not finite or all zero.
    """
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise FieldError("vectors", f"has shape {queries.shape}; vectors here have {dim} dimensions")
    wide = queries.astype(np.float64)  # the square of any float32 fits
    norms = np.sqrt((wide * wide).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        what = "is all zero" if norms[bad[0]] == 0 else "has a value that is not finite"
        raise FieldError("vectors", f"row {bad[0]} {what}")
    unit: Floats = (wide / norms[:, None]).astype(np.float32)
    return unit


def _checked_k(k: int) -> int:
    if not 1 <= k <= MAX_K:
        raise FieldError("k", f"is {k}; use 1 to {MAX_K}")
    return k


def _blocks(queries: int, pool: int) -> list[slice]:
    """Slices of the queries whose pools together are bounded, so that a large batch takes bounded memory."""
    step = max(1, _POOLED // max(1, pool))
    return [slice(start, min(start + step, queries)) for start in range(0, queries, step)]


def _read_meta(file: Path) -> tuple[int, int, int]:
    """(bits, dim, over_recall)."""
    try:
        meta: dict[str, Any] = json.loads(file.read_text())
        values = meta["bits"], meta["dim"], meta["over_recall"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        refuse("meta.json", f"cannot be read: {error!r}")
    if not all(type(v) is int and v > 0 for v in values) or not values[2] <= MAX_OVER_RECALL:
        refuse("meta.json", f"has bits, dim and over_recall of {values}")
    return values
