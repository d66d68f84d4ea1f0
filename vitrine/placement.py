"""Where an id lives: its Kafka partition and its bucket, by the murmur2 that every producer partitions by.

A key is the id in decimal ASCII. bucket = (murmur2 & 0x7fffffff) mod 1,024; partition counts are powers of two, so
that a bucket lies whole in one partition.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BUCKETS = 1024

_ARM_SALT = 0x61726D  # "arm"
_MASK = (1 << 64) - 1


def murmur2(key: bytes) -> int:
    """Kafka's murmur2 (org.apache.kafka.common.utils.Utils) of any key, as an unsigned 32-bit number."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for i in range(0, whole, 4):
        k = int.from_bytes(key[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = h * m & mask ^ k
    if whole < len(key):
        h = (h ^ int.from_bytes(key[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def buckets_of(ids: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """(n,) ids -> (n,) buckets, 0 ... 1,023."""
    from vitrine import native  # here, so that `vitrine doctor` starts where the extension does not load

    return ((native.murmur2_decimal(ids) & np.uint32(0x7FFFFFFF)) % np.uint32(BUCKETS)).astype(np.uint16)


def shards_of(ids: NDArray[np.uint64], shards: int) -> NDArray[np.int64]:
    """(n,) items -> (n,) the shard of the index that holds each, 0 ... shards - 1."""
    from vitrine import native

    return ((native.murmur2_decimal(ids) & np.uint32(0x7FFFFFFF)) % np.uint32(shards)).astype(np.int64)


def bucket_of(id: int) -> int:
    """The bucket of one id."""
    return (murmur2(b"%d" % id) & 0x7FFFFFFF) % BUCKETS


def partition_of_bucket(bucket: int, partitions: int) -> int:
    """The partition that holds a bucket whole; `partitions` is a power of two, at most 1,024."""
    if partitions < 1 or partitions > BUCKETS or partitions & (partitions - 1):
        raise ValueError(f"partitions: expected a power of two from 1 to {BUCKETS}, got {partitions}")
    return bucket % partitions


def arm_of(user_id: int, share: int) -> str:
    """Model arm of a user, "a" or "b", where `share` of 1,000 users are in b: by a hash that no bucket knows.

    Users stay in b while the share grows.
    """
    z = (user_id + _ARM_SALT * 0x9E3779B97F4A7C15) & _MASK  # splitmix64 (Steele, Lea, Flood, 2014)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return "b" if (z ^ z >> 31) % 1000 < share else "a"


def qualify(namespace: str, name: str) -> str:
    """The name of a topic, key prefix, consumer group or artifact inside a namespace ("" is none)."""
    return f"{namespace}.{name}" if namespace else name
