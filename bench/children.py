"""A process with pipes to its standard input and output, whoever has started it.

It has a time limit: a timer, setitimer(2), that survives exec. The kernel ends a process whose time is up, whatever it
does. So pipes are read without time-outs; a process that is dead is an end of file. And the kernel ends it when its
parent is gone (PR_SET_PDEATHSIG), which survives exec too, as not every server ends at the limit's signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

ROOT: Final = Path(__file__).resolve().parent.parent
ERROR_LINES: Final = 5
ERROR_BYTES: Final = 4096
PR_SET_PDEATHSIG: Final = 1
"""prctl(2); the option's number is in linux/prctl.h."""
LIBC: Final = ctypes.CDLL(None)


class StepFailed(Exception):
    """A process of a step has ended without its result; the text has the end of what it wrote to standard error."""


class Process(Protocol):
    """What a child is, as subprocess.Popen is one."""

    @property
    def pid(self) -> int: ...

    def wait(self) -> int:
        """Its status once it has ended, negative for the signal that ended it; may be called again."""

    def kill(self) -> None:
        """Ends it, if it still runs and was not waited for."""


Start = Callable[[Sequence[int]], Process]
"""Starts a process, given the descriptors of its standard input, output and error."""


class Child:
    """A process with pipes to its standard input and output; what it writes to standard error is kept for a failure."""

    def __init__(self, name: str, start: Start) -> None:
        self.name = name
        self._errors = os.memfd_create("standard-error")
        its_input, to_it = os.pipe()
        from_it, its_output = os.pipe()
        self._to_it = to_it
        self._from_it = os.fdopen(from_it, encoding="utf-8")
        try:
            self._process = start((its_input, its_output, self._errors))
        except BaseException:
            self._close()
            raise
        finally:
            os.close(its_input)
            os.close(its_output)

    @property
    def process_id(self) -> int:
        """For a profiler, or to read its statistics."""
        return self._process.pid

    def line(self) -> str:
        """The next line of its standard output, without its end.

        Raises:
            StepFailed: it has ended.
        """
        line = self._from_it.readline()
        if not line:
            raise StepFailed(self._epitaph())
        return line.rstrip("\n")

    def say(self, text: str) -> None:
        """Writes a line to its standard input.

        Raises:
            StepFailed: it has ended.
        """
        try:
            os.write(self._to_it, text.encode() + b"\n")
        except BrokenPipeError as error:
            raise StepFailed(self._epitaph()) from error

    def _epitaph(self) -> str:
        status = self._process.wait()
        cause = "was over its time limit" if status == -signal.SIGALRM else f"ended with status {status}"
        return f"{self.name} {cause}{self.last_words()}"

    def last_words(self) -> str:
        """The end of what it has written to standard error, after a colon; empty if nothing."""
        # Not seek and read: the file's position is shared with the process, which may be writing.
        written = os.pread(self._errors, ERROR_BYTES, max(0, os.fstat(self._errors).st_size - ERROR_BYTES))
        told = " / ".join(line.strip() for line in written.decode(errors="replace").splitlines()[-ERROR_LINES:])
        return f": {told}" if told else ""

    def wait(self) -> None:
        """Waits until it has ended by itself."""
        self._process.wait()

    def end(self) -> None:
        """Ends it at once, if it still runs, and forgets it."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._from_it.close()
        os.close(self._to_it)
        os.close(self._errors)


def bind(parent: int, limit_s: float) -> None:
    """In a new process: ends it when its time is up or its parent is gone."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.setitimer(signal.ITIMER_REAL, limit_s)


def program(command: Sequence[str], limit_s: float) -> Start:
    """Starts a command with a time limit."""

    parent = os.getpid()

    def start(standard: Sequence[int]) -> Process:
        its_input, its_output, its_errors = standard
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=its_input,
            stdout=its_output,
            stderr=its_errors,
            preexec_fn=lambda: bind(parent, limit_s),
        )

    return start


def end_all(children: Sequence[Child]) -> None:
    """Ends all of them, also when ending one of them is interrupted or fails."""
    with contextlib.ExitStack() as stack:
        for child in children:
            stack.callback(child.end)
