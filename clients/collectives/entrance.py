"""By what a client is linked with other members of its groups: a door, while it has a group that may need one."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from broker.protocol.links import SECRET_BYTES, Reach
from broker.schedules import AUTO
from clients.collectives.door import Door, Meeting
from clients.collectives.ports import host_identity, listen, read_link_address
from clients.connection import environment

if TYPE_CHECKING:
    from clients.collectives.ways import Schedule

log = logging.getLogger(__name__)

T = TypeVar("T")


class Entrance:
    """The door of one client. The client's lock is held, or its loop is running, in every call."""

    def __init__(self, call: Callable[[Callable[[], None]], None]) -> None:
        """`call` calls a function under the client's lock, or on its loop."""
        self._call = call
        self._door: Door | None = None

    def reach(self, schedule: Schedule, local_host: str) -> Reach | None:
        """How other members reach this client; None when they cannot.

        Args:
            schedule: what the application asks for.
            local_host: the client's own address on the network to the broker; empty when it is on none.

        Raises:
            InvalidValue: $TENSORBUS_LINK_ADDRESS is malformed.
        """
        if not schedule.link_version:
            return None
        if self._door is None:
            wanted, ports = read_link_address(environment.link_address())
            host = wanted or local_host
            sock = listen(host, ports) if host else None
            if sock is None:
                return None
            try:
                self._door = Door(sock)
            except OSError as error:
                sock.close()
                log.warning("door.closed host=%s cause=%s: links between hosts are not used", host, error)
                return None
        secret = secrets.token_bytes(SECRET_BYTES)
        asked = str(schedule) if schedule.linked else AUTO
        return Reach(schedule.link_version, [self._door.address], secret, host_identity(), asked)

    def call(self, function: Callable[[T, Meeting], None], told: T, meeting: Meeting) -> None:
        """Calls a function of the client's about a meeting."""
        self._call(partial(function, told, meeting))

    def meet(self, meeting: Meeting) -> None:
        """Has the links of a meeting made."""
        if self._door is not None:
            self._door.meet(meeting)

    def cancel(self, meeting: Meeting) -> None:
        """The links of a meeting are not wanted any more."""
        if self._door is not None:
            self._door.cancel(meeting)

    def close(self) -> None:
        """Lets nobody in any more."""
        door, self._door = self._door, None
        if door is not None:
            door.close()
