"""Random numbers by counter: the same (seed, stream, counters) gives the same draw, whatever was drawn before.

So any user's data can be made without the others', and chunk sizes cannot show in what is written.
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(seed: int, stream: str, *counters: ArrayLike) -> NDArray[np.uint64]:
    """64 random bits for every element of the broadcast counters (non-negative integers)."""
    start = np.array([(seed << 32) & 0xFFFFFFFF00000000 | zlib.crc32(stream.encode())], np.uint64)
    with np.errstate(over="ignore"):
        x: Any = _mix(start + _GOLDEN)
        for counter in counters:
            x = _mix((x ^ np.asarray(counter).astype(np.uint64)) * _GOLDEN + _GOLDEN)
    return np.asarray(x, np.uint64)


def uniform(seed: int, stream: str, *counters: ArrayLike) -> NDArray[np.float64]:
    """Draws from (0, 1), never 0 nor 1, so that a logarithm is finite."""
    return ((bits(seed, stream, *counters) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def normal(seed: int, stream: str, *counters: ArrayLike) -> NDArray[np.float64]:
    """Standard normal draws (Box and Muller 1958)."""
    radius = np.sqrt(-2.0 * np.log(uniform(seed, stream + "/radius", *counters)))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(seed, stream + "/angle", *counters)))
