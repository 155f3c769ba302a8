"""What the figures of a run depend on besides the code: the machine, the versions, and who else used the processors."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from bench.contestant import Contestant

Facts = dict[str, str | int | float]

STAT: Final = Path("/proc/stat")
IDLE_COLUMNS: Final = (3, 4)
"""idle and iowait in the first line of /proc/stat (proc_stat(5))."""


def facts(contestants: Sequence[Contestant] = ()) -> Facts:
    """The machine and the versions, those of the contestants' servers and clients included."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(Path("/proc/cpuinfo").read_text(encoding="utf-8")),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": metadata.version("numpy"),
        "uvloop": metadata.version("uvloop"),
        **{name: version for contestant in contestants for name, version in contestant.versions().items()},
    }


def processor(cpuinfo: str) -> str:
    """The processor's name, as the kernel gives it."""
    names = (line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    return next(names, "unknown")


def busy_s(stat: str) -> float:
    """Processor time that all processes of the machine, and of its neighbours on the host, have used since it started.

    Args:
        stat: the text of /proc/stat.
    """
    # Guests are counted in user and nice already, so the first eight columns are everything.
    ticks = [int(text) for text in stat.splitlines()[0].split()[1:9]]
    return (sum(ticks) - sum(ticks[column] for column in IDLE_COLUMNS)) / os.sysconf("SC_CLK_TCK")


def processor_ns(pid: int) -> int:
    """Processor time that all threads of a process have taken, in nanoseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def own_s() -> float:
    """Processor time of this process and of its children that have ended."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


class Neighbours:
    """How much of the processors others have used since this was made; beside much of that, figures mean little.

    Args:
        workers_s: processor time of the workers that have ended, which are no children of this process.
    """

    def __init__(self, workers_s: Callable[[], float]) -> None:
        self._workers_s = workers_s
        self._began = time.monotonic()
        self._others_s = self._now_s()

    def _now_s(self) -> float:
        return busy_s(STAT.read_text(encoding="utf-8")) - own_s() - self._workers_s()

    def cores(self) -> float:
        """Cores that others have kept busy, on average."""
        return max(0.0, (self._now_s() - self._others_s) / (time.monotonic() - self._began))
