"""The replies to one request of the asynchronous client."""

from __future__ import annotations

from typing import Self

from clients.asking.requesting import Gathering
from clients.reading.messages import Message


class Replies:
    """As `clients.Replies`, with `async for`."""

    def __init__(self, gathering: Gathering) -> None:
        """Made by `Client.request_many`."""
        self._gathering = gathering

    @property
    def complete(self) -> bool:
        """Whether all responders that were asked have said their last reply; to be read when the iteration is over."""
        return self._gathering.complete

    async def close(self) -> None:
        """Wants no more replies."""
        self._gathering.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        reply = await self._gathering.next()
        if reply is None:
            raise StopAsyncIteration
        return reply

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        self._gathering.close()

    def __del__(self) -> None:
        gathering: Gathering | None = getattr(self, "_gathering", None)
        if gathering is not None:
            gathering.abandon()

    def __repr__(self) -> str:
        return f"<Replies complete={self.complete}>"
