"""What watching costs: the arithmetic of it, without a broker."""

from __future__ import annotations

import os

import numpy as np

from bench.machine import processor_ns
from bench.watching import Slice, cost, costs_of, verdict


def test_the_interval_holds_the_true_cost_and_is_the_narrower_the_more_pairs_there_are() -> None:
    noise = np.random.default_rng(7)
    few, many = (cost(1.02 * np.exp(noise.normal(0, 0.05, pairs))) for pairs in (20, 2000))
    assert few.low < 0.02 < few.high
    assert many.low < 0.02 < many.high
    assert many.high - many.low < (few.high - few.low) / 5


def test_slow_minutes_cancel_because_both_seconds_of_a_pair_lie_in_them() -> None:
    alone = np.linspace(1000.0, 9000.0, 50)
    assert np.allclose([cost(alone * 1.01 / alone).low, cost(alone * 1.01 / alone).high], 0.01)


def test_the_verdict_is_that_of_the_whole_interval() -> None:
    assert cost([1.0, 1.02] * 20).verdict == "at most 3%: shown"
    assert cost([1.04, 1.08] * 20).verdict == "at most 3%: refuted"
    assert cost([0.8, 1.3] * 20).verdict == "at most 3%: neither shown nor refuted"


def test_where_nothing_differs_the_method_is_judged_and_not_the_goal() -> None:
    assert verdict(cost([0.98, 1.02] * 20), nothing=True).startswith("the method finds nothing, as it should")
    assert verdict(cost([1.01, 1.02] * 20), nothing=True).startswith("the method finds something where nothing differs")
    assert verdict(cost([1.01, 1.02] * 20), nothing=False) == "at most 3%: shown"


def test_processor_time_of_a_process_grows_as_it_works() -> None:
    before_ns = processor_ns(os.getpid())
    sum(range(1_000_000))
    assert processor_ns(os.getpid()) > before_ns


def test_few_messages_tell_the_share_of_a_processor_and_many_the_ratio() -> None:
    paced = [(Slice(1000, 5000, 0.02 + noise), Slice(1000, 4000, 0.01 + noise)) for noise in (0.0, 0.5, 0.1)]
    full = [(Slice(90, 220, 1.0), Slice(99, 200, 1.0))] * 3
    shares = [round(each.share, 6) for each in costs_of(paced, full).values()]
    assert shares == [0.01, 0.1, 0.1]
