"""Checksums of what each rank holds, for ranks that are asynchronous clients; see clients/digests.py."""

from __future__ import annotations

import asyncio

from broker.errors import InvalidValue
from clients.aio.client import Client
from clients.aio.groups import Group
from clients.digests import Rounds, digest_of_arrays


class Digests(Rounds):
    """As `clients.Digests`, with a coroutine."""

    def __init__(self, bus: Client, group: Group, *, every: int = 1) -> None:
        """See `clients.Digests`."""
        super().__init__(group, every)
        if not isinstance(bus, Client):
            raise InvalidValue(
                "bus", bus, "is no client of clients.aio: give what await clients.aio.connect() has returned"
            )
        self._bus = bus

    async def note(self, value: object, label: str = "") -> str:
        """As `clients.Digests.note`; the loop goes on meanwhile, and the arrays may not be changed until it returns.

        Cancelled, it may or may not have published; the round is counted.
        """
        number = self._begin()
        if number is None:
            return ""
        digest = await asyncio.to_thread(digest_of_arrays, value)
        await self._bus.publish(self.topic, self._told(number, label, digest))
        return digest
