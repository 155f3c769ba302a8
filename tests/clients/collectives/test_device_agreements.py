"""What a rank says to the others in the course of a collective on devices, and when: one rank, without the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

import clients
from broker.collectives.member import Member
from broker.devices import Device
from clients.collectives.collective import Prepared
from clients.collectives.device_windows import Agreements, DeviceWindows, OnDevice, Steps, carry_out

FINE = b"\1"


@pytest.fixture
def member() -> Member:
    return Member("dp", 1, 2, 1, [0, 1])


@pytest.fixture
def agreements(member: Member) -> Agreements:
    return Agreements(SimpleNamespace(name="dp", member=member), SimpleNamespace(error=None, ranks=(0, 1)), "it", 1.0)


@pytest.fixture
def windows() -> DeviceWindows:
    """With a window that does for every operation."""
    made = DeviceWindows()
    made.window = SimpleNamespace(device=Device(0), own=SimpleNamespace(close_descriptor=lambda: None))
    made.number_for = lambda device, size_bytes: 1
    return made


def begun(agreements: Agreements, windows: DeviceWindows, work: Callable[..., object] | None = None) -> Steps:
    steps = OnDevice(Device(0), 4, lambda memory: None, work or (lambda window: lambda: "done"), iter(()))
    return carry_out(agreements, windows, steps)


def say(prepared: Prepared, *others: bytes) -> None:
    """All have come; the others say the same as this rank if nothing else is given."""
    own = bytes(prepared.contribution)
    np.frombuffer(prepared.target, np.uint8)[:] = np.frombuffer(b"".join(others or [own]) + own, np.uint8)


def test_what_interrupts_a_rank_is_raised_when_it_has_said_so(agreements: Agreements, windows: DeviceWindows) -> None:
    worked: list[object] = []
    steps = begun(agreements, windows, worked.append)
    say(next(steps))
    ready = steps.throw(KeyboardInterrupt())
    assert bytes(ready.contribution) != FINE
    say(ready, FINE)
    with pytest.raises(KeyboardInterrupt):
        steps.send(None)
    assert not worked


def test_a_rank_that_is_interrupted_before_all_have_come_says_nothing_more(
    agreements: Agreements, windows: DeviceWindows
) -> None:
    steps = begun(agreements, windows)
    next(steps)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())


def test_what_has_interrupted_the_work_is_raised_though_the_others_have_not_waited(
    agreements: Agreements, windows: DeviceWindows
) -> None:
    def work(window: object) -> None:
        raise KeyboardInterrupt

    steps = begun(agreements, windows, work)
    say(next(steps))
    assert bytes(steps.send(None).contribution) != FINE
    with pytest.raises(KeyboardInterrupt):
        steps.close()


def test_what_is_aborted_while_the_device_works_fails(agreements: Agreements, windows: DeviceWindows) -> None:
    assert not windows.abort()
    steps = begun(agreements, windows, lambda window: windows.abort())
    say(next(steps))
    ready = steps.send(None)
    assert bytes(ready.contribution) != FINE
    say(ready, FINE)
    with pytest.raises(clients.CollectiveAbortedError) as caught:
        steps.send(None)
    assert caught.value.rank == 1
    assert not windows.abort()


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (b"\2", clients.CollectiveError, "the device of rank 0 has failed"),
        (b"\3", clients.CollectiveAbortedError, "the program of rank 0 gave it up"),
    ],
)
def test_why_another_rank_has_not_done_its_share_is_told(
    agreements: Agreements, windows: DeviceWindows, said: bytes, error: type[Exception], words: str
) -> None:
    steps = begun(agreements, windows)
    say(next(steps))
    say(steps.send(None), said)
    with pytest.raises(error, match=words) as caught:
        steps.send(None)
    assert type(caught.value) is error


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError, ValueError])
def test_a_rank_tells_a_device_that_fails_from_a_program_that_gives_up(
    agreements: Agreements, windows: DeviceWindows, interruption: type[BaseException]
) -> None:
    def work(window: object) -> None:
        raise interruption

    steps = begun(agreements, windows, work)
    say(next(steps))
    ready = steps.send(None)
    assert bytes(ready.contribution) == (b"\2" if interruption is ValueError else b"\3")
    say(ready, FINE)
    with pytest.raises(interruption):
        steps.send(None)


def test_a_change_is_told_once(agreements: Agreements, member: Member) -> None:
    agreements._board.error = member.changed(2, [0], [1])
    with pytest.raises(clients.GenerationChangedError):
        next(agreements.agree("ready", 1))
    member.raise_change()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_interrupts_a_call_is_told_to_what_has_planned_it(asynchronous: bool) -> None:
    asked: list[object] = []

    def call(prepared: object, *_: object) -> object:
        asked.append(prepared)
        if prepared == "arrive":
            raise asyncio.CancelledError
        return "all are"

    async def call_later(prepared: object, *_: object, **options: object) -> object:
        return call(prepared)

    def steps() -> Steps:
        try:
            yield "arrive"
        except asyncio.CancelledError:
            return (yield "ready")

    if asynchronous:
        told = asyncio.run(clients.aio.Group._call_each(SimpleNamespace(_call=call_later), steps(), 1.0))
    else:
        told = clients.Group._call_each(SimpleNamespace(_call=call), steps(), 1.0)
    assert (asked, told) == (["arrive", "ready"], "all are")
