"""The client's lock, compiled and plain alike."""

from __future__ import annotations

import ctypes
import operator
import signal
import threading
from functools import partial
from types import ModuleType

import pytest

from clients.connection import locks
from tests.clients.conftest import Interrupted
from tests.test_compiled import plain

PLAIN = plain("clients.connection.locks")


@pytest.fixture(params=[locks, PLAIN], ids=["as it is", "plain"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    return request.param  # type: ignore[no-any-return]


def test_it_is_taken_once_and_given_back(module: ModuleType) -> None:
    lock = module.Lock()
    assert lock.acquire()
    assert not lock.acquire(False)
    lock.release()
    with lock:
        assert not lock.acquire(False)
    assert lock.acquire(False)


def test_what_nobody_has_cannot_be_given_back(module: ModuleType) -> None:
    lock = module.Lock()
    with pytest.raises(RuntimeError, match="unlocked"):
        lock.release()
    assert lock.acquire()
    lock.release()
    with pytest.raises(RuntimeError, match="unlocked"):
        lock.release()
    assert lock.acquire(False)
    assert not lock.acquire(False)


def test_threads_wait_for_it_and_each_has_it_alone(module: ModuleType) -> None:
    lock, count, inside = module.Lock(), 0, []

    def work() -> None:
        nonlocal count
        for _ in range(200):
            with lock:
                inside.append(None)
                seen = count
                assert len(inside) == 1
                count = seen + 1
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
    assert count == 800


def test_who_waits_is_woken(module: ModuleType) -> None:
    lock, taken = module.Lock(), threading.Event()

    def wait() -> None:
        lock.acquire()
        taken.set()

    lock.acquire()
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not taken.is_set()
    lock.release()
    assert taken.wait(60.0)
    thread.join(60.0)


def test_who_waits_for_something_gives_it_up_until_all_are_told(module: ModuleType) -> None:
    lock, told, heard = module.Lock(), [], []
    condition = module.Condition(lock)

    def wait() -> None:
        with lock:
            while not told:
                condition.wait(60.0)
            heard.append(lock.acquire(False))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    with lock:
        condition.wait(0.001)
        assert not lock.acquire(False)
        told.append(True)
        condition.notify_all()
    for thread in threads:
        thread.join(60.0)
    assert heard == [False] * 3


@pytest.mark.usefixtures("interrupting")
def test_whose_wait_a_signal_ends_has_it_again() -> None:
    if not locks.UNBROKEN:
        pytest.skip("nothing is compiled, so a signal's exception may come between any two steps")
    lock = locks.Lock()
    condition = locks.Condition(lock)
    trip = partial(ctypes.pythonapi.PyErr_SetInterruptEx, int(signal.SIGUSR1))
    main = threading.main_thread().ident or 0

    def interrupt() -> None:
        with lock:
            # So somebody has given it up, in the wait.
            signal.pthread_kill(main, signal.SIGUSR1)

    lock.acquire()
    with pytest.raises(Interrupted):
        # Without a step of Python's own between the signal and what is compiled.
        list(map(operator.call, (trip, condition.wait)))
    assert not lock.acquire(False)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted):
        condition.wait(60.0)
    assert not lock.acquire(False)
    lock.release()
    thread.join(60.0)


def test_who_has_it_does_not_wait_for_itself(module: ModuleType) -> None:
    lock = module.Lock()
    with lock, pytest.raises(ValueError, match="has interrupted another one on this thread"):
        lock.acquire()
    with lock:
        assert not lock.acquire(False)
