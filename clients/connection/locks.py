"""A client's lock: taken for every message, and held for microseconds.

Compiled, nobody comes in between two steps of it, because a compiled function keeps Python's lock from beginning to
end. So whether it is held is a flag. The system is asked only by who has to wait, who gives Python's lock up
meanwhile and is ended by no signal, and by who gives it back to them:

    release: not held; if somebody waits and was not rung for, ring      acquire: while held, sleep until it rings; held

One ring is under way at a time. Whoever it wakes may find the lock taken by somebody who was quicker, and sleeps again.
"""

from __future__ import annotations

import _thread
import sys
import threading
from types import TracebackType
from typing import Final

from broker.errors import InvalidValue

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

UNBROKEN: Final = bool(cython.compiled) and getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether no other thread can run in the middle of a compiled function that calls nothing written in Python."""
_UNBROKEN = UNBROKEN


def _interrupted() -> InvalidValue:
    return InvalidValue(
        "call of a client", "in a signal handler or __del__", "has interrupted another one on this thread, for which "
        "it would have to wait: set a flag there, and call when that has returned",
    )  # fmt: skip


class Lock:
    """As threading.Lock, but for time-outs. A child after fork makes its own."""

    __slots__ = ("_bell", "_held", "_lock", "_owner", "_rung", "_thread", "_waiting")

    def __init__(self) -> None:
        if _UNBROKEN:
            self._bell: cython.p_void = _silent_bell()  # type: ignore[name-defined]  # noqa: F821
        else:
            self._lock = threading.Lock()
            self._owner = 0
        self._held = self._rung = False
        self._thread = 0
        self._waiting = 0

    def acquire(self, blocking: bool = True) -> bool:
        """Takes it; says whether it has, which is always so for who waits.

        Raises:
            InvalidValue: this thread has it already, and would wait for itself.
        """
        if not _UNBROKEN:
            if not self._lock.acquire(blocking=False):
                if not blocking:
                    return False
                if self._owner == threading.get_ident():
                    raise _interrupted()
                self._lock.acquire()
            self._owner = threading.get_ident()
            return True
        while self._held:
            if not blocking:
                return False
            if self._thread == _this_thread():  # type: ignore[name-defined]  # noqa: F821
                raise _interrupted()
            self._waiting += 1
            _sleep(self._bell)  # type: ignore[name-defined]  # noqa: F821
            self._waiting -= 1
            self._rung = False
        self._held = True
        self._thread = _this_thread()  # type: ignore[name-defined]  # noqa: F821
        return True

    def release(self) -> None:
        """Gives it back.

        Raises:
            RuntimeError: nobody has it.
        """
        if not _UNBROKEN:
            self._owner = 0
            self._lock.release()
            return
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False
        if self._waiting and not self._rung:
            self._rung = True
            _ring(self._bell)  # type: ignore[name-defined]  # noqa: F821

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __dealloc__(self) -> None:
        if cython.compiled:
            _freed(self._bell, self._rung)  # type: ignore[name-defined]  # noqa: F821


class Condition:
    """As threading.Condition, over a Lock.

    That one is written in Python, where a signal's exception may come when it has given the lock back, or before it
    has taken it again: whoever has waited would leave without it, and give back what is somebody else's by then.
    """

    __slots__ = ("_lock", "_waiting")

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self._waiting: list[_thread.LockType] = []

    def wait(self, timeout_s: float | None = None) -> None:
        """Gives the lock up until `notify_all`, or until the time is over. The lock is held, also afterwards, and also
        when a signal's handler raises."""
        if _UNBROKEN:
            _heed_signals()  # type: ignore[name-defined]  # noqa: F821
        waiter = _thread.allocate_lock()
        waiter.acquire()
        self._waiting.append(waiter)
        self._lock.release()
        try:
            waiter.acquire(True, -1.0 if timeout_s is None else max(0.0, timeout_s))
        finally:
            self._lock.acquire()
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def notify_all(self) -> None:
        """Wakes all who wait. The lock is held."""
        while self._waiting:
            # Released before it is taken out, or one that a signal's handler keeps from going on is never woken.
            if self._waiting[-1].locked():
                self._waiting[-1].release()
            self._waiting.pop()
