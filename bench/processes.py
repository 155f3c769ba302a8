"""The processes of one step: a broker and its workers, each with a time limit that it cannot outlive.

A worker is started with its task and says `ready` on its standard output; when all are ready the parent says `go` to
all at once; a worker then does its part and prints its result as one line of JSON.

The limit is a timer, setitimer(2), that is set before exec and survives it: the kernel ends a process whose time is up,
whatever it does and even when the parent is gone. So the parent reads pipes without time-outs; a worker that is dead is
an end of file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from bench.contestant import Contestant
from bench.tasks import Result, Task

ROOT: Final = Path(__file__).resolve().parent.parent
LIMIT_S: Final = 120
"""How long any process of a step may live."""
ERROR_LINES: Final = 5
ERROR_BYTES: Final = 4096


class StepFailed(Exception):
    """A process of a step has ended without its result; the text has the end of what it wrote to standard error."""


class Child:
    """A process with pipes to its standard input and output; what it writes to standard error is kept for a failure."""

    def __init__(self, name: str, command: Sequence[str], limit_s: float) -> None:
        self.name = name
        self._errors = os.memfd_create("standard-error")
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            preexec_fn=lambda: signal.setitimer(signal.ITIMER_REAL, limit_s),
        )

    @property
    def process_id(self) -> int:
        """For a profiler, or to read its statistics."""
        return self._process.pid

    def line(self) -> str:
        """The next line of its standard output, without its end.

        Raises:
            StepFailed: it has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise StepFailed(self._epitaph())
        return line.rstrip("\n")

    def say(self, text: str) -> None:
        """Writes a line to its standard input.

        Raises:
            StepFailed: it has ended.
        """
        assert self._process.stdin is not None
        try:
            # Not through the file's buffer, which would fail once more when it is closed.
            os.write(self._process.stdin.fileno(), text.encode() + b"\n")
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

    def end(self) -> None:
        """Ends it at once, if it still runs, and forgets it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._errors)


class Team:
    """The processes of one step; leaving the context ends all of them.

    Attributes:
        address: where the broker listens.
    """

    def __init__(self, contestant: Contestant, transport: str, limit_s: float = LIMIT_S) -> None:
        self._contestant = contestant
        self._transport = transport
        self._limit_s = limit_s
        self.children: list[Child] = []
        self.address = ""

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="tensorbus-bench-")
        try:
            wanted = "tcp://127.0.0.1:0" if self._transport == "tcp" else f"unix://{self._directory.name}/socket"
            files = Path(self._directory.name) / "broker"
            files.mkdir()
            broker = self._start(f"{self._contestant.name} broker", self._contestant.broker_command(wanted, files))
            self.address = broker.line().removeprefix("listening on ")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _start(self, name: str, command: Sequence[str]) -> Child:
        child = Child(name, command, self._limit_s)
        self.children.append(child)
        return child

    def _end(self) -> None:
        for child in self.children:
            child.end()
        self._directory.cleanup()

    def run(self, tasks: Sequence[Task]) -> list[Result]:
        """Runs workers side by side from start to end.

        Args:
            tasks: one for each worker; they go off in this order.

        Returns:
            Their results, in the same order.

        Raises:
            StepFailed: one of them ended without a result.
        """
        workers = [self.start(task) for task in tasks]
        self.go(workers)
        return self.results(workers)

    def go(self, workers: Sequence[Child]) -> None:
        """Lets workers begin once all are ready.

        Raises:
            StepFailed: one of them ended before.
        """
        try:
            for worker in workers:
                worker.line()
            for worker in workers:
                worker.say("go")
        except StepFailed as failure:
            raise self._with_broker(failure) from failure

    def results(self, workers: Sequence[Child]) -> list[Result]:
        """Waits for workers' results.

        Raises:
            StepFailed: one of them ended without a result.
        """
        try:
            return [msgspec.json.decode(worker.line(), type=Result) for worker in workers]
        except StepFailed as failure:
            raise self._with_broker(failure) from failure

    def _with_broker(self, failure: StepFailed) -> StepFailed:
        broker = self.children[0]
        return StepFailed(f"{failure}; {broker.name}{broker.last_words() or ': no errors'}")

    def run_ranks(self, task: Task) -> list[Result]:
        """As `run`, with the same task for each rank of a group."""
        return self.run([msgspec.structs.replace(task, rank=rank) for rank in range(task.world_size)])

    def start(self, task: Task) -> Child:
        """Starts a worker, which gets ready by itself."""
        whole = msgspec.structs.replace(task, contestant=self._contestant.name, address=self.address)
        command = [sys.executable, "-m", "bench.worker", msgspec.json.encode(whole).decode()]
        return self._start(f"{self._contestant.name} {task.role}", command)
