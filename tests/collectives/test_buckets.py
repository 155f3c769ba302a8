"""Buckets: which arrays are reduced together."""

from __future__ import annotations

import numpy as np

from broker.collectives.buckets import plan_buckets


def test_buckets_are_filled_from_the_last_array_to_the_first() -> None:
    arrays = [np.zeros(2, np.float32) for _ in range(5)]
    assert plan_buckets(arrays, bucket_bytes=16) == [[4, 3], [2, 1], [0]]


def test_an_array_longer_than_a_bucket_gets_its_own() -> None:
    arrays = [np.zeros(1, np.float32), np.zeros(100, np.float32), np.zeros(1, np.float32)]
    assert plan_buckets(arrays, bucket_bytes=16) == [[2], [1], [0]]


def test_a_bucket_has_one_dtype_and_its_place_is_that_of_its_first_array() -> None:
    arrays = [np.zeros(1, dtype) for dtype in ("float32", "float64", "float32", "float64", "float64")]
    assert plan_buckets(arrays, bucket_bytes=1024) == [[4, 3, 1], [2, 0]]


def test_no_arrays_give_no_buckets() -> None:
    assert plan_buckets([], bucket_bytes=1) == []
