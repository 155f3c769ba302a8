"""Percentiles."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.measuring.percentiles import percentile, percentiles

samples = st.lists(st.integers(0, 10**9), min_size=1)


def test_percentiles_are_nearest_rank() -> None:
    ordered = list(range(1, 101))
    assert [percentile(ordered, percent) for percent in (1, 50, 90, 99, 100)] == [1, 50, 90, 99, 100]


def test_percentiles_of_one_sample_are_that_sample() -> None:
    assert [percentile([7], percent) for percent in (0.1, 50, 99.9)] == [7, 7, 7]


def test_the_middle_of_an_even_number_is_the_lower_one() -> None:
    assert percentile([1, 2, 3, 4], 50) == 2


@given(samples, st.floats(0.1, 100))
def test_a_percentile_is_the_smallest_sample_that_so_many_do_not_exceed(values: list[int], percent: float) -> None:
    found = percentile(sorted(values), percent)
    needed = len(values) * percent / 100
    assert found in values
    assert sum(value <= found for value in values) >= needed - 1e-9
    assert sum(value < found for value in values) < needed + 1e-9


def test_figures_are_named_by_unit_and_scaled_to_it() -> None:
    figures = percentiles([3000, 1000, 2000], "us", 1e-3)
    assert figures == {"p50_us": 2.0, "p90_us": 3.0, "p99_us": 3.0, "max_us": 3.0, "count": 3}


def test_the_rarest_percentile_is_told_when_two_samples_are_beyond_it() -> None:
    assert "p99.9_us" not in percentiles(range(1999), "us")
    assert percentiles(range(1, 2001), "us")["p99.9_us"] == 1998
