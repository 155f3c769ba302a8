"""Which processes are on their way out, before their connections are closed.

When a process is killed, the kernel first gives its memory back, page by page, and then closes its descriptors. Of many
GiB in small pages that takes seconds, in which its peers see nothing. But from the first moment on each of its threads
has PF_EXITING among its flags (proc(5), /proc/pid/stat), and runs none of the program any more.

That the number of a process may be given to another one does no harm: as long as the process lives that has connected,
the number is its own.
"""

from __future__ import annotations

import os
from typing import Final

from broker.limits import ENDING_THREADS_MAX

_EXITING: Final = 0x4
"""PF_EXITING of the kernel's include/linux/sched.h."""
_FLAGS, _THREADS = 6, 17
"""Where flags and the number of threads are in the line, after the name, which may hold spaces and brackets."""

_LINE_BYTES_MAX: Final = 4096
"""Some 50 numbers."""


def sees_processes() -> bool:
    """Whether /proc has the numbers by which this process knows others: not if it is another namespace's."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def is_ending(process: int, proc: str = "/proc") -> bool:
    """Whether a process is ending: all of its threads are, and none of them can begin another one.

    The first thread alone says nothing: it may end, and the others live on. What cannot be read, as the processes of
    others where /proc hides them, or changes at this very moment, is not ending; ask again later.

    Args:
        process: its number, as this process knows it.
        proc: where the system tells of processes.
    """
    folder = f"{proc}/{process}/task"
    try:
        first = _line(folder, process)
        if not _is_exiting(first) or int(first[_THREADS]) > ENDING_THREADS_MAX:
            return False
        threads = _threads(folder)
        if not all(_is_exiting(_line(folder, thread)) for thread in threads):
            return False
        # One that has begun another thread and ended, while they were looked at, has changed one of these.
        return _threads(folder) == threads and int(_line(folder, process)[_THREADS]) == len(threads)
    except (OSError, ValueError, IndexError):
        return False


def _threads(folder: str) -> set[int]:
    return {int(name) for name in os.listdir(folder)}


def _line(folder: str, thread: int) -> list[bytes]:
    """What the system tells of a thread, from its state on; as Path.read_bytes, which takes twice as long."""
    descriptor = os.open(f"{folder}/{thread}/stat", os.O_RDONLY)
    try:
        told = os.read(descriptor, _LINE_BYTES_MAX)
    finally:
        os.close(descriptor)
    return told.rpartition(b")")[2].split(None, _THREADS + 1)


def _is_exiting(line: list[bytes]) -> bool:
    return bool(int(line[_FLAGS]) & _EXITING)
