"""A subscription whose topics several workers have: each of them fills a part, and whoever reads takes from all.

Each part is a subscription of one connection, with its own queue, credit and overflow, and goes on by itself when that
connection was lost. A topic is one worker's, so its order is its part's; between topics there is none.

While somebody waits here, the keepers of the connections read them, as they do for asynchronous collectives.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from broker.errors import TimeoutError
from clients.connection import operations
from clients.connection.operations import Deadline
from clients.reading.messages import Message
from clients.subscriptions import Subscription


class MergedSubscription(Subscription):
    """As Subscription, of the topics of several workers together."""

    def __init__(self, parts: Sequence[Subscription], *, read: bool) -> None:
        """Args:
        parts: at each worker one.
        read: whether its messages are taken here; else handlers take them.
        """
        super().__init__(parts[0]._driver, parts[0]._state)
        self._parts = parts
        self._came = threading.Condition()
        self._comings = 0
        self._next = 0
        for part in parts if read else ():
            with part._driver.lock:
                part._state.on_message = self._coming

    @property
    def dropped(self) -> int:
        """Messages that the overflow policy has dropped, in the broker or here."""
        return sum(part.dropped for part in self._parts)

    @property
    def pending(self) -> int:
        """Messages that have reached this process and were not taken."""
        return sum(part.pending for part in self._parts)

    def next(self, timeout_s: float | None = None) -> Message:
        """The next message of any of the topics; see Subscription."""
        deadline = Deadline(timeout_s)
        message = self._take()
        if message is not None:
            return message
        with self._read():
            while True:
                seen = self._comings
                message = self._take()
                if message is not None:
                    return message
                self._check_open()
                with self._came:
                    if self._comings != seen or self._came.wait(deadline.remaining_s):
                        continue
                message = self._take(arrived=True)
                if message is not None:
                    return message
                self._check_open()
                raise TimeoutError(self._state.what, deadline.timeout_s or 0.0)

    def close(self) -> None:
        """Ends the subscription. Messages that are here can still be taken."""
        for part in self._parts:
            part.close()

    def _take(self, *, arrived: bool = False) -> Message | None:
        """The next message that is here, of each part in turn; with `arrived`, what has come counts, read or not."""
        first, count = self._next, len(self._parts)
        for offset in range(count):
            place = (first + offset) % count
            part = self._parts[place]
            driver = part._driver
            with driver.lock:
                if arrived:
                    driver.read_arrived()
                message = operations.take(driver, part._state)
            if message is not None:
                self._next = (place + 1) % count
                return message
        return None

    def _check_open(self) -> None:
        """Raises when a part will get no more messages: without it this would not be all of the topics."""
        for part in self._parts:
            if part._state.closed is not None:
                raise part._state.closed

    def _coming(self) -> None:
        """A part has a message, or is closed. Its connection's lock is held."""
        with self._came:
            self._comings += 1
            self._came.notify_all()

    @contextmanager
    def _read(self) -> Iterator[None]:
        """While its context is open, all connections are read. What waits to leave on them leaves first."""
        for part in self._parts:
            driver = part._driver
            with driver.lock:
                driver.core.before_waiting()
                driver.flush()
                driver.expect_results(more=True)
        try:
            yield
        finally:
            for part in self._parts:
                with part._driver.lock:
                    part._driver.expect_results(more=False)
