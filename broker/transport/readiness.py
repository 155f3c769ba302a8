"""A descriptor that is readable while something is to be done: an event of ours, or another descriptor.

UCX's carriers tell over a socket, which is empty once it was read. ZeroMQ's descriptor (ZMQ_FD) tells of changes, not
of states: it stops being readable when somebody asks for the socket's events, whatever is left to be read. What is left
is told by the event. An epoll holds both, and is what others wait on.
"""

from __future__ import annotations

import os
import select


class Readiness:
    """An epoll of an eventfd and of included descriptors. Its owner calls from one thread at a time."""

    __slots__ = ("_epoll", "_event", "_set")

    def __init__(self) -> None:
        """Raises:
        OSError: no descriptor is left.
        """
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._epoll = select.epoll()
            self._epoll.register(self._event, select.EPOLLIN)
        except OSError:
            os.close(self._event)
            raise
        self._set = False

    def fileno(self) -> int:
        """The descriptor to wait on, -1 after close."""
        return -1 if self._epoll.closed else self._epoll.fileno()

    def include(self, descriptor: int) -> None:
        """Is readable also while another descriptor is."""
        self._epoll.register(descriptor, select.EPOLLIN)

    def exclude(self, descriptor: int) -> None:
        """Does not look at an included descriptor any more."""
        self._epoll.unregister(descriptor)

    def set(self, wanted: bool = True) -> None:
        """Is readable until `set(False)`."""
        if self._set != wanted and self._event >= 0:
            self._set = wanted
            if wanted:
                os.eventfd_write(self._event, 1)
            else:
                os.eventfd_read(self._event)

    def close(self) -> None:
        """Gives the descriptors back; a second call does nothing."""
        if self._event >= 0:
            os.close(self._event)
            self._event = -1
            self._epoll.close()
