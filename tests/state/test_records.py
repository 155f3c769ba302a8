"""Which sessions have something to send."""

from __future__ import annotations

from broker.state.records import Ready, SessionRecord
from tests.state.harness import Talk


def records(count: int) -> list[SessionRecord]:
    talk = Talk()
    return [talk.peer(f"client-{index}").record for index in range(count)]


def test_each_is_there_once_in_the_order_in_which_it_came_and_may_come_again() -> None:
    ready, (first, second) = Ready(), records(2)
    for record in (second, first, second):
        ready(record)
    ready.add(first)
    assert ready.take() == [second, first]
    assert ready.take() == []
    ready.add(first)
    assert ready.take() == [first]


def test_one_that_is_gone_is_not_among_them_any_more() -> None:
    ready, (first, second) = Ready(), records(2)
    ready.discard(first)
    for record in (first, second):
        ready.add(record)
    ready.discard(first)
    assert ready.take() == [second]
