"""A subscription whose topics several workers have: each of them fills a part, and whoever reads takes from all.

Each part is a subscription of one connection, with its own queue, credit and overflow, and goes on by itself when that
connection was lost. A topic is one worker's, so its order is its part's; between topics there is none.

While somebody waits here, the keepers of the connections read them, as they do for asynchronous collectives.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from weakref import WeakMethod

from broker.errors import TimeoutError
from clients.connection import operations
from clients.connection.lifetimes import with_locks
from clients.connection.operations import Deadline
from clients.reading.messages import Message
from clients.subscriptions import Subscription
from clients.workers.parts import Parts


class MergedSubscription(Subscription):
    """As Subscription, of the topics of several workers together."""

    def __init__(self, parts: Sequence[Subscription], *, read: bool) -> None:
        """Args:
        parts: at each worker one.
        read: whether its messages are taken here; else handlers take them.
        """
        super().__init__(parts[0]._driver, parts[0]._state, read=False)
        self._parts = Parts(parts)
        self._came = threading.Condition()
        self._comings = 0
        with_locks.add(self)
        # Weakly: the connections are not to keep what they are to close when nothing refers to it any more.
        coming = WeakMethod(self._coming)
        for part in parts if read else ():
            with part._driver.lock:
                part._state.on_message = partial(_tell, coming)

    @property
    def dropped(self) -> int:
        """Messages that the overflow policy has dropped, in the broker or here."""
        return self._parts.dropped

    @property
    def pending(self) -> int:
        """Messages that have reached this process and were not taken."""
        return self._parts.pending

    def next(self, timeout_s: float | None = None) -> Message:
        """The next message of any of the topics; see Subscription."""
        deadline = Deadline(timeout_s)
        message = self._parts.take(_take)
        if message is not None:
            return message
        with self._read():
            while True:
                seen = self._comings
                message = self._parts.take(_take)
                if message is not None:
                    return message
                self._parts.check_open()
                with self._came:
                    if self._comings != seen or self._came.wait(deadline.remaining_s):
                        continue
                message = self._parts.take(_take_arrived)
                if message is not None:
                    return message
                self._parts.check_open()
                raise TimeoutError(self._state.what, deadline.timeout_s or 0.0)

    def close(self) -> None:
        """Ends the subscription. Messages that are here can still be taken."""
        with ExitStack() as stack:
            # All of them, also when one worker does not answer.
            for part in self._parts:
                stack.callback(part.close)

    def forked(self) -> None:
        """In a forked child: its end is about to be told, and wakes nobody there."""
        self._came = threading.Condition()

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


def _tell(coming: WeakMethod[Callable[[], None]]) -> None:
    """Tells a merged subscription, if it is still there."""
    tell = coming()
    if tell is not None:
        tell()


def _take(part: Subscription) -> Message | None:
    """What has been read counts."""
    with part._driver.lock:
        return operations.take(part._driver, part._driver.core, part._state)


def _take_arrived(part: Subscription) -> Message | None:
    """What has come counts, read or not."""
    with part._driver.lock:
        part._driver.read_arrived()
        return operations.take(part._driver, part._driver.core, part._state)
