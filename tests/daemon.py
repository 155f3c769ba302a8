"""Real processes for tests: the daemon, and other commands of `tensorbus`.

Every process gets free ports, its standard output is read line by line with a time-out, and its standard error goes to
a file, so that it can never wait for a reader. Leaving the context ends the process that was started, and no other.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.forks import Fork

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 60.0
"""No wait of the tests takes this long unless something is broken; a busy machine may take a while to start Python."""
SHOWN_BYTES = 4096
"""How much of an output is shown where something is wrong with it."""
READ_AT_START = {"MALLOC_ARENA_MAX"}
"""Variables that only a new interpreter reads."""


class Process:
    """A Python process that runs a module, by default `broker`, the command line of tensorbus."""

    def __init__(
        self, *arguments: str, module: str = "broker", environment: Mapping[str, str] | None = None, stdin: bytes = b""
    ) -> None:
        """Starts it: as a fork of a process that has imported what it needs, unless a variable is READ_AT_START.

        Args:
            arguments: of the command line.
            module: what `python -m` runs.
            environment: variables to set; those of tensorbus are not taken over from the tests' own environment.
            stdin: what the process reads as its standard input, up to the length of a pipe (64 KiB).
        """
        variables = {name: value for name, value in os.environ.items() if not name.startswith("TENSORBUS_")}
        variables |= {"PYTHONUNBUFFERED": "", **(environment or {})}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._unread = b""
        reading, writing = os.pipe()
        self._stdout = open(reading, "rb", buffering=0)  # noqa: SIM115 - as above
        inputs, input_end = os.pipe()
        os.write(input_end, stdin)
        os.close(input_end)
        self._process: Fork | subprocess.Popen[bytes]
        try:
            if READ_AT_START & (environment or {}).keys():
                command = [sys.executable, "-m", module, *arguments]
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=variables, stdin=inputs, stdout=writing, stderr=self._errors
                )
            else:
                self._process = Fork(module, arguments, variables, (inputs, writing, self._errors.fileno()))
        finally:
            os.close(inputs)
            os.close(writing)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def errors(self) -> str:
        """What it has written to its standard error so far."""
        # Read at an offset: the process's own position in the file must not move.
        descriptor = self._errors.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def read_line(self, timeout_s: float = PATIENCE_S) -> str:
        """The next line of its standard output, without its end.

        Raises:
            TimeoutError: no complete line came in time; what has come of one is kept.
            EOFError: the output is closed.
        """
        deadline_s = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            data = self._read(deadline_s)
            if not data:
                raise EOFError(f"no more lines; {self._story()}")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def read_rest(self, timeout_s: float = PATIENCE_S) -> bytes:
        """Everything that it writes until it closes its standard output.

        Raises:
            TimeoutError: it has written nothing for so long; as long as it goes on, it may take its time.
        """
        parts = [self._unread]
        self._unread = b""
        try:
            while data := self._read(time.monotonic() + timeout_s):
                parts.append(data)
        except TimeoutError as error:
            said = b"".join(parts)
            raise TimeoutError(
                f"{error}\nbefore that {len(said)} bytes, the last of them {said[-SHOWN_BYTES:]!r}"
            ) from None
        return b"".join(parts)

    def _read(self, deadline_s: float) -> bytes:
        poll = select.poll()
        poll.register(self._stdout.fileno(), select.POLLIN)
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
            raise TimeoutError(f"nothing came in time; {self._story()}")
        return os.read(self._stdout.fileno(), 65_536)

    def _story(self) -> str:
        state = "the process runs" if self.running else f"the process ended with {self._process.returncode}"
        return f"{state}; unread {self._unread[-SHOWN_BYTES:]!r}; standard error:\n{self.errors}"

    def close_output(self) -> None:
        """Closes the reading end of its standard output, as `head` does when it has seen enough."""
        self._stdout.close()

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal; when it is to stop, returns once it has stopped."""
        self._process.send_signal(number)
        if number == signal.SIGSTOP:
            while self.running and not has_stopped(self.pid):
                time.sleep(0.001)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Waits for its end; returns its exit status, -N when signal N has ended it."""
        return self._process.wait(timeout_s)

    def terminate(self, timeout_s: float = PATIENCE_S) -> int:
        """Asks it to end in order (SIGTERM) and waits for that; returns its exit status."""
        self._process.terminate()
        return self.wait(timeout_s)

    def kill(self) -> int:
        """Ends it at once (SIGKILL)."""
        self._process.kill()
        return self.wait()

    def close(self) -> None:
        """Ends it if it still runs, and lets go of its files."""
        self.kill()
        self._stdout.close()
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} pid={self.pid} running={self.running}>"


def run(*arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Runs a command of tensorbus to its end; returns its exit status, standard output and standard error."""
    with Process(*arguments, stdin=stdin, environment=environment) as process:
        output = process.read_rest()
        return process.wait(), output.decode(), process.errors


class Daemon:
    """A `tensorbus serve` of the test's own.

        with Daemon() as daemon, clients.connect(daemon.url) as bus: ...

    A daemon that has ended can be started again, at the same addresses.

    Attributes:
        process: the process, once it was started.
        urls: where it listens, in the order of `listen`, with the real ports.
        admin_url: the root of its HTTP interface; empty when that is off.
    """

    def __init__(
        self,
        *arguments: str,
        listen: Sequence[str] = ("tcp://127.0.0.1:0",),
        admin: str = "127.0.0.1:0",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Args:
        arguments: further ones of `tensorbus serve`, such as "--sessions-max", "2".
        listen: addresses.
        admin: host:port, or "off".
        environment: variables to set for the process.
        """
        self._arguments = arguments
        self._listen = tuple(listen)
        self._admin = admin
        self._environment = environment
        self.process: Process | None = None
        self.urls: tuple[str, ...] = ()
        self.admin_url = ""

    @property
    def url(self) -> str:
        """The first of its addresses."""
        return self.urls[0]

    def start(self) -> Self:
        """Starts it; when this returns, it accepts connections. A second start takes the addresses of the first.

        Raises:
            EOFError: it has ended instead; the text has what it said.
            TimeoutError: it did not say in time where it listens.
        """
        if self.process is not None:
            self.process.close()
        addresses = self.urls or self._listen
        admin = self.admin_url.removeprefix("http://") or self._admin
        listen = [part for address in addresses for part in ("--listen", address)]
        self.process = Process("serve", *listen, "--admin", admin, *self._arguments, environment=self._environment)
        try:
            self.urls = tuple(self._read_value("listening on ") for _ in addresses)
            if admin != "off":
                self.admin_url = self._read_value("admin on ")
        except BaseException:
            self.process.close()
            raise
        return self

    def _read_value(self, prefix: str) -> str:
        assert self.process is not None
        line = self.process.read_line()
        assert line.startswith(prefix), f"expected {prefix!r}, got {line!r}"
        return line.removeprefix(prefix)

    @property
    def running(self) -> bool:
        """Whether the process has been started and has not ended."""
        return self.process is not None and self.process.running

    @property
    def errors(self) -> str:
        """What it has logged so far."""
        return self.process.errors if self.process is not None else ""

    def terminate(self, timeout_s: float = PATIENCE_S) -> int:
        """Asks it to drain and end (SIGTERM); returns its exit status."""
        assert self.process is not None
        return self.process.terminate(timeout_s)

    def kill(self) -> int:
        """Ends it at once (SIGKILL), as a crash would."""
        assert self.process is not None
        return self.process.kill()

    def close(self) -> None:
        """Ends it if it still runs."""
        if self.process is not None:
            self.process.close()

    def __enter__(self) -> Self:
        return self if self.running else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Daemon running={self.running} urls={list(self.urls)} admin={self.admin_url}>"


def has_stopped(pid: int) -> bool:
    """Whether none of a process's threads does anything more: a signal reaches those that run after a while."""
    states = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):
            states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
    return all(state == "T" for state in states)
