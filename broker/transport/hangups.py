"""Which connections have failed: for event loops that say so once and then never again.

When a peer resets a connection, the descriptor becomes readable with an error, and what came before can still be read.
libuv then stops polling it (https://github.com/libuv/libuv/issues/3796), so under uvloop the reader is called one last
time and the rest lies there: neither read, nor is the end seen, until something is sent. Whoever reads piece by piece
therefore asks now and then. One system call asks for all connections.
"""

from __future__ import annotations

import select
from typing import Generic, TypeVar

T = TypeVar("T")


class Hangups(Generic[T]):
    """Descriptors, each with its owner, that may have failed or be closed at both ends."""

    def __init__(self) -> None:
        self._owners: dict[int, T] = {}
        self._poll = select.poll()

    def add(self, descriptor: int, owner: T) -> None:
        """Watches a descriptor, until it is removed, which has to be before it is closed."""
        self._owners[descriptor] = owner
        # No event is asked for: errors and hang-ups are always told.
        self._poll.register(descriptor, 0)

    def remove(self, descriptor: int) -> None:
        """Watches it no longer; nothing happens if it was not watched."""
        if self._owners.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    @property
    def owners(self) -> list[T]:
        """Of all, in the order in which they were added."""
        return list(self._owners.values())

    def __len__(self) -> int:
        return len(self._owners)

    def find(self) -> list[T]:
        """The owners of those that have failed by now. There may still be something to read."""
        return [self._owners[descriptor] for descriptor, _ in self._poll.poll(0)]

    def __repr__(self) -> str:
        return f"<Hangups of {len(self._owners)} descriptors>"
