"""The lock of what a device works on."""

from __future__ import annotations

import threading

import pytest

from broker.devices.locks import OwnedLock
from broker.errors import InvalidValue


def test_a_thread_that_has_it_is_told_so() -> None:
    lock = OwnedLock()
    for _ in range(2):
        with lock, pytest.raises(InvalidValue, match="has interrupted another one on this thread"), lock:
            pytest.fail("it was taken twice")


def test_another_thread_waits_for_it() -> None:
    lock, seen = OwnedLock(), []

    def take() -> None:
        with lock:
            seen.append("taken")

    with lock:
        thread = threading.Thread(target=take)
        thread.start()
        seen.append("given back")
    thread.join()
    assert seen == ["given back", "taken"]
