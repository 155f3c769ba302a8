"""A lock that is held while a device works, for as long as that takes."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

from broker.errors import InvalidValue


class OwnedLock:
    """As threading.Lock, but a thread that has it is told so in place of waiting for itself."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def taken(self) -> AbstractContextManager[object]:
        """What takes it for a `with` statement, at once: there no handler of a signal leaves it locked.

        Raises:
            InvalidValue: this thread has it already.
        """
        if self._lock._is_owned():  # type: ignore[attr-defined]
            raise InvalidValue(
                "call of a client", "in a signal handler or __del__", "has interrupted another one on this thread, "
                "for which it would have to wait: set a flag there, and call when that has returned",
            )  # fmt: skip
        return self._lock
