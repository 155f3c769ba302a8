"""Buckets: the plan, and what packing and unpacking move."""

from __future__ import annotations

import numpy as np
import pytest

from broker.collectives.buckets import Buckets
from broker.errors import InvalidValue


def indices(buckets: Buckets) -> list[list[int]]:
    return [[slot.array_index for slot in bucket.slots] for bucket in buckets]


def test_buckets_are_filled_from_the_last_array_to_the_first() -> None:
    arrays = [np.zeros(2, np.float32) for _ in range(5)]
    assert indices(Buckets(arrays, bucket_bytes=16)) == [[4, 3], [2, 1], [0]]


def test_an_array_longer_than_a_bucket_gets_its_own() -> None:
    arrays = [np.zeros(1, np.float32), np.zeros(100, np.float32), np.zeros(1, np.float32)]
    assert indices(Buckets(arrays, bucket_bytes=16)) == [[2], [1], [0]]


def test_a_bucket_has_one_dtype_and_its_place_is_that_of_its_first_array() -> None:
    arrays = [np.zeros(1, dtype) for dtype in ("float32", "float64", "float32", "float64", "float64")]
    buckets = Buckets(arrays, bucket_bytes=1024)
    assert indices(buckets) == [[4, 3, 1], [2, 0]]
    assert [bucket.flat.dtype for bucket in buckets] == [np.float64, np.float32]


def test_packing_and_unpacking_return_every_array_even_strided_empty_and_scalar_ones() -> None:
    generator = np.random.default_rng(0)
    arrays = [
        generator.normal(size=(3, 4)).astype(np.float32),
        generator.normal(size=(5, 6)).astype(np.float32).T,
        np.zeros((0, 3), np.float32),
        np.array(2.5, np.float32),
        generator.normal(size=20)[::3],
    ]
    before = [array.copy() for array in arrays]
    buckets = Buckets(arrays, bucket_bytes=64)
    for bucket in buckets:
        buckets.pack(bucket)
        np.multiply(bucket.flat, 2, out=bucket.flat)
        buckets.unpack(bucket)
    for array, old in zip(arrays, before, strict=True):
        assert np.array_equal(array, 2 * old)


def test_packing_reuses_the_memory_of_the_bucket() -> None:
    buckets = Buckets([np.ones(3)])
    (bucket,) = buckets
    assert buckets.pack(bucket) is bucket.flat


def test_no_arrays_give_no_buckets() -> None:
    assert len(Buckets([])) == 0


def test_a_read_only_array_is_refused() -> None:
    array = np.zeros(3)
    array.flags.writeable = False
    with pytest.raises(InvalidValue, match="read-only"):
        Buckets([array])


def test_a_bucket_of_no_bytes_is_refused() -> None:
    with pytest.raises(InvalidValue, match="at least 1"):
        Buckets([], bucket_bytes=0)
