"""Handlers of several connections take turns; one that waits for somebody else steps aside."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from clients.workers.turns import Turns
from tests.background import in_background

PATIENCE_S = 60.0


def test_one_thread_at_a_time_has_the_turn() -> None:
    turns, inside, overlaps = Turns(), [], []
    start = threading.Barrier(4)

    def handle(number: int) -> None:
        inside.append(number)
        overlaps.append(len(inside))
        inside.remove(number)

    handler = turns.handler(handle)

    def work(number: int) -> None:
        start.wait(PATIENCE_S)
        for _ in range(200):
            handler(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert overlaps == [1] * 800


def test_who_steps_aside_lets_another_one_run_and_gets_the_turn_back() -> None:
    turns, order = Turns(), []
    answered = threading.Event()

    def answer(_: object) -> None:
        order.append("answer")
        answered.set()

    def ask(_: object) -> None:
        order.append("ask")
        thread, _ = in_background(lambda: turns.handler(answer)(None))
        with turns.aside():
            assert answered.wait(PATIENCE_S)
            thread.join(PATIENCE_S)
        order.append("go on")

    turns.handler(ask)(None)
    assert order == ["ask", "answer", "go on"]
    turns.handler(order.append)("next")
    assert order[-1] == "next"


def test_a_thread_without_the_turn_has_nothing_to_step_aside_from() -> None:
    turns = Turns()
    with turns.aside(), turns.turn():
        pass
    with turns.turn():
        thread, outcome = in_background(lambda: turns.aside().__enter__())
        thread.join(PATIENCE_S)
        assert outcome == [None]


def test_what_a_handler_raises_gives_the_turn_back() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError):
        turns.handler(lambda value: 1 / value)(0)
    assert turns.handler(lambda value: value)(3) == 3


def test_each_step_of_a_generator_is_a_turn_and_closing_it_closes_the_inner_one() -> None:
    turns, closed = Turns(), []

    def counting(most: int) -> Iterator[int]:
        try:
            for number in range(most):
                assert turns._holder == threading.get_ident()
                yield number
        finally:
            closed.append(most)

    assert list(turns.handler(counting)(3)) == [0, 1, 2]
    steps = turns.handler(counting)(9)
    assert next(steps) == 0
    assert turns._holder == 0
    steps.close()
    assert closed == [3, 9]
