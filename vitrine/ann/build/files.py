"""The build's arrays on disk: mapped, so that they take page cache and not the memory that a build may use."""

import errno
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

UNUSED = 2**32 - 1  # in a row of nodes, from the first unused slot on
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CHUNK = 1 << 16  # rows that a pass over an array has in memory


def read(folder: Path, name: str) -> NDArray[Any]:
    """The array `name`, mapped read-only; an empty one, which cannot be mapped, is read."""
    return _open(folder, name, "r")


def change(folder: Path, name: str) -> NDArray[Any]:
    """The array `name`, mapped for writing; tasks write rows of their own."""
    return _open(folder, name, "r+")


def create(folder: Path, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A new array `name`, mapped, of zeros; in place of one that was there.

    Its room on the disk is taken at once: a mapped page that finds the disk full would end the process by a signal.
    """
    path = folder / f"{name}.npy"
    if 0 in shape:
        np.save(path, np.zeros(shape, dtype), allow_pickle=False)
        return read(folder, name)
    try:
        made = np.lib.format.open_memmap(path, mode="w+", shape=shape, dtype=dtype)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise unwritten(error, path) from error
    return made.view(np.ndarray)


def write(folder: Path, name: str, rows: slice, values: NDArray[Any]) -> None:
    """Rows of an array that `create` made; tasks write rows of their own.

    Written, not mapped: a page that is written whole need not be read, zeroed and faulted in first.
    """
    if not len(values):
        return
    with (folder / f"{name}.npy").open("r+b") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if values.dtype != dtype or values.shape[1:] != shape[1:] or rows.start + len(values) > shape[0]:
            raise ValueError(f"{name}: {values.dtype} {values.shape} do not fit {dtype} {shape} from {rows.start}")
        file.seek(rows.start * dtype.itemsize * math.prod(shape[1:]), os.SEEK_CUR)
        file.write(np.ascontiguousarray(values).data.cast("B"))


def save(folder: Path, name: str, values: NDArray[Any]) -> None:
    """A whole array; it is there whole or not at all. A mapped one is copied without passing through memory."""
    part = folder / f".{name}.npy"
    try:
        np.save(part, values, allow_pickle=False)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise unwritten(error, part) from error
    part.replace(folder / f"{name}.npy")


def unwritten(error: OSError, path: Path) -> OSError:
    """The error of a failed write with its reason, the file, and what to do about a full disk."""
    code = error.errno or errno.ENOSPC  # of a short write numpy says how much was written, not why
    hint = "; make room and run again: finished tasks are kept" if code in _NO_ROOM else ""
    return OSError(code, os.strerror(code) + hint, str(path))


def _open(folder: Path, name: str, mode: str) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except ValueError:  # an empty one
        return np.asarray(np.load(path, allow_pickle=False))
    return mapped.view(np.ndarray)  # np.memmap itself is slow to index
