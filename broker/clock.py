"""What time it is. Compiled code that asks for every message gets it from the system itself."""

from __future__ import annotations

import time

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython


def monotonic_ns() -> int:
    """As time.monotonic_ns: nanoseconds of a clock that nobody sets."""
    if cython.compiled:
        return _now_ns(CLOCK_MONOTONIC)  # type: ignore[name-defined, no-any-return]  # noqa: F821
    return time.monotonic_ns()


def wall_ns() -> int:
    """As time.time_ns: nanoseconds since 1970."""
    if cython.compiled:
        return _now_ns(CLOCK_REALTIME)  # type: ignore[name-defined, no-any-return]  # noqa: F821
    return time.time_ns()
