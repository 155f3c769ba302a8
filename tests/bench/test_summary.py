"""Medians and ratios."""

from __future__ import annotations

import pytest

from bench.summary import medians, ratio


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
