"""The wait for the last ranks, learned from lags."""

from __future__ import annotations

from random import Random

import pytest

from broker.collectives.deadlines import FIRST_WAIT_NS, LAGS_KEPT, LAGS_MIN, MARGIN_NS, REFRESH, SPREADS, Deadlines

MS_NS = 1_000_000


def learned(*lags_ns: int) -> int:
    deadlines = Deadlines()
    for lag_ns in lags_ns:
        deadlines.observe(lag_ns)
    return deadlines.wait_ns


def test_before_enough_is_known_the_wait_is_long() -> None:
    assert learned() == FIRST_WAIT_NS
    assert learned(*[MS_NS] * (LAGS_MIN - 1)) == FIRST_WAIT_NS
    assert learned(*[MS_NS] * LAGS_MIN) < FIRST_WAIT_NS


def test_lags_that_are_all_alike_leave_a_margin() -> None:
    assert learned(*[5 * MS_NS] * 20) == 5 * MS_NS + MARGIN_NS


def test_the_wait_is_the_median_and_a_multiple_of_the_spread() -> None:
    # Median 30, distances 20 20 10 10 0 0 10 10 20 20: their lower median is 10.
    lags = [10, 10, 20, 20, 30, 30, 40, 40, 50, 50]
    assert learned(*(lag * MS_NS for lag in lags)) == (30 + SPREADS * 10) * MS_NS


@pytest.mark.parametrize("late_ns", [100 * MS_NS, 10_000 * MS_NS, 2**62])
def test_ranks_that_are_always_late_do_not_lengthen_it(late_ns: int) -> None:
    random = Random(7)
    on_time = [random.randrange(MS_NS, 3 * MS_NS) for _ in range(60)]
    alone = learned(*on_time)
    with_late = learned(*(lag for pair in zip(on_time, [late_ns] * 60, strict=True) for lag in (*pair, pair[0])))
    assert alone <= 3 * MS_NS + SPREADS * 3 * MS_NS
    assert with_late <= 3 * MS_NS + SPREADS * 3 * MS_NS


def test_it_follows_a_job_that_gets_slower_or_faster() -> None:
    deadlines = Deadlines()
    for lag_ns in (MS_NS, 50 * MS_NS, 2 * MS_NS):
        for _ in range(LAGS_KEPT):
            deadlines.observe(lag_ns)
        assert deadlines.wait_ns == lag_ns + MARGIN_NS


def test_it_is_looked_at_again_after_some_new_lags() -> None:
    deadlines = Deadlines()
    for _ in range(LAGS_MIN):
        deadlines.observe(MS_NS)
    first = deadlines.wait_ns
    for _ in range(REFRESH - 1):
        deadlines.observe(9 * MS_NS)
        assert deadlines.wait_ns == first
    for _ in range(3 * REFRESH):
        deadlines.observe(9 * MS_NS)
    assert deadlines.wait_ns > first
