"""Waking a thread that polls."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from broker.transport.descriptors import identity_of


class Wakeup:
    """A descriptor that is readable once somebody has called `set`. Any thread may call anything but `close`."""

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.identity = identity_of(self.descriptor)
        """What other processes know it by; 0 where that cannot be."""
        self._poller = select.poll()
        self._poller.register(self.descriptor, select.POLLIN)

    def set(self) -> None:
        """Wakes whoever polls now or next; nothing once it is closed."""
        if self.descriptor >= 0:
            os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        """Takes the wake-up note back."""
        if self.descriptor >= 0:
            with suppress(BlockingIOError):
                os.eventfd_read(self.descriptor)

    def wait(self, timeout_s: float) -> None:
        """Waits until `set` is called, or the time is over."""
        if self._poller.poll(timeout_s * 1000):
            self.clear()

    def close(self) -> None:
        """Gives the descriptor back; nobody may be waiting."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
