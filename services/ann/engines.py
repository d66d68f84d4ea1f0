"""What finds candidates in an artifact's own items: the graph, a scan on the CPU, or faiss on a GPU.

`gpu-exact` keeps the codes of the base segment in a `faiss.GpuIndexBinaryFlat`, and uses of it what
`faiss.IndexBinaryFlat` has too, so that tests run the same code through faiss-cpu. Newest items are scanned beside
it as ever. Dead items and filters hold: it is asked for more candidates than needed, and what cannot be a result is
left out.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.ann.index import BinaryIndex
from vitrine.ann.segment import Allowed, Pool

MOST = 1024  # candidates that a search on a GPU can give: faiss/gpu, "max k-selection"; 2,048 with newer CUDA
_TIES = 64  # candidates beyond those asked for, so that the last distance is seen whole
_MORE = 4  # times the candidates, where too few of them may be results

# Makes an empty index of faiss for codes of so many bits: add(uint8 (n, bits / 8)), search(uint8 (q, bits / 8), k).
Flat = Callable[[int], Any]


class EngineError(Exception):
    """The engine cannot be had here."""


def check(engine: str) -> None:
    """Raises EngineError where the process could not serve by it, before anything is loaded."""
    if engine == "gpu-exact":
        gpu_flat(64)


def gpu_flat(bits: int) -> Any:
    """A `Flat` on the first GPU. Raises EngineError naming what is missing."""
    try:
        import faiss
    except ImportError as error:
        raise EngineError(
            f"--engine gpu-exact needs faiss with GPUs: pip install faiss-gpu-cu12 ({error})"
        ) from error
    if not hasattr(faiss, "GpuIndexBinaryFlat"):
        raise EngineError(
            "--engine gpu-exact needs faiss with GPUs, and this is faiss without: pip uninstall faiss-cpu, "
            "pip install faiss-gpu-cu12; or serve with --engine exact"
        )
    if faiss.get_num_gpus() == 0:
        raise EngineError("--engine gpu-exact: faiss finds no GPU here; serve with --engine exact")
    resources = faiss.StandardGpuResources()
    flat: Any = faiss.GpuIndexBinaryFlat(resources, bits)
    flat.resources = resources  # which must live as long
    return flat


def with_engine(index: BinaryIndex, engine: str) -> BinaryIndex:
    """The same index, searched by the engine. Raises EngineError."""
    return with_flat(index, gpu_flat) if engine == "gpu-exact" else index


def with_flat(index: BinaryIndex, flat: Flat) -> BinaryIndex:
    """The same index, whose segments find candidates by flat indexes of faiss."""
    views = [
        replace(view, segment=replace(view.segment, scanner=FlatScanner(view.segment.codes, flat)))
        for view in index.segments
    ]
    return replace(index, segments=tuple(views))


class FlatScanner:
    """The nearest rows of a segment, by faiss."""

    def __init__(self, codes: NDArray[np.uint64], flat: Flat) -> None:
        """codes: uint64 (words, n), word-major"""
        words, self._rows = codes.shape
        self._flat = flat(words * 64)
        self._flat.add(np.ascontiguousarray(codes.T).view(np.uint8))
        self._lock = threading.Lock()  # faiss on a GPU is for one thread at a time

    def nearest(self, codes: NDArray[np.uint64], count: int, allowed: Allowed | None) -> Pool | None:
        """The `count` nearest rows of each code by (distance, row), of those that are allowed; None for too many.

        Of more than _TIES rows at the last distance, faiss chooses.
        """
        asked = count if allowed is None else count * self._rows // allowed.count
        asked = min(self._rows, asked + _TIES)
        if allowed is None:
            asked = min(asked, max(count, MOST))
        while asked <= MOST:
            with self._lock:
                distances, rows = self._flat.search(np.ascontiguousarray(codes).view(np.uint8), asked)
            out = np.zeros(rows.shape, bool) if allowed is None else ~allowed.rows[rows]
            if (np.count_nonzero(~out, axis=1) >= count).all():
                order = np.lexsort((rows, distances, out), axis=1)[:, :count]
                found, away = (np.take_along_axis(each, order, 1).astype(np.uint32) for each in (rows, distances))
                return Pool(found, away, len(codes) * self._rows)
            asked = min(self._rows, asked * _MORE)
        return None
