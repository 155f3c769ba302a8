"""Gaps: what was lost is told once, with the first message behind it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.topics.gaps import Gaps


def test_a_gap_is_told_with_the_first_message_behind_it_and_once() -> None:
    gaps = Gaps()
    assert not gaps
    gaps.add("a", 5, 3)
    assert gaps
    assert gaps.take("a", 4) == 0
    assert gaps.take("a", 8) == 3
    assert gaps.take("a", 9) == 0
    assert not gaps


def test_topics_have_their_own_gaps() -> None:
    gaps = Gaps()
    gaps.add("a", 1, 1)
    gaps.add("b", 1, 2)
    assert gaps.take("b", 9) == 2
    assert gaps.take("a", 9) == 1


def test_runs_that_touch_are_one() -> None:
    gaps = Gaps()
    for sequence in range(1, 1001):
        gaps.add("a", sequence, 1)
    assert repr(gaps) == "<Gaps {'a': [(1, 1000)]}>"


@given(st.lists(st.booleans(), max_size=60))
def test_each_message_tells_what_was_lost_since_the_one_before(lost: list[bool]) -> None:
    gaps = Gaps()
    for sequence, gone in enumerate(lost, 1):
        if gone:
            gaps.add("a", sequence, 1)
    previous = 0
    for sequence, gone in enumerate(lost, 1):
        if not gone:
            assert gaps.take("a", sequence) == sequence - previous - 1
            previous = sequence
