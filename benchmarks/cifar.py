"""A deterministic embedding of CIFAR-10: what random whitened patches answer, PCA to 256 dimensions, unit length.

    from benchmarks import cifar
    base, asked = cifar.embedding()             # float32 (50000, 256) and (10000, 256), unit length
    near = cifar.neighbours(base, asked, 10)    # the exact nearest by cosine

As Coates, Lee and Ng (2011) do it, without training: 256 patches of 6 x 6 pixels drawn from the training pictures
and whitened are the filters, a picture's patches at every second pixel are normalised and whitened alike, both
signs of the answers are kept and pooled over the picture's quarters. Training pictures are the base, test pictures
the queries. The result is cached under the temporary folder; its last bits depend on the machine's BLAS.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

DIM = 256
PICTURES = Path(__file__).parents[2] / "shared" / "data" / "cifar10.parquet"

_SIDE = 6  # of a patch
_STEP = 2  # pixels between patches
_FILTERS = 256
_BLUR = 0.1  # added to the variances when whitening, as a share of their mean
_CHUNK = 500  # pictures at a time: 37 MB of patches


def embedding(cache: Path | None = None, pictures: Path = PICTURES) -> tuple[Floats, Floats]:
    """Unit vectors float32 of the training pictures (50000, 256) and of the test pictures (10000, 256).

    cache: folder of the cached result; VITRINE_BENCH_CACHE, else one under the temporary folder
    """
    file = (cache or cache_folder()) / f"cifar10-{DIM}-{_FILTERS}-{_SIDE}-{_STEP}.npz"
    if not file.exists():
        vectors = _embed(*_read(pictures))
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(unfinished, base=vectors[0], asked=vectors[1])
        unfinished.replace(file)
    with np.load(file, allow_pickle=False) as cached:
        return cached["base"], cached["asked"]


def cache_folder() -> Path:
    """Where benchmarks keep what is slow to make."""
    return Path(os.environ.get("VITRINE_BENCH_CACHE") or Path(tempfile.gettempdir()) / "vitrine-bench")


def neighbours(base: Floats, asked: Floats, k: int) -> NDArray[np.int64]:
    """Rows int64 (q, k) of the exact nearest by cosine, nearest first."""
    found = np.empty((len(asked), k), np.int64)
    for start in range(0, len(asked), 200):
        cosines = asked[start : start + 200] @ base.T
        rows = np.argpartition(-cosines, k, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(cosines, rows, axis=1), axis=1, kind="stable")
        found[start : start + 200] = np.take_along_axis(rows, order, axis=1)
    return found


def _read(pictures: Path) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels uint8 (n, 32, 32, 3) and which of them are the test pictures."""
    table = pq.read_table(pictures, columns=["split", "image"])
    pixels = np.empty((len(table), 32, 32, 3), np.uint8)
    for i, image in enumerate(table["image"]):
        pixels[i] = Image.open(io.BytesIO(image.as_py())).convert("RGB")
    return pixels, table["split"].to_numpy() == "test"


def _embed(pixels: NDArray[np.uint8], test: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """What `embedding` returns."""
    train = np.flatnonzero(~test)
    draws = np.random.Generator(np.random.Philox(key=1))
    sample = _patches(pixels[np.sort(draws.choice(train, 2000, replace=False))]).reshape(-1, _SIDE * _SIDE * 3)
    mean = sample.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(sample - mean, rowvar=False).astype(np.float64))
    whiten = (directions / np.sqrt(variances + _BLUR * variances.mean()) @ directions.T).astype(np.float32)
    filters = (sample[np.sort(draws.choice(len(sample), _FILTERS, replace=False))] - mean) @ whiten
    filters /= np.linalg.norm(filters, axis=1, keepdims=True)
    answers = whiten @ filters.T  # whitening and filters in one
    level = mean @ answers
    features = np.empty((len(pixels), 4 * 2 * _FILTERS), np.float32)
    for start in range(0, len(pixels), _CHUNK):
        given = _patches(pixels[start : start + _CHUNK]) @ answers - level
        half = given.shape[1] // 2
        quarters = [
            part.mean(axis=(1, 2))
            for signed in (np.maximum(given, 0), np.maximum(-given, 0))
            for rows in (signed[:, :half], signed[:, half:])
            for part in (rows[:, :, :half], rows[:, :, half:])
        ]
        features[start : start + _CHUNK] = np.concatenate(quarters, axis=1)
        if start % 10_000 == 0:
            print(f"cifar: {start:,} of {len(pixels):,} pictures", file=sys.stderr, flush=True)
    features = np.sqrt(features)
    features -= features[train].mean(axis=0)
    _, axes = np.linalg.eigh((features[train].T @ features[train]).astype(np.float64))
    vectors = features @ axes[:, ::-1][:, :DIM].astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors[train]), np.ascontiguousarray(vectors[test])


def _patches(pixels: NDArray[np.uint8]) -> Floats:
    """Patches float32 (n, rows, columns, 108) at every second pixel, of mean 0 and deviation 1."""
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (_SIDE, _SIDE), axis=(1, 2))[:, ::_STEP, ::_STEP]
    flat = windows.reshape(*windows.shape[:3], -1).astype(np.float32)
    flat -= flat.mean(axis=-1, keepdims=True)
    flat /= np.sqrt((flat * flat).mean(axis=-1, keepdims=True) + 10)  # 10: a patch of one colour stays flat
    return flat


if __name__ == "__main__":
    first, second = embedding()
    print(f"{first.shape} and {second.shape} vectors under {cache_folder()}")
