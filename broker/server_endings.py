"""Members whose processes are ending, found before their connections are closed.

A process that is killed closes its connection only when the kernel has given its memory back, which takes seconds where
it is large (broker/transport/endings.py). Where the others wait for it in a collective, so long is too long: so while
an operation stands still, the processes of its group's members are looked at. When nothing does, nothing is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from broker.ids import SessionId
from broker.limits import PROCESSES_AT_ONCE
from broker.state.broker_state import BrokerState
from broker.transport.endings import is_ending, sees_processes


class FromProcess(Protocol):
    """A connection; see broker.transport.base."""

    @property
    def peer_process(self) -> int:
        """The process at the other end; 0 where nobody knows."""
        ...


class Linked(Protocol):
    """What a session has."""

    @property
    def connection(self) -> FromProcess:
        """To its client."""
        ...


T = TypeVar("T", bound=Linked)


class Endings(Generic[T]):
    """Looks at the processes of one server's members."""

    def __init__(
        self,
        state: BrokerState,
        links: Mapping[SessionId, T],
        is_ending: Callable[[int], bool] = is_ending,
    ) -> None:
        """Args:
        state: whose groups.
        links: what each session has.
        is_ending: whether a process is.
        """
        self._state = state
        self._links = links
        self._is_ending = is_ending
        self._last = SessionId(0)
        """The session whose process was looked at last."""

    def find(self, now_ns: int) -> list[T]:
        """Members for whom others wait in vain; of many, some are looked at each time, in turns."""
        waiting = {
            record.id
            for tenant in self._state.tenants.values()
            for record in tenant.groups.standing_still(now_ns)
            if record.id in self._links
        }
        if not waiting or not sees_processes():
            return []
        turns = sorted(waiting, key=lambda session: (session <= self._last, session))[:PROCESSES_AT_ONCE]
        self._last = turns[-1]
        links = [self._links[session] for session in turns]
        return [link for link in links if (process := link.connection.peer_process) and self._is_ending(process)]

    def __repr__(self) -> str:
        return f"<Endings last={self._last}>"
