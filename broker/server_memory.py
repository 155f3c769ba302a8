"""How much memory the broker uses, and how much there is for it.

Used is what is its own: resident pages (/proc/self/statm) without shared ones, which are those of publishers on this
host. What there is is what it uses and what the machine could still give, or the control groups that it is in, or its
own limits (ulimit -v and -d), whatever is least; or what the configuration says, if that is less.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from typing import Final

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_FILE_BYTES_MAX: Final = 1 << 16
"""More than any of these files has."""
_GROUPS: Final = "/sys/fs/cgroup"
_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""The limit, the use, and what of that can be given back at once: of control groups of version 2 and 1."""
_UNLIMITED_BYTES: Final = 1 << 62
"""More than there ever is. Where there is no limit, version 2 says max, and version 1 the most that it can count."""


_LIMITS: Final = ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5))
"""Of a process, and which number in statm counts against it: all that is mapped, and what of that is data."""


class MemoryGauge:
    """Reads it from the system. `close` lets go of the file that it keeps open."""

    def __init__(self, configured_bytes: int) -> None:
        """`configured_bytes`: what the broker may use at most, whatever there is."""
        self._configured_bytes = configured_bytes
        # Kept open, because when the process is out of descriptors there is none to open it with.
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._groups = list(_control_groups())

    def used_bytes(self) -> int:
        """What the process has resident of its own."""
        _, resident, shared, *_ = os.pread(self._statm, 256, 0).split()
        return (int(resident) - int(shared)) * PAGE_BYTES

    def limit_bytes(self, used_bytes: int) -> int:
        """What it may use at most at this moment, given what it uses.

        Raises:
            OSError: the system does not say; the process may be out of descriptors.
        """
        available = [_available_bytes(), *(_left_of(folder, names) for folder, names in self._groups)]
        sizes = os.pread(self._statm, 256, 0).split()
        for limit, place in _LIMITS:
            most_bytes, _ = resource.getrlimit(limit)
            if most_bytes != resource.RLIM_INFINITY:
                available.append(most_bytes - int(sizes[place]) * PAGE_BYTES)
        return min(self._configured_bytes, used_bytes + max(0, min(available)))

    def close(self) -> None:
        """A second call does nothing."""
        descriptor, self._statm = self._statm, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __repr__(self) -> str:
        return f"<MemoryGauge groups={[folder for folder, _ in self._groups]}>"


def give_back() -> None:
    """Returns to the system what was freed and lies in between (malloc_trim(3)), where there is such a thing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _available_bytes() -> int:
    available = _number_of("MemAvailable:", _told_by("/proc/meminfo"))
    return _UNLIMITED_BYTES if available is None else available * 1024


def _told_by(file: str) -> str:
    """What the system tells in a file. Messages wait for each of these calls, and there are no others."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.fsdecode(os.read(descriptor, _FILE_BYTES_MAX))
    finally:
        os.close(descriptor)


def _number_of(name: str, text: str) -> int | None:
    """What stands behind a name at the beginning of a line; None where there is no such line."""
    start = f"\n{text}".find(f"\n{name} ")
    return None if start < 0 else int(text[start + len(name) :].split(maxsplit=1)[0])


def _control_groups() -> Iterator[tuple[str, tuple[str, str, str]]]:
    """The folders of the groups whose limits hold for this process."""
    try:
        memberships = _told_by("/proc/self/cgroup").splitlines()
    except FileNotFoundError:
        return
    for line in memberships:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (f"{_GROUPS}/memory", _FILES[1]) if controllers else (_GROUPS, _FILES[0])
        levels = [level for level in place.split("/") if level]
        # In a container the path may be that of the host, where nothing is: then its own group is the root.
        for depth in range(len(levels), -1, -1):
            folder = "/".join((root, *levels[:depth]))
            if os.path.exists(f"{folder}/{names[0]}") and os.path.exists(f"{folder}/{names[1]}"):
                yield folder, names


def _left_of(folder: str, names: tuple[str, str, str]) -> int:
    """What a control group still gives; very much where it has no limit."""
    limit_file, use_file, cache = names
    told = _told_by(f"{folder}/{limit_file}").strip()
    limit = _UNLIMITED_BYTES if told == "max" else int(told)
    if limit >= _UNLIMITED_BYTES:
        return _UNLIMITED_BYTES
    cached = _number_of(cache, _told_by(f"{folder}/memory.stat"))
    return limit - int(_told_by(f"{folder}/{use_file}")) + (cached or 0)
