"""A user state as schema 1 wrote it: read once more, so that an upgrade loses nothing."""

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrine.matching.events import RecordError

SCHEMA = 1
# magic, schema, flags, user, revision, offset, append ms, clock ms, landmark ms, half-life ms,
# items, crowds, ads, dimensions of the tower, bytes of its version, the tower's bias
_HEADER = struct.Struct("<4sHHQQQqqqqHHHHHf")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class StateV1:
    """The fields of schema 1; weights are float64, ads -> (impressions, clicks, last ms)."""

    user_id: int
    revision: int
    offset: int
    append_ms: int
    clock_ms: int
    landmark_ms: int
    half_life_ms: int
    items: dict[int, float]
    crowds: dict[int, float]
    joined: set[int]
    ads: dict[int, tuple[int, int, int]]
    bias: float
    vec: NDArray[np.float32]
    towers_version: str


def decode(record: bytes) -> StateV1:
    """Raises RecordError where the record is cut short or damaged."""
    if len(record) < _HEADER.size + _CRC.size:
        raise RecordError(f"user state is damaged: {len(record)} bytes")
    (
        _, _, _, user_id, revision, offset, append_ms, clock_ms, landmark_ms, half_life_ms, n_items, n_crowds,
        n_ads, dim, n_version, bias,
    ) = _HEADER.unpack_from(record)  # fmt: skip
    size = _HEADER.size + 16 * n_items + 17 * n_crowds + 24 * n_ads + 4 * dim + n_version + _CRC.size
    if len(record) != size or _CRC.unpack_from(record, size - _CRC.size)[0] != zlib.crc32(record[: -_CRC.size]):
        raise RecordError(f"user state is damaged: {len(record)} bytes of {size}, or a wrong checksum")
    at = _HEADER.size

    def take(code: str, count: int) -> tuple[Any, ...]:
        nonlocal at
        column = struct.unpack_from(f"<{count}{code}", record, at)
        at += struct.calcsize(f"<{count}{code}")
        return column

    items = dict(zip(take("Q", n_items), take("d", n_items), strict=True))
    crowd_ids = take("Q", n_crowds)
    crowds = dict(zip(crowd_ids, take("d", n_crowds), strict=True))
    joined = {crowd for crowd, flag in zip(crowd_ids, take("B", n_crowds), strict=True) if flag}
    ad_ids = take("Q", n_ads)
    last = take("q", n_ads)
    ads = dict(zip(ad_ids, zip(take("I", n_ads), take("I", n_ads), last, strict=True), strict=True))
    vec = np.frombuffer(record, "<f4", dim, at).astype(np.float32, copy=False)
    version = record[at + 4 * dim : -_CRC.size].decode()
    return StateV1(
        user_id, revision, offset, append_ms, clock_ms, landmark_ms, half_life_ms, items, crowds, joined, ads, bias,
        vec, version,
    )  # fmt: skip
