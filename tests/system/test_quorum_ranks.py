"""Ranks that reduce with a quorum are stopped and killed: the others go on, and who comes back has the same bits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import clients
from tests.daemon import Daemon, Process

RANKS = 3
SIZES = pytest.mark.parametrize("elements", [4, 300_000], ids=["small", "large"])


@pytest.fixture
def bus(daemon: Daemon) -> Iterator[clients.Client]:
    with clients.connect(daemon.url, name="control") as client:
        yield client


@pytest.fixture
def ranks(daemon: Daemon, elements: int) -> Iterator[list[Process]]:
    with ExitStack() as stack:
        arguments = [(str(rank), str(RANKS), str(elements)) for rank in range(RANKS)]
        started = [
            stack.enter_context(Process(daemon.url, *each, module="tests.system.quorum_rank")) for each in arguments
        ]
        for rank in started:
            assert rank.read_line() == "joined"
        yield started


def make_steps(bus: clients.Client, first: Process, count: int) -> list[str]:
    """Rank 0 makes steps; what it says of them."""
    for _ in range(count):
        bus.publish("control/steps", "step")
    bus.flush()
    return [first.read_line() for _ in range(count)]


def stop(bus: clients.Client, *ranks: Process) -> list[list[str]]:
    """All lines that ranks still print."""
    bus.publish("control/steps", "stop", ack="accepted")
    told = [rank.read_rest().decode().splitlines() for rank in ranks]
    for rank in ranks:
        assert rank.wait() == 0, rank.errors
    return told


@SIZES
def test_the_others_go_on_without_a_stopped_rank_and_it_ends_with_the_same_bits(
    bus: clients.Client, ranks: list[Process], elements: int
) -> None:
    said = make_steps(bus, ranks[0], 3)
    ranks[2].signal(signal.SIGSTOP)
    said += make_steps(bus, ranks[0], 6)
    assert "ranks=[0, 1] " in said[-1]
    ranks[2].signal(signal.SIGCONT)
    told = stop(bus, *ranks)
    # Every rank says the same of every step, and ends with the same total.
    assert [*said, *told[0]] == told[1] == told[2]
    assert told[0][-1].startswith("stopped ")


@SIZES
def test_a_killed_rank_is_named_and_the_survivors_take_one_state(
    bus: clients.Client, ranks: list[Process], elements: int
) -> None:
    make_steps(bus, ranks[0], 3)
    ranks[2].kill()
    bus.publish("control/steps", "step", ack="accepted")
    # The step may have been over when the rank died; then its loss is told in the next one.
    said = ranks[0].read_line()
    if not said.startswith("changed"):
        bus.publish("control/steps", "step", ack="accepted")
        said = ranks[0].read_line()
    assert said == "changed lost=[2]"
    make_steps(bus, ranks[0], 2)
    first, second = stop(bus, ranks[0], ranks[1])
    assert first[-1] == second[-1]
    assert "ranks=[0, 1] " in first[-2]
    assert "changed lost=[2]" in second


@pytest.mark.parametrize("elements", [300_000], ids=["large"])
def test_a_rank_that_is_stopped_and_killed_loses_nothing_of_the_others(
    bus: clients.Client, ranks: list[Process], elements: int
) -> None:
    make_steps(bus, ranks[0], 1)
    os.kill(ranks[2].pid, signal.SIGSTOP)
    assert "ranks=[0, 1] " in make_steps(bus, ranks[0], 4)[-1]
    ranks[2].kill()
    bus.publish("control/steps", "step", ack="accepted")
    said = ranks[0].read_line()
    if not said.startswith("changed"):
        bus.publish("control/steps", "step", ack="accepted")
        said = ranks[0].read_line()
    assert said == "changed lost=[2]"
    first, second = stop(bus, ranks[0], ranks[1])
    assert first[-1] == second[-1]
