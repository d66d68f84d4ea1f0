"""Integers in as few bits as the largest of them needs: the columns of packed records.

A column of n integers of `width` bits is one little-endian number of n * width bits, the first integer lowest, in
whole bytes. Short lists of Python integers go through one big integer (3 us for 50), arrays through numpy
(docs/decisions/0022-records.md).
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from operator import sub

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

# A big integer is copied at each step, so that long lists go through numpy.
_SHORT = 256
# A window of eight bytes holds an integer of this width at any of its bit positions.
_WINDOW = 57


def size_of(n: int, width: int) -> int:
    """Bytes of a column."""
    return (n * width + 7) >> 3


def pack(values: Sequence[int], width: int) -> bytes:
    """A column of non-negative integers below 2^width."""
    if len(values) > _SHORT:
        return pack_array(np.array(values, np.uint64), width)
    whole = 0
    for value in reversed(values):
        whole = whole << width | value
    return whole.to_bytes((len(values) * width + 7) >> 3, "little")


def unpack(record: bytes, at: int, n: int, width: int) -> list[int]:
    """Inverse of `pack`, of the column that begins at byte `at`."""
    if not width:
        return [0] * n
    if n > _SHORT:
        column: list[int] = unpack_array(record, at, n, width).tolist()
        return column
    size = n * width
    whole = int.from_bytes(record[at : at + ((size + 7) >> 3)], "little")
    mask = (1 << width) - 1
    return [whole >> shift & mask for shift in range(0, size, width)]


def pack_array(values: U64, width: int) -> bytes:
    """`pack` of an array (n,)."""
    if not width or not len(values):
        return b""
    octets = values.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    bits = np.unpackbits(octets, axis=1, bitorder="little", count=width)
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_array(record: bytes, at: int, n: int, width: int) -> U64:
    """Inverse of `pack_array`, of the column that begins at byte `at`: (n,)."""
    if not width or not n:
        return np.zeros(n, np.uint64)
    size = size_of(n, width)
    if width > _WINDOW:
        column = np.frombuffer(record, np.uint8, size, at)
        bits = np.unpackbits(column, count=n * width, bitorder="little").reshape(n, width)
        whole = np.zeros((n, 64), np.uint8)
        whole[:, :width] = bits
        return np.packbits(whole, axis=1, bitorder="little").view("<u8").ravel().astype(np.uint64, copy=False)
    starts, shifts = _places(n, width)
    padded = record[at : at + size] + bytes(8)
    windows: U64 = np.ndarray((size + 1,), "<u8", padded, strides=(1,))  # one at every byte
    return windows[starts] >> shifts & np.uint64((1 << width) - 1)


@lru_cache(maxsize=4096)
def _places(n: int, width: int) -> tuple[NDArray[np.int64], U64]:
    """(first byte, bit in it) of each integer of a column."""
    bits = np.arange(n, dtype=np.int64) * width
    return bits >> 3, (bits & 7).astype(np.uint64)


def pack_ids(ids: list[int]) -> bytes:
    """Ids, ascending and each once: width of the first and of the gaps, the first, the gaps; b"" for none."""
    if not ids:
        return b""
    first = ids[0]
    first_size = (first.bit_length() + 7) >> 3
    if len(ids) == 1:
        return bytes((first_size, 0)) + first.to_bytes(first_size, "little")
    gaps = list(map(sub, ids[1:], ids))
    width = max(gaps).bit_length()
    return bytes((first_size, width)) + first.to_bytes(first_size, "little") + pack(gaps, width)


def unpack_ids(record: bytes, at: int, n: int) -> tuple[list[int], int]:
    """(n ids, the byte after them): inverse of `pack_ids`."""
    if not n:
        return [], at
    first_size, width = record[at], record[at + 1]
    at += 2
    first = int.from_bytes(record[at : at + first_size], "little")
    at += first_size
    if n == 1:
        return [first], at
    return list(accumulate(unpack(record, at, n - 1, width), initial=first)), at + size_of(n - 1, width)


def pack_counts(values: list[int]) -> bytes:
    """Non-negative integers in any order: their width, then the column; b"" for none."""
    if not values:
        return b""
    width = max(values).bit_length()
    return bytes((width,)) + pack(values, width)


def unpack_counts(record: bytes, at: int, n: int) -> tuple[list[int], int]:
    """(n integers, the byte after them): inverse of `pack_counts`."""
    if not n:
        return [], at
    width = record[at]
    return unpack(record, at + 1, n, width), at + 1 + size_of(n, width)
