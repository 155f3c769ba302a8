"""The replies to one request of the synchronous client."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Self

from clients.asking.requesting import Gathering
from clients.connection.driver import Driver
from clients.reading.messages import Message

Aside = Callable[[], contextlib.AbstractContextManager[None]]


class Replies:
    """Yields replies as they come; the request is made when the first one is asked for.

    Leaving its context, closing it, or letting go of it tells the responders that are not done to stop. One thread at a
    time may iterate.
    """

    def __init__(self, driver: Driver, gathering: Gathering, aside: Aside) -> None:
        """Made by `Client.request_many`."""
        self._driver = driver
        self._gathering = gathering
        self._aside = aside
        self._hold = driver.holding.hold()

    @property
    def complete(self) -> bool:
        """Whether all responders that were asked have said their last reply; to be read when the iteration is over."""
        return self._gathering.complete

    def close(self) -> None:
        """Wants no more replies."""
        with self._driver.lock:
            self._gathering.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        with self._aside():
            reply = self._driver.run(self._gathering.next())
        if reply is None:
            raise StopIteration
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The collector may run on a thread that holds the lock; the keeper sends what there is to say.
        gathering: Gathering | None = getattr(self, "_gathering", None)
        if gathering is not None:
            gathering.abandon()

    def __repr__(self) -> str:
        return f"<Replies complete={self.complete}>"
