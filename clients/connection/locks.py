"""A client's lock: taken for every message, and held for microseconds.

Compiled, it is what lies under threading.Lock, without the arguments that this takes apart at each call. Whoever has to
wait for it gives Python's lock up meanwhile, and no signal ends that.
"""

from __future__ import annotations

import threading
from types import TracebackType

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython


class Lock:
    """As threading.Lock, but for time-outs. A child after fork makes its own."""

    __slots__ = ("_held", "_lock", "_under")

    def __init__(self) -> None:
        if cython.compiled:
            self._under: cython.p_void = _allocated()  # type: ignore[name-defined]  # noqa: F821
        else:
            self._lock = threading.Lock()
        self._held = False

    def acquire(self, blocking: bool = True) -> bool:
        """Takes it; says whether it has, which is always so for who waits."""
        if not cython.compiled:
            return self._lock.acquire(blocking)
        if not _taken(self._under, blocking):  # type: ignore[name-defined]  # noqa: F821
            return False
        self._held = True
        return True

    def release(self) -> None:
        """Gives it back.

        Raises:
            RuntimeError: nobody has it.
        """
        if not cython.compiled:
            self._lock.release()
            return
        if not self._held:
            raise RuntimeError("release unlocked lock")
        self._held = False
        _given_back(self._under)  # type: ignore[name-defined]  # noqa: F821

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def __dealloc__(self) -> None:
        if cython.compiled:
            _freed(self._under, self._held)  # type: ignore[name-defined]  # noqa: F821
