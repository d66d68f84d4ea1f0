"""Reading an artifact's arrays: mapped, not copied, and checked with the file named."""

from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrine.artifacts import ArtifactError

_CHUNK = 1 << 16  # rows checked at a time

T = TypeVar("T", bound=np.generic)


def refuse(file: str, what: str) -> NoReturn:
    """Raises ArtifactError for a file of the artifact."""
    raise ArtifactError(f"{file} {what}; publish the artifact anew, or roll back to the version before")


def map_array(file: Path, dtype: type[T], ndim: int) -> NDArray[T]:
    """A memory-mapped .npy array, C-contiguous, of this type and number of dimensions; else ArtifactError."""
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        refuse(file.name, f"cannot be read: {error}")
    if not isinstance(array, np.ndarray):
        refuse(file.name, "holds several arrays, not one")
    if array.dtype != dtype or array.ndim != ndim or not array.flags.c_contiguous:
        refuse(
            file.name, f"is {array.dtype} {array.shape}, not C-contiguous {np.dtype(dtype)} of {ndim} dimensions"
        )
    return array.view(np.ndarray)  # np.memmap itself is slow to index: 8 us a search


def check_unit_vectors(file: str, vectors: NDArray[np.float32], *, chunks: int | None = None) -> None:
    """ArtifactError unless every row of float32 (n, dim) is finite and of length 1 within 1e-3.

    chunks: look at so many chunks of 65,536 rows, spread evenly, instead of at all; a server need not read ten
            gigabytes, whose bytes are known to be those that were published, before it serves
    """
    starts = np.arange(0, len(vectors), _CHUNK)
    if chunks is not None and chunks < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, chunks).astype(np.int64)]
    for start in starts.tolist():
        rows = np.asarray(vectors[start : start + _CHUNK])
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
        bad = np.flatnonzero(~(np.abs(norms - 1) < 1e-3))
        if len(bad):
            refuse(file, f"row {start + bad[0]} has length {norms[bad[0]]}, not 1")
