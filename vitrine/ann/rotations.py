"""Directions whose signs are bits: each method takes coordinates along principal axes and gives one column a bit.

What is learnt gives at most one orthogonal block, as many columns as there are coordinates. Further bits are random
rotations of the same coordinates, stacked: a second learnt block from another start comes out too much like the
first (docs/hashing.md compares the methods).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Wide = NDArray[np.float64]

_SAMPLE = 20_000  # rows that iterations look at
_ROUNDS = 40  # of an iteration
_NEAR = 10  # neighbours in the graph of `lph`
_GRAPH = 10_000  # rows in that graph
_LOCAL = 2.0  # weight of locality against the quantization loss in `lph`


def signs(coordinates: Wide, bits: int, seed: int) -> Wide:
    """Random hyperplanes (Charikar 2002): columns of normal draws, of unit length."""
    drawn = _draws(seed).standard_normal((coordinates.shape[1], bits))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=0))


def turns(coordinates: Wide, bits: int, seed: int) -> Wide:
    """Random orthogonal rotations, stacked."""
    dim, draws = coordinates.shape[1], _draws(seed)
    blocks = [np.linalg.qr(draws.standard_normal((dim, dim)))[0] for _ in range(-(-bits // dim))]
    return np.concatenate(blocks, axis=1)[:, :bits]


def itq(coordinates: Wide, bits: int, seed: int) -> Wide:
    """Iterative quantization (Gong and Lazebnik, CVPR 2011) of the first min(bits, d) coordinates; then `turns`.

    The block R minimizes |sgn(V R) - V R|^2: signs are fixed, then R is the orthogonal matrix nearest to V' signs.
    """
    columns = turns(coordinates, bits, seed)
    width = min(columns.shape)
    sample = _thinned(coordinates, _SAMPLE)[:, :width]
    rotation = turns(sample, width, seed)
    for _ in range(_ROUNDS):
        rotation = _nearest_orthonormal(sample.T @ _sides(sample @ rotation))
    columns[:, :width] = 0
    columns[:width, :width] = rotation
    return columns


def lph(coordinates: Wide, bits: int, seed: int) -> Wide:
    """Locality preserving hashing (Zhao, Lu and Mei, AAAI 2014): projection and quantization learnt together.

    Over orthonormal W of min(bits, d) columns it minimizes |sgn(V W) - V W|^2 + a (|differences of near neighbours
    along W|^2 - |V W|^2), means over the sample; what neighbours differ in counts against what all differ in, as in
    locality preserving projections. Signs and W take turns. A step of W is the orthonormal matrix nearest to a
    gradient step within the curvature, which never raises the loss. Further bits are `turns`.
    """
    columns = turns(coordinates, bits, seed)
    width = min(columns.shape)
    sample = _thinned(coordinates, _SAMPLE)
    sample = sample / np.sqrt(np.square(sample[:, :width]).mean() + 1e-30)
    variances = sample.T @ sample / len(sample)
    curve = (1 - _LOCAL) * variances + _LOCAL * _differences(_thinned(sample, _GRAPH))
    bound = max(np.linalg.eigvalsh(curve)[-1], 0.0)
    block = np.linalg.eigh(curve)[1][:, :width] @ turns(sample[:, :width], width, seed)
    for _ in range(_ROUNDS):
        pull = sample.T @ _sides(sample @ block) / len(sample)
        block = _nearest_orthonormal(bound * block - curve @ block + pull)
    columns[:, :width] = block
    return columns


METHODS: dict[str, Callable[[Wide, int, int], Wide]] = {"turns": turns, "itq": itq, "lph": lph, "signs": signs}


def _draws(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _nearest_orthonormal(matrix: Wide) -> Wide:
    """The orthonormal columns nearest to a matrix (Procrustes)."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray(left @ right)


def _sides(projections: Wide) -> Wide:
    return np.where(projections >= 0, 1.0, -1.0)


def _thinned(rows: Wide, most: int) -> Wide:
    """At most `most` rows, evenly spread."""
    return rows[:: -(-len(rows) // most)]


def _differences(sample: Wide) -> Wide:
    """Second moments (d, d) of the differences between near neighbours: the Laplacian's part of the loss."""
    near = min(_NEAR, len(sample) - 1)
    lengths = np.square(sample).sum(axis=1)
    total = np.zeros((sample.shape[1],) * 2)
    for start in range(0, len(sample) if near else 0, 1000):
        part = sample[start : start + 1000]
        distances = lengths - 2 * part @ sample.T
        distances[np.arange(len(part)), start + np.arange(len(part))] = np.inf
        rows = np.argpartition(distances, near - 1, axis=1)[:, :near]
        apart = (part[:, None] - sample[rows]).reshape(-1, sample.shape[1])
        total += apart.T @ apart
    return total / max(1, len(sample) * near)
