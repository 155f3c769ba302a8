"""What the clients of both kinds know of a broker's workers: who has which, and the parts of a merged subscription."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from broker.topics.owners import HOME, owner, owners
from clients.reading.messages import Message
from clients.reading.subscription_state import SubscriptionState


class Part(Protocol):
    """A subscription at one worker."""

    _state: SubscriptionState

    @property
    def dropped(self) -> int: ...

    @property
    def pending(self) -> int: ...


class Inner(Protocol):
    """A client of one worker."""

    @property
    def connected(self) -> bool: ...


P = TypeVar("P", bound=Part)
C = TypeVar("C", bound=Inner)


class Parts(Generic[P]):
    """The parts of a subscription; each has its turn."""

    def __init__(self, parts: Sequence[P]) -> None:
        self._parts = parts
        self._next = 0

    def __iter__(self) -> Iterator[P]:
        return iter(self._parts)

    @property
    def dropped(self) -> int:
        """Messages that the overflow policy has dropped, in the broker or here."""
        return sum(part.dropped for part in self._parts)

    @property
    def pending(self) -> int:
        """Messages that have reached this process and were not taken."""
        return sum(part.pending for part in self._parts)

    def take(self, take_from: Callable[[P], Message | None]) -> Message | None:
        """The next message that is here: of whichever part has one, beginning behind the one that gave the last.

        Args:
            take_from: takes one of a part, if it has one.
        """
        first, count = self._next, len(self._parts)
        for offset in range(count):
            place = (first + offset) % count
            message = take_from(self._parts[place])
            if message is not None:
                self._next = (place + 1) % count
                return message
        return None

    def check_open(self) -> None:
        """Raises when a part will get no more messages: without it this would not be all of the topics."""
        for part in self._parts:
            if part._state.closed is not None:
                raise part._state.closed


class Inners(Generic[C]):
    """The clients of the workers, as far as they were needed so far.

    Attributes:
        home: of the first worker, which every client has.
        workers: how many there are.
    """

    def __init__(self, home: C, workers: int) -> None:
        self.home = home
        self.workers = workers
        self._clients: list[C | None] = [home, *([None] * (workers - 1))]

    def __getitem__(self, worker: int) -> C | None:
        return self._clients[worker]

    def __setitem__(self, worker: int, client: C) -> None:
        self._clients[worker] = client

    def __iter__(self) -> Iterator[C]:
        """Those that there are now; one that is made meanwhile is not among them."""
        return iter([client for client in self._clients if client is not None])

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment, with each worker that was needed so far."""
        return all(client.connected for client in self)

    def owner(self, name: str) -> int:
        """The worker of a topic or a group; the first one refuses what is no text."""
        return owner(name, self.workers) if isinstance(name, str) else HOME

    def owners(self, topic_filter: str) -> Sequence[int]:
        """The workers that may have topics that a filter matches; the first one refuses what is no text."""
        return owners(topic_filter, self.workers) if isinstance(topic_filter, str) else (HOME,)

    def __repr__(self) -> str:
        return f"workers={self.workers} {list(self)}"
