"""The system calls of the data path, compiled and plain alike."""

from __future__ import annotations

import array
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

import pytest

from broker.transport import calls
from tests.descriptors import opened
from tests.test_compiled import plain

PLAIN = plain("broker.transport.calls")
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=[calls, PLAIN], ids=["as it is", "plain"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def pair() -> Iterator[Pair]:
    here, there = socket.socketpair()
    here.setblocking(False)
    there.setblocking(False)
    with here, there:
        yield here, there


def pass_descriptors(sock: socket.socket, count: int) -> None:
    with open(os.devnull) as file:
        rights = array.array("i", [file.fileno()] * count)
        sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def test_bytes_fill_the_buffers_in_turn(module: ModuleType, pair: Pair) -> None:
    here, there = pair
    assert module.write_once(there, [b"ab", bytearray(b"cd"), memoryview(b"ef")]) == 6
    first, second = bytearray(4), bytearray(4)
    assert module.read_once(here, [memoryview(first), memoryview(second)]) == 6
    assert (first, second) == (b"abcd", b"ef\0\0")
    assert module.write_once(there, [b"g"]) == 1
    assert module.read_once(here, [memoryview(first)]) == 1
    assert first == b"gbcd"


def test_nothing_is_told_from_the_end(module: ModuleType, pair: Pair) -> None:
    here, there = pair
    room = [memoryview(bytearray(4))]
    assert module.read_once(here, room) == module.NOTHING
    assert module.read_once(here, room, []) == module.NOTHING
    there.close()
    assert module.read_once(here, room) == 0
    assert module.read_once(here, room, []) == 0


@pytest.mark.parametrize("count", [1, 8, 9, 400])
def test_a_full_socket_takes_a_part_and_then_nothing(module: ModuleType, pair: Pair, count: int) -> None:
    here, there = pair
    parts = [bytes(1 << 20)] + [b"y"] * (count - 1)
    taken = module.write_once(there, parts)
    assert 0 < taken < 1 << 20
    while module.write_once(there, parts) != module.NOTHING:
        pass
    assert len(here.recv(4)) == 4


@pytest.mark.parametrize(("parts", "descriptors"), [(1, []), (2, []), (1, None)])
def test_a_closed_socket_is_an_error_of_the_system(
    module: ModuleType, pair: Pair, parts: int, descriptors: list[int] | None
) -> None:
    here, there = pair
    here.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        module.read_once(here, [memoryview(bytearray(4))] * parts, descriptors)
    with pytest.raises(OSError, match="Bad file descriptor"):
        module.write_once(here, [b"x"] * parts)
    with pytest.raises(BrokenPipeError):
        module.write_once(there, [b"x"] * parts)


def test_descriptors_come_with_the_bytes_and_no_more_than_there_may_be(module: ModuleType, pair: Pair) -> None:
    here, there = pair
    before = len(opened())
    room = [memoryview(bytearray(4))]
    for count in (1, module.DESCRIPTORS_AT_ONCE_MAX, module.DESCRIPTORS_AT_ONCE_MAX + 5):
        pass_descriptors(there, count)
        came: list[int] = []
        assert module.read_once(here, room, came) == 1
        assert len(came) == min(count, module.DESCRIPTORS_AT_ONCE_MAX)
        assert not any(os.get_inheritable(descriptor) for descriptor in came)
        for descriptor in came:
            os.close(descriptor)
    pass_descriptors(there, 3)
    assert module.read_once(here, room) == 1
    assert len(opened()) <= before


def test_a_buffer_that_cannot_be_written_to_is_refused_and_nothing_is_lost(module: ModuleType, pair: Pair) -> None:
    here, there = pair
    there.send(b"kept")
    with pytest.raises((BufferError, TypeError)):
        module.read_once(here, [memoryview(b"read-only")])
    assert here.recv(9) == b"kept"


def test_a_wait_says_which_descriptor_is_ready(module: ModuleType, pair: Pair) -> None:
    here, there = pair
    wake = os.eventfd(0)
    try:
        assert module.wait_for_either(here.fileno(), module.READABLE, wake, 0.0) == 0
        assert module.wait_for_either(here.fileno(), module.READABLE, wake, 0.001) == 0
        assert module.wait_for_either(here.fileno(), module.WRITABLE, wake, None) == module.FIRST
        os.eventfd_write(wake, 1)
        assert module.wait_for_either(here.fileno(), module.READABLE, wake, None) == module.SECOND
        there.close()
        assert module.wait_for_either(here.fileno(), module.READABLE, wake, 5.0) == module.FIRST + module.SECOND
    finally:
        os.close(wake)


class Rang(Exception):
    """What the signal handler raises."""


def test_a_signal_ends_a_wait_when_its_handler_raises(module: ModuleType, pair: Pair) -> None:
    def ring(number: int, frame: object) -> None:
        raise Rang

    here, _ = pair
    wake = os.eventfd(0)
    previous = signal.signal(signal.SIGUSR1, ring)
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1))
    try:
        timer.start()
        with pytest.raises(Rang):
            module.wait_for_either(here.fileno(), module.READABLE, wake, 60.0)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, previous)
        os.close(wake)


@pytest.fixture
def patience() -> Iterator[None]:
    """Ends a call that would block for ever."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("it blocks")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def test_a_bell_that_is_rung_is_readable_and_a_full_one_stays_so(module: ModuleType, patience: None) -> None:
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        module.ring(bell)
        assert os.eventfd_read(bell) == 1
        os.eventfd_write(bell, 2**64 - 2)
        module.ring(bell)
        assert os.eventfd_read(bell) == 2**64 - 2
    finally:
        os.close(bell)
    module.ring(bell)


def test_a_bell_that_could_block_is_not_rung(module: ModuleType, patience: None) -> None:
    bell, (ear, mouth) = os.eventfd(0), os.pipe()
    try:
        module.ring(bell)
        os.eventfd_write(bell, 2**64 - 2)
        module.ring(bell)
        assert os.eventfd_read(bell) == 2**64 - 2
        os.set_blocking(mouth, False)
        with suppress(BlockingIOError):
            while os.write(mouth, bytes(4096)):
                pass
        os.set_blocking(mouth, True)
        module.ring(mouth)
    finally:
        for descriptor in (bell, ear, mouth):
            os.close(descriptor)
