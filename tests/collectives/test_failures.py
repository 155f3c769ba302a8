"""What late ranks are still to be told."""

from __future__ import annotations

from broker import limits
from broker.collectives.effects import Missing
from broker.collectives.failures import Failures
from broker.ids import Rank


def missing(rank: int) -> Missing:
    return Missing((Rank(rank),), 1.0)


def test_a_failure_is_found_until_all_ranks_have_passed_it() -> None:
    failures = Failures()
    failures.remember(3, missing(1))
    failures.remember(5, missing(2))
    failures.forget_before(4)
    assert (failures.find(3), failures.find(4), failures.find(5)) == (None, None, missing(2))


def test_the_oldest_failures_share_the_words_of_the_last_one_forgotten() -> None:
    failures = Failures()
    for sequence in range(1, limits.FAILED_OPERATIONS_MAX + 4):
        failures.remember(sequence, missing(sequence))
    assert len(failures) == limits.FAILED_OPERATIONS_MAX
    assert failures.find(1) == failures.find(3) == missing(3)
    assert failures.find(4) == missing(4)


def test_an_old_operation_that_fails_late_does_not_bring_forgotten_ones_back() -> None:
    failures = Failures()
    for sequence in range(2, limits.FAILED_OPERATIONS_MAX + 5):
        failures.remember(sequence, missing(sequence))
    failures.remember(1, missing(1))
    assert (failures.find(1), failures.find(4)) == (missing(1), missing(1))
    assert failures.find(5) == missing(5)
