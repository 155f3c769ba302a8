"""Whether a program has anything left with which it could read a subscription.

One that nobody can read any more would go on to be filled, and hold its publishers back for ever: of a `with` that an
exception came before, of a name that is given to another one, as when a cell of a notebook runs again.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING
from weakref import ref

if TYPE_CHECKING:
    from clients.reading.subscription_state import SubscriptionState


class Reader:
    """What a subscription without a handler keeps, and each job that was taken of it. With the last of them it goes."""

    __slots__ = ("__weakref__", "_state", "_unread")

    def __init__(self, state: SubscriptionState, unread: deque[SubscriptionState]) -> None:
        """Args:
        state: of the subscription.
        unread: where it is put when it can be read no more. Its client, which looks there on its tick, ends it.
        """
        self._state = state
        self._unread = unread
        state.reader = ref(self)

    def __del__(self) -> None:
        # On any thread, also on one that holds the client's lock.
        self._unread.append(self._state)
