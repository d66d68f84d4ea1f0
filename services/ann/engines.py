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


def with_engine(index: BinaryIndex, flat: Flat) -> BinaryIndex:
    """The same index, whose segments find candidates by a flat index of faiss."""
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

    def nearest(self, codes: NDArray[np.uint64], pool: int, allowed: Allowed | None) -> Pool | None:
        """The `pool` nearest rows of each code, or all allowed ones where they are fewer; ties by row.

        Of rows at the last distance any may be left out. None where faiss cannot give so many.
        """
        wanted = min(pool, self._rows if allowed is None else allowed.count)
        asked = wanted
        if allowed is not None and allowed.count:
            asked = min(self._rows, 2 * wanted * self._rows // allowed.count)
        while 0 < asked <= MOST:
            with self._lock:
                distances, found = self._flat.search(np.ascontiguousarray(codes).view(np.uint8), asked)
            order = np.lexsort((found, distances), axis=1)
            rows = np.take_along_axis(found, order, 1).astype(np.uint32)
            distances = np.take_along_axis(distances, order, 1).astype(np.uint32)
            visited = len(codes) * self._rows
            if allowed is None:
                return Pool(rows, distances, visited)
            may = allowed.rows[rows]
            if (may.sum(axis=1) >= wanted).all():
                first = np.argsort(~may, axis=1, kind="stable")[:, :wanted]
                return Pool(np.take_along_axis(rows, first, 1), np.take_along_axis(distances, first, 1), visited)
            if asked == self._rows:
                break
            asked = min(self._rows, asked * _MORE)
        return None
