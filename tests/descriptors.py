"""What this process has open.

Threads of earlier tests may still be closing theirs. So a test holds a number against the one before: there may be
fewer now, and it never expects just as many. Those of a broker may be reading a file, or about to close one.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import suppress

PATIENCE_S = 60.0


def opened() -> list[str]:
    """What each descriptor is, such as a file's path or `socket:[1234]`."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        # The one with which the folder was read is gone, and so may others be.
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def nothing_stays_opened(before: list[str]) -> bool:
    """Whether only what was open before is open, at once or when other threads have closed theirs."""
    end_s = time.monotonic() + PATIENCE_S
    while Counter(opened()) - Counter(before):
        if time.monotonic() >= end_s:
            return False
        os.sched_yield()
    return True
