"""Child processes of a run. Whatever happens, leaving the context ends those that still run, and no others."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Self

END_TIMEOUT_S = 5.0
"""How long a process may take to end in order; then it is killed."""
LOG_LINES = 15


class ChildFailed(Exception):
    """A process of the run has failed; the text has the end of its log."""


class Processes:
    """Python processes that are started by name."""

    def __init__(self, logs: Path) -> None:
        """Args:
        logs: a folder; the standard error of each process goes to a file in it.
        """
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, module: str, *arguments: str, stdout: int | None = None) -> subprocess.Popen[bytes]:
        """Starts `python -m module arguments`."""
        with self._log(name).open("wb") as errors:
            # In a session of its own, so that Ctrl-C reaches this process alone, which then ends the others in order.
            child = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=errors,
                start_new_session=True,
            )
        self._children[name] = child
        return child

    def read_line(self, name: str) -> str:
        """The next line that a process with `stdout=PIPE` prints.

        Raises:
            ChildFailed: it has ended.
        """
        output: IO[bytes] | None = self._children[name].stdout
        assert output is not None
        line = output.readline().decode()
        if not line:
            self._children[name].wait()
            raise self._failure(name)
        return line.rstrip("\n")

    def check(self, *, may_be_killed: str = "") -> list[str]:
        """Looks after all processes.

        Args:
            may_be_killed: with this prefix of its name a process may be ended by a signal.

        Returns:
            The names of those.

        Raises:
            ChildFailed: another one was ended by a signal, or one has failed.
        """
        ended = {name: code for name, child in self._children.items() if (code := child.poll())}
        for name, code in ended.items():
            if code > 0 or not may_be_killed or not name.startswith(may_be_killed):
                raise self._failure(name)
        return list(ended)

    def wait(self, name: str) -> None:
        """Waits for the end of a process that ends by itself; kills it when that takes too long."""
        child = self._children[name]
        try:
            child.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def stop(self, *names: str) -> None:
        """Ends processes, in order if they can, and forgets them."""
        for name in names:
            self._children[name].terminate()
        for name in names:
            self.wait(name)
            child = self._children.pop(name)
            if child.stdout is not None:
                child.stdout.close()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _failure(self, name: str) -> ChildFailed:
        code = self._children[name].returncode
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        log = self._log(name).read_text(errors="replace").splitlines()[-LOG_LINES:]
        return ChildFailed("\n".join([f"{name} {how}; the end of {self._log(name)}:", *log]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A second Ctrl-C must not leave processes behind.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.stop(*reversed(list(self._children)))
        signal.signal(signal.SIGINT, handler)
