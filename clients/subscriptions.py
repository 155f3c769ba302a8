"""A subscription of the synchronous client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn, Self, SupportsIndex

from broker.errors import ConnectionClosed
from broker.limits import ANSWER_TIMEOUT_S
from clients.connection import operations
from clients.connection.checks import stays_here
from clients.connection.driver import Driver
from clients.connection.operations import take
from clients.publishing.filling import UNBROKEN
from clients.reading.messages import Message
from clients.reading.subscription_state import SubscriptionState

_UNBROKEN = UNBROKEN


class Subscription:
    """Messages of the topics that a filter matches, in the order of each publisher.

    Iterating waits for each message and ends when the subscription is closed. Several threads may take messages; each
    message goes to one of them. Closing it ends the waits of all. One without a handler is closed by itself when
    nothing refers to it any more, nor to a job of it that waits to be settled.
    """

    def __init__(self, driver: Driver, state: SubscriptionState, *, read: bool) -> None:
        """Made by `Client.subscribe`; `read` where no handler takes its messages, so that it ends with this object."""
        self._driver = driver
        self._state = state
        self._reader = state.keep(driver.core.unread) if read else None
        self._hold = driver.holding.hold()

    @property
    def filter(self) -> str:
        """The topic filter."""
        return self._state.wishes.filter

    @property
    def dropped(self) -> int:
        """Messages that the overflow policy has dropped, in the broker or here."""
        return self._state.dropped

    @property
    def pending(self) -> int:
        """Messages that have reached this process and were not taken."""
        return self._state.pending

    def next(self, timeout_s: float | None = None) -> Message:
        """The next message.

        Args:
            timeout_s: how long to wait; None waits as long as the client is open.

        Raises:
            TimeoutError: none came in time; the subscription goes on.
            ConnectionClosed: the subscription or the client is closed and no message is left.
        """
        driver, state = self._driver, self._state
        if _UNBROKEN:
            message = state.take_plain()
            if message is not None:
                return message
        # The lock's `with`, without what that looks up.
        driver.lock.acquire()
        try:
            # What there is to do besides, where nothing is here, is done before waiting.
            message = take(driver, driver.core, state) if state.pending or state.is_special else None
            if message is None and state.closed is None:
                # The same as operations.next_message, without its coroutines: the way that every message takes.
                state.readers += 1
                try:
                    driver.block(state, timeout_s, state.what)
                finally:
                    state.readers -= 1
                message = take(driver, driver.core, state)
        finally:
            driver.lock.release()
        if message is not None:
            return message
        return driver.run(operations.next_message(driver, state, timeout_s))

    def close(self) -> None:
        """Ends the subscription. Messages that are here can still be taken."""
        self._driver.run(operations.unsubscribe(self._driver, self._state, ANSWER_TIMEOUT_S))
        self._driver.notify()

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        try:
            return self.next()
        except ConnectionClosed:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise stays_here(self, "Connect in the other process, and subscribe there")

    def __repr__(self) -> str:
        return f"<Subscription {self.filter!r} pending={self.pending} dropped={self.dropped}>"
