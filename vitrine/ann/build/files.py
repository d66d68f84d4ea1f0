"""The build's arrays on disk: mapped, so that they take page cache and not the memory that a build may use."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

UNUSED = 2**32 - 1  # in a row of nodes, from the first unused slot on


def read(folder: Path, name: str) -> NDArray[Any]:
    """The array `name`, mapped read-only; an empty one, which cannot be mapped, is read."""
    path = folder / f"{name}.npy"
    try:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        return np.asarray(np.load(path, allow_pickle=False))
    return mapped


def create(folder: Path, name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A new array `name`, mapped, of zeros; in place of one that was there."""
    if 0 in shape:
        np.save(folder / f"{name}.npy", np.zeros(shape, dtype), allow_pickle=False)
        return read(folder, name)
    made: NDArray[Any] = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", shape=shape, dtype=dtype)
    return made


def write(folder: Path, name: str, rows: slice, values: NDArray[Any]) -> None:
    """Rows of an array that `create` made; tasks write rows of their own."""
    if len(values):
        into = np.load(folder / f"{name}.npy", mmap_mode="r+", allow_pickle=False)
        into[rows] = values
        into.flush()


def save(folder: Path, name: str, values: NDArray[Any]) -> None:
    """A whole array, small enough for memory; it is there whole or not at all."""
    part = folder / f".{name}.npy"
    np.save(part, values, allow_pickle=False)
    part.replace(folder / f"{name}.npy")
