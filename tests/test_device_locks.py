"""The lock of what a device works on."""

from __future__ import annotations

import signal
import threading

import pytest

from broker.devices.locks import OwnedLock
from broker.errors import InvalidValue

TRIES = 50


def test_a_thread_that_has_it_is_told_so() -> None:
    lock = OwnedLock()
    for _ in range(2):
        with lock.taken(), pytest.raises(InvalidValue, match="has interrupted another one on this thread"):
            lock.taken()


def test_another_thread_waits_for_it() -> None:
    lock, seen = OwnedLock(), []

    def take() -> None:
        with lock.taken():
            seen.append("taken")

    with lock.taken():
        thread = threading.Thread(target=take)
        thread.start()
        seen.append("given back")
    thread.join()
    assert seen == ["given back", "taken"]


def test_a_signal_whose_handler_raises_leaves_it_free() -> None:
    def take_until_interrupted(after_s: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, after_s)
        while True:
            with lock.taken():
                pass

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    lock, before = OwnedLock(), signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(TRIES):
            with pytest.raises(KeyboardInterrupt):
                take_until_interrupted(20e-6 + number * 1e-6)
            with lock.taken():
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
