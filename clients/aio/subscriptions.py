"""A subscription of the asynchronous client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NoReturn, Self, SupportsIndex

from broker.errors import ConnectionClosed
from broker.limits import ANSWER_TIMEOUT_S
from clients.aio.driver import AsyncDriver
from clients.connection import operations
from clients.connection.checks import stays_here
from clients.reading.messages import Message
from clients.reading.subscription_state import SubscriptionState


class Subscription:
    """As `clients.Subscription`, with coroutines and `async for`."""

    def __init__(self, driver: AsyncDriver, state: SubscriptionState, *, read: bool = True) -> None:
        """Made by `Client.subscribe`; `read` where its messages are taken of this object, so that it ends with it."""
        self._driver = driver
        self._state = state
        self._reader = state.keep(driver.core.unread) if read else None

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

    async def next(self, timeout_s: float | None = None) -> Message:
        """The next message; cancelling loses none.

        Raises:
            TimeoutError: none came in time; the subscription goes on.
            ConnectionClosed: the subscription or the client is closed and no message is left.
        """
        return await operations.next_message(self._driver, self._state, timeout_s)

    async def close(self) -> None:
        """Ends the subscription. Messages that are here can still be taken."""
        await operations.unsubscribe(self._driver, self._state, ANSWER_TIMEOUT_S)

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            try:
                yield await self.next()
            except ConnectionClosed:
                return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise stays_here(self, "Connect in the other process, and subscribe there")

    def __repr__(self) -> str:
        return f"<Subscription {self.filter!r} pending={self.pending} dropped={self.dropped}>"
