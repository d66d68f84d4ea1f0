"""Ids go where Kafka's own partitioner puts their keys, and a bucket lies whole in one partition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner import murmur2 as kafka_murmur2

from vitrine import native, placement

IDS = st.integers(0, 2**64 - 1)


@given(st.binary(max_size=40))
def test_murmur2_is_kafkas(key):
    assert placement.murmur2(key) == kafka_murmur2(key) & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("key", "expected"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536), (b"abc", 479470107)],
)
def test_murmur2_gives_the_values_of_kafkas_own_test(key, expected):
    assert placement.murmur2(key) == expected & 0xFFFFFFFF


@given(st.lists(IDS, max_size=50))
def test_the_kernel_hashes_the_decimal_digits(ids):
    hashes = native.murmur2_decimal(np.array(ids, np.uint64))
    assert hashes.dtype == np.uint32
    assert hashes.tolist() == [placement.murmur2(str(id).encode()) for id in ids]


def test_ids_of_every_length_hash_alike_in_both():
    ids = [int("9" * n) for n in range(1, 20)] + [10**n for n in range(20)] + [2**64 - 1]
    expected = [placement.murmur2(str(id).encode()) for id in ids]
    assert native.murmur2_decimal(np.array(ids, np.uint64)).tolist() == expected


@given(st.lists(IDS, min_size=1, max_size=20), st.integers(0, 10))
def test_a_bucket_lies_in_the_partition_that_kafka_gives_its_keys(ids, log_partitions):
    partitions = 1 << log_partitions
    buckets = placement.buckets_of(np.array(ids, np.uint64))
    assert buckets.dtype == np.uint16
    for id, bucket in zip(ids, buckets.tolist(), strict=True):
        assert bucket == placement.bucket_of(id)
        kafkas = (kafka_murmur2(str(id).encode()) & 0x7FFFFFFF) % partitions
        assert placement.partition_of_bucket(bucket, partitions) == kafkas


@pytest.mark.parametrize("partitions", [0, -1, 3, 12, 2048])
def test_a_partition_count_that_would_split_buckets_is_refused(partitions):
    with pytest.raises(ValueError, match="partitions: expected a power of two"):
        placement.partition_of_bucket(5, partitions)


def test_a_namespace_prefixes_names_and_none_leaves_them():
    assert placement.qualify("demo", "user-events") == "demo.user-events"
    assert placement.qualify("", "user-events") == "user-events"


def test_arm_b_has_its_share_in_every_bucket_and_keeps_it_while_it_grows():
    ids = range(1, 40_001)
    tenth, half = (np.array([placement.arm_of(id, share) == "b" for id in ids]) for share in (100, 500))
    assert abs(tenth.mean() - 0.1) < 0.006  # four standard deviations
    assert half[tenth].all()
    eighths = placement.buckets_of(np.array(ids, np.uint64)) // 128
    shares = np.bincount(eighths, half) / np.bincount(eighths)
    assert np.abs(shares - 0.5).max() < 0.032  # four and a half of 5,000 users


@given(IDS)
def test_a_share_of_none_is_nobody_and_of_all_everybody(id):
    assert (placement.arm_of(id, 0), placement.arm_of(id, 1000)) == ("a", "b")


def test_arms_stay_as_they_are_from_release_to_release():
    assert [placement.arm_of(id, 500) for id in (1, 2, 3, 4, 5, 17, 2**64 - 1)] == [
        "b",
        "b",
        "b",
        "a",
        "a",
        "b",
        "b",
    ]
