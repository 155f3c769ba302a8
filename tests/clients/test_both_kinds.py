"""The asynchronous library has the names of the synchronous one, with the same arguments and defaults."""

from __future__ import annotations

import inspect
import threading

import numpy as np
import pytest

import clients
from clients import aio
from tests.clients.conftest import Connect
from tests.clients.test_groups import on_all_ranks

PATIENCE_S = 60.0
BOTH = sorted(set(clients.__all__) & set(aio.__all__))


def parameters(function: object) -> list[tuple[str, object, object]]:
    assert callable(function)
    return [(each.name, each.kind, each.default) for each in inspect.signature(function).parameters.values()]


def test_each_name_of_the_asynchronous_library_is_one_of_the_synchronous_one() -> None:
    assert sorted(aio.__all__) == BOTH


@pytest.mark.parametrize("name", BOTH)
def test_both_kinds_have_the_same_names_with_the_same_arguments(name: str) -> None:
    blocking, awaited = getattr(clients, name), getattr(aio, name)
    if not isinstance(blocking, type):
        assert parameters(blocking) == parameters(awaited)
        return
    public = [each for each in dir(blocking) if not each.startswith("_")]
    assert public == [each for each in dir(awaited) if not each.startswith("_")]
    for each in public:
        if callable(getattr(blocking, each)):
            assert parameters(getattr(blocking, each)) == parameters(getattr(awaited, each)), each


def test_the_error_of_work_that_was_given_up_is_returned(connect: Connect) -> None:
    over = threading.Event()

    def work(group: clients.Group, bus: clients.Client) -> object:
        if group.rank == 1:
            return over.wait(PATIENCE_S)
        several = group.all_reduce([np.ones(3), np.ones(3, "int32")], async_op=True)
        one = group.all_reduce(np.ones(3), async_op=True)
        given_up = several.cancel(), one.cancel()
        errors = [type(each.exception(PATIENCE_S)) for each in (several, one)]
        over.set()
        return given_up, errors

    assert on_all_ranks(connect, 2, work) == [((True, True), [clients.CollectiveAbortedError] * 2), True]


def test_the_block_of_a_work_ends_with_it(connect: Connect) -> None:
    over = threading.Event()

    def work(group: clients.Group, bus: clients.Client) -> object:
        array = np.ones(3)
        with group.all_reduce(array, async_op=True) as under_way:
            pass
        outcome: list[object] = [array.tolist(), under_way.done]
        if group.rank == 1:
            over.wait(PATIENCE_S)
            return outcome
        with pytest.raises(ZeroDivisionError), group.all_reduce(array, async_op=True) as given_up:
            raise ZeroDivisionError
        over.set()
        return [*outcome, type(given_up.exception(PATIENCE_S))]

    assert on_all_ranks(connect, 2, work) == [
        [[2.0] * 3, True, clients.CollectiveAbortedError],
        [[2.0] * 3, True],
    ]
