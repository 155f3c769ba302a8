"""Reading files that people name: within bounds, and nothing that is no file.

`/dev/zero` has no end, and whoever opens a pipe waits for its other end; a broker that reads files again would stand
still meanwhile.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_PART_BYTES: Final = 1 << 16
_KINDS: Final = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def read_file(path: Path, bytes_max: int, *, pipe: bool = False) -> bytes:
    """All of a file.

    Args:
        path: of the file.
        bytes_max: the most that it may have.
        pipe: whether it may be one, which can be read once: for a shell's `<(...)`. Opening one waits for its writer.

    Raises:
        OSError: it cannot be opened or read.
        ValueError: it is no file, or longer; in words that go on from its name.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if pipe else os.O_NONBLOCK))
    try:
        _check(os.fstat(descriptor).st_mode, pipe=pipe)
        read = bytearray()
        while part := os.read(descriptor, _PART_BYTES):
            read += part
            if len(read) > bytes_max:
                raise ValueError(f"has more than {bytes_max} bytes, which are the most")
        return bytes(read)
    finally:
        os.close(descriptor)


def check_file(path: Path) -> None:
    """Refuses what only looks like a file, before somebody reads it who does not ask.

    Raises:
        OSError: it is not there, or cannot be looked at.
        ValueError: it is none.
    """
    _check(os.stat(path).st_mode, pipe=False)


def _check(mode: int, *, pipe: bool) -> None:
    if stat.S_ISREG(mode) or (pipe and stat.S_ISFIFO(mode)):
        return
    raise ValueError(f"is {next((word for holds, word in _KINDS if holds(mode)), 'something else')}, and no file")
