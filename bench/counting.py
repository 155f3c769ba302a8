"""Counts on one thread what another one waits for."""

from __future__ import annotations

import threading


class Countdown:
    """Wakes whoever waits once, at the end: a thread that woke up for each one would take Python's lock each time."""

    def __init__(self) -> None:
        self._count = 0
        self._wanted = -1
        self._reached = threading.Event()

    def add(self) -> None:
        """One more; on one thread only."""
        self._count += 1
        if self._count == self._wanted:
            self._reached.set()

    def wait(self, count: int) -> None:
        """Waits until there were so many; once only."""
        self._wanted = count
        if self._count < count:
            self._reached.wait()
