"""Ranks of a training job on threads of the tests, each with a client of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import clients

T = TypeVar("T")

PATIENCE_S = 60.0

_names = itertools.count()


def embedded_url() -> str:
    """The address of an embedded broker that no other test uses."""
    return f"inproc://ranks-{next(_names)}"


_opened: list[clients.Client] = []


def connect_rank(url: str, name: str) -> clients.Client:
    """A client that is closed when its test is over: no board of it outlives the test."""
    _opened.append(clients.connect(url, name=name))
    return _opened[-1]


def close_ranks() -> None:
    """Closes what connect_rank has made."""
    while _opened:
        _opened.pop().close()


@contextmanager
def running() -> Iterator[Callable[[Callable[[], T]], Future[T]]]:
    """Gives a function that starts functions on threads; their failures surface when their results are asked for."""
    with ThreadPoolExecutor(16) as pool:
        yield pool.submit


def all_together(*functions: Callable[[], T]) -> list[T]:
    """Calls functions at the same time and returns what they return."""
    with running() as start:
        futures = [start(function) for function in functions]
        return [future.result(PATIENCE_S) for future in futures]


def outcomes_of(*functions: Callable[[], object]) -> list[object]:
    """As all_together, with the error of the broker's that a function raises in the place of what it returns."""

    def outcome(function: Callable[[], object]) -> object:
        try:
            return function()
        except clients.BrokerError as error:
            return error

    return all_together(*(partial(outcome, function) for function in functions))


def trainers(
    url: str,
    count: int,
    *,
    world_size: int | None = None,
    on_change: Callable[[int, clients.GenerationChangedError], None] | None = None,
) -> list[clients.Trainer]:
    """Trainers with the ranks from 0 upwards, in a group of their own."""

    def join(rank: int) -> clients.Trainer:
        bus = clients.connect(url, name=f"trainer-{rank}")
        told = None if on_change is None else (lambda change: on_change(rank, change))
        return clients.Trainer(bus, world_size=world_size or count, rank=rank, timeout_s=PATIENCE_S, on_change=told)

    return all_together(*(lambda rank=rank: join(rank) for rank in range(count)))


def bus_of(trainer: clients.Trainer) -> clients.Client:
    """The client of a trainer, to end it as a dying process would."""
    return trainer._bus
