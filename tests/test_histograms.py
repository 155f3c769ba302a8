"""Histograms: each time is in the bucket of the least bound that it does not pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.histograms import BOUNDS_S, BUCKETS, FIRST_NS, Histogram

BOUNDS_NS = [FIRST_NS << index for index in range(BUCKETS - 1)]


def bucket_of(time_ns: int) -> int:
    """As Prometheus says: the first bucket whose bound is not below the time."""
    return next((index for index, bound in enumerate(BOUNDS_NS) if time_ns <= bound), BUCKETS - 1)


def test_bounds_begin_at_5_us_double_and_end_above_10_s() -> None:
    assert BOUNDS_S[:3] == (5e-6, 1e-5, 2e-5)
    assert BOUNDS_S[-1] == pytest.approx(10.48576)
    assert [bound_ns / 1e9 for bound_ns in BOUNDS_NS] == list(BOUNDS_S)


@given(st.one_of(st.sampled_from([each + by for each in BOUNDS_NS for by in (-1, 0, 1)]), st.integers(0, 1 << 62)))
def test_a_time_is_in_the_first_bucket_that_holds_it(time_ns: int) -> None:
    histogram = Histogram()
    histogram.observe(time_ns)
    assert histogram.counts.index(1) == bucket_of(time_ns)
    assert (histogram.total, histogram.sum_ns) == (1, time_ns)


def test_a_time_below_0_counts_as_0() -> None:
    histogram = Histogram()
    histogram.observe(-5)
    assert (histogram.counts[0], histogram.sum_ns) == (1, 0)


def test_a_weight_counts_a_time_so_often() -> None:
    histogram = Histogram()
    histogram.observe(10_000, 7)
    assert (histogram.counts[1], histogram.sum_ns) == (7, 70_000)


def test_what_is_taken_is_gone_and_can_be_added_elsewhere() -> None:
    histogram, other = Histogram(), Histogram()
    histogram.observe(6_000)
    other.observe(1)
    other.add(*histogram.take())
    assert (histogram.total, histogram.sum_ns) == (0, 0)
    assert (other.counts[:2], other.sum_ns) == ([1, 1], 6_001)


def test_a_sum_stops_where_64_bits_end() -> None:
    histogram = Histogram()
    for _ in range(3):
        histogram.add([1] * BUCKETS, (1 << 53) * 1000)
    assert (histogram.total, histogram.sum_ns) == (3 * BUCKETS, (1 << 63) - 1)
