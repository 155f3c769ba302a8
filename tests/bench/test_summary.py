"""Percentiles, medians and ratios."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.summary import medians, percentile, percentiles, ratio

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
    assert figures == {"p50_us": 2.0, "p90_us": 3.0, "p99_us": 3.0, "p99.9_us": 3.0, "max_us": 3.0, "count": 3}


def test_medians_are_taken_figure_by_figure() -> None:
    repeats = [{"p50_us": 1.0, "count": 9}, {"p50_us": 5.0, "count": 7}, {"p50_us": 3.0, "count": 8}]
    assert medians(repeats) == {"p50_us": 3.0, "count": 8}


def test_a_ratio_is_the_median_of_the_repeats_ratios_not_the_ratio_of_medians() -> None:
    ours = [{"rate": 2.0}, {"rate": 30.0}, {"rate": 100.0}]
    theirs = [{"rate": 1.0}, {"rate": 10.0}, {"rate": 100.0}]
    assert ratio("rate", ours, theirs) == pytest.approx(2.0)


def test_a_repeat_in_which_either_failed_does_not_count() -> None:
    ours = [{"rate": 2.0}, None, {"rate": 9.0}]
    theirs = [{"rate": 1.0}, {"rate": 1.0}, None]
    assert ratio("rate", ours, theirs) == pytest.approx(2.0)


def test_there_is_no_ratio_without_a_common_repeat() -> None:
    assert ratio("rate", [None], [{"rate": 1.0}]) is None
