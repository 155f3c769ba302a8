"""A lock that is held while a device works, for as long as that takes."""

from __future__ import annotations

import threading
from types import TracebackType

from broker.errors import InvalidValue


class OwnedLock:
    """As threading.Lock, but a thread that has it is told so in place of waiting for itself."""

    __slots__ = ("_lock", "_owner")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = 0

    def __enter__(self) -> None:
        """Takes it.

        Raises:
            InvalidValue: this thread has it already.
        """
        if not self._lock.acquire(blocking=False):
            if self._owner == threading.get_ident():
                raise InvalidValue(
                    "call of a client", "in a signal handler or __del__", "has interrupted another one on this thread, "
                    "for which it would have to wait: set a flag there, and call when that has returned",
                )  # fmt: skip
            self._lock.acquire()
        self._owner = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner = 0
        self._lock.release()
