"""What of this machine and its Python matters to tensorbus: each thing as a finding, with what would change it."""

from __future__ import annotations

import os
import platform
import resource
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from broker.limits import LISTEN_BACKLOG, MIB
from broker.measuring.modules import compiled_modules, hot_modules

SOCKET_BYTES_MIN: Final = 4 * MIB
"""What a 10 Gbit/s link carries in 3 ms: below it, one connection cannot fill the link over a few hops."""
DESCRIPTORS_MIN: Final = 4096
CORES_MIN: Final = 4
"""The broker, the ranks and their threads spin and sleep; with fewer they take turns."""


class State(StrEnum):
    """Of a finding."""

    INFO = "info"
    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at.

    Attributes:
        check: what, in a word or two.
        state: how it is.
        text: what was found.
        fix: the command that changes it, or what to do.
        values: numbers, by name with their unit.
    """

    check: str
    state: State
    text: str
    fix: str = ""
    values: dict[str, float] = {}


def versions() -> list[Finding]:
    """The library, Python and what it runs on."""
    compiled, hot = compiled_modules(), hot_modules()
    of = f" of {hot}" if hot else ""
    state, fix = State.OK, ""
    if compiled < max(hot, 1):
        state, fix = State.WARNING, "python setup.py build_ext --inplace  (in the source tree; it needs Cython and gcc)"
    return [
        Finding(
            "version",
            State.INFO,
            f"tensorbus {_version('tensorbus')}, Python {platform.python_version()}, numpy {_version('numpy')}, "
            f"msgspec {_version('msgspec')}, uvloop {_version('uvloop')}, {platform.system()} {platform.release()}",
        ),
        Finding(
            "compiled modules",
            state,
            f"{compiled}{of} compiled" + ("" if state is State.OK else ": small messages are slower, no shm schedule"),
            fix,
            {"compiled": compiled, "all": hot},
        ),
    ]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def kernel_settings(proc: Path = Path("/proc/sys"), kernel: Path = Path("/sys/kernel/mm")) -> list[Finding]:
    """Settings of the system that are worth changing, or that are as they should be.

    Args:
        proc: where the system has its settings.
        kernel: where it has those of huge pages.
    """
    return [
        *(_socket_buffer(proc, name) for name in ("rmem_max", "wmem_max")),
        _at_least(proc, "net/core/somaxconn", LISTEN_BACKLOG, "ranks that connect at the same moment"),
        _overcommit(proc),
        _huge_pages(kernel),
        _descriptors(),
        _cores(),
    ]


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _socket_buffer(proc: Path, name: str) -> Finding:
    return _at_least(proc, f"net/core/{name}", SOCKET_BYTES_MIN, "bytes of a socket's buffer, for other hosts over tcp")


def _at_least(proc: Path, name: str, least: int, what: str) -> Finding:
    check, text = name.replace("/", "."), _read(proc / name)
    if text is None or not text.isdecimal():
        return Finding(check, State.INFO, "cannot be read here")
    values = {"value": float(text), "advised": float(least)}
    if int(text) >= least:
        return Finding(check, State.OK, f"{text} {what}", "", values)
    return Finding(check, State.WARNING, f"{text} {what}: less than {least}", f"sudo sysctl -w {check}={least}", values)


def _overcommit(proc: Path) -> Finding:
    text = _read(proc / "vm/overcommit_memory")
    if text == "2":
        words = "2: memory that is only reserved counts as used, and arenas of shared memory reserve much"
        return Finding("vm.overcommit_memory", State.WARNING, words, "sudo sysctl -w vm.overcommit_memory=0")
    return Finding("vm.overcommit_memory", State.OK if text else State.INFO, text or "cannot be read here")


def _huge_pages(kernel: Path) -> Finding:
    path = kernel / "transparent_hugepage/shmem_enabled"
    text = _read(path)
    if text is None:
        return Finding("huge pages", State.INFO, "the system has none for shared memory")
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen in ("never", "deny"):
        words = f"shmem_enabled is {chosen}: shared memory takes a fault for every 4 KiB at first use"
        return Finding("huge pages", State.WARNING, words, f"echo advise | sudo tee {path}")
    return Finding("huge pages", State.OK, f"shmem_enabled is {chosen}")


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{soft} open files, at most {hard if hard != resource.RLIM_INFINITY else 'any number'}"
    values = {"soft": float(soft), "hard": float(hard)}
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS_MIN:
        words = f"{text}: a broker needs one for each session and each arena"
        return Finding("RLIMIT_NOFILE", State.WARNING, words, f"ulimit -Hn {DESCRIPTORS_MIN}  (as root)", values)
    return Finding("RLIMIT_NOFILE", State.OK, text, "", values)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    values = {"cores": float(cores)}
    if cores < CORES_MIN:
        words = f"{cores}: a broker and ranks take turns, and every figure here depends on who else is at work"
        return Finding("processors", State.WARNING, words, "more processors, or fewer ranks on this host", values)
    return Finding("processors", State.OK, str(cores), "", values)
