"""Which processes are ending: by those that are, and by what the system would tell of others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.limits import ENDING_THREADS_MAX
from broker.transport.endings import is_ending, sees_processes

EXITING, LIVING = 0x0040_0004, 0x0040_0140
FIRST = 77
FIRST_THREAD_ENDS = """
import ctypes, os, sys, threading, time

def live_on(first):
    while open(f"/proc/self/task/{first}/stat").read().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    print("alone", flush=True)
    sys.stdin.read()
    os._exit(0)

threading.Thread(target=live_on, args=(threading.get_native_id(),)).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""


@contextmanager
def process(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """One that says a line when it is so far, and ends with its standard input."""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline()
            yield started
        finally:
            started.kill()


def end(started: subprocess.Popen[bytes]) -> None:
    """Kills it, and lets the system still tell of it."""
    started.kill()
    os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)


def told(proc: Path, flags: Mapping[int, int], threads: int | None = None, name: str = "python") -> str:
    """A folder in which the system tells of the process FIRST; returns where."""
    for thread, of_it in flags.items():
        folder = proc / str(FIRST) / "task" / str(thread)
        folder.mkdir(parents=True)
        number = len(flags) if threads is None else threads
        line = f"{thread} ({name}) S 1 1 1 0 -1 {of_it} 0 0 0 0 0 0 0 0 20 0 {number} 0 100 0 0\n"
        (folder / "stat").write_text(line)
    return str(proc)


def test_a_process_that_lives_is_not_ending() -> None:
    assert sees_processes()
    assert not is_ending(os.getpid())


def test_a_process_that_was_killed_is_ending_until_the_system_tells_of_it_no_more() -> None:
    with process("print(1, flush=True); input()") as started:
        assert not is_ending(started.pid)
        end(started)
        assert is_ending(started.pid)
        started.wait()
        assert not is_ending(started.pid)


def test_a_process_whose_first_thread_has_ended_lives_on() -> None:
    with process(FIRST_THREAD_ENDS) as started:
        line = Path(f"/proc/{started.pid}/stat").read_bytes().rpartition(b")")[2].split()
        assert int(line[6]) & EXITING & ~LIVING
        assert not is_ending(started.pid)
        end(started)
        assert is_ending(started.pid)


@pytest.mark.parametrize("name", ["python", "a) S 1 (b", ")"])
def test_all_threads_have_to_be_ending(tmp_path: Path, name: str) -> None:
    assert is_ending(FIRST, told(tmp_path / "all", {FIRST: EXITING, 78: EXITING}, name=name))
    assert not is_ending(FIRST, told(tmp_path / "none", {FIRST: LIVING, 78: LIVING}, name=name))
    assert not is_ending(FIRST, told(tmp_path / "first", {FIRST: EXITING, 78: LIVING}, name=name))
    assert not is_ending(FIRST, told(tmp_path / "other", {FIRST: LIVING, 78: EXITING}, name=name))


def test_a_thread_that_was_not_seen_may_live(tmp_path: Path) -> None:
    assert not is_ending(FIRST, told(tmp_path, {FIRST: EXITING, 78: EXITING}, threads=3))


def test_a_process_with_very_many_threads_is_asked_again_later(tmp_path: Path) -> None:
    most = {FIRST + each: EXITING for each in range(ENDING_THREADS_MAX)}
    assert is_ending(FIRST, told(tmp_path / "most", most))
    assert not is_ending(FIRST, told(tmp_path / "more", {**most, 9999: EXITING}))


def test_what_cannot_be_read_is_not_ending(tmp_path: Path) -> None:
    assert not is_ending(FIRST, told(tmp_path, {}))
    folder = tmp_path / str(FIRST) / "task" / str(FIRST)
    folder.mkdir(parents=True)
    for told_of_it in (b"", b"77 (python)", b"77 (python) Z x x x x x x x"):
        (folder / "stat").write_bytes(told_of_it)
        assert not is_ending(FIRST, str(tmp_path))


def test_the_numbers_of_another_namespace_mean_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1 << 30)
    assert not sees_processes()
