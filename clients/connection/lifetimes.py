"""What becomes of a process's synchronous clients when it ends, and in a child that it forks."""

from __future__ import annotations

import atexit
import os
import time
from typing import Final, Protocol
from weakref import WeakSet

EXIT_TIMEOUT_S: Final = 1.0


class HasEnd(Protocol):
    """What is open until somebody closes it."""

    def abandon(self) -> None:
        """In a forked child: lets go of the parent's connection without a word on it."""
        ...

    def close(self, reason: str, timeout_s: float) -> None:
        """Closes in order: what is queued still leaves."""
        ...


class HasLocks(Protocol):
    """What has locks of its own, of which another thread of the parent may have had one when it forked."""

    def forked(self) -> None:
        """In a forked child, before the clients are abandoned: nobody there gives a lock back."""
        ...


FORKED: Final = "this client belongs to the parent process; connect again after fork"
open_drivers: Final[set[HasEnd]] = set()
with_locks: Final[WeakSet[HasLocks]] = WeakSet()


def _abandon_all() -> None:
    """A forked child shares its parent's connections, and none of its threads: the clients are not the child's."""
    for each in list(with_locks):
        each.forked()
    for driver in list(open_drivers):
        driver.abandon()
    open_drivers.clear()


os.register_at_fork(after_in_child=_abandon_all)


@atexit.register
def _close_all() -> None:
    """A program that ends without closing its clients loses nothing that it has published.

    However many they are, it does not wait for longer than for one: their broker may be what does not answer.
    """
    end_s = time.monotonic() + EXIT_TIMEOUT_S
    for driver in list(open_drivers):
        driver.close("the program ended", max(0.0, end_s - time.monotonic()))
