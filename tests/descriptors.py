"""What this process has open.

Threads of earlier tests may still be closing theirs. So a test holds a number against the one before: there may be
fewer now, and it never expects just as many.
"""

from __future__ import annotations

import os
from contextlib import suppress


def opened() -> list[str]:
    """What each descriptor is, such as a file's path or `socket:[1234]`."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        # The one with which the folder was read is gone, and so may others be.
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found
