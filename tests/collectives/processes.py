"""Ranks of an engine, each a process that can be stopped and killed (engine_rank.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


class Process:
    """A rank in a process of its own."""

    def __init__(self, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
        """The descriptors are passed on; they stay the caller's."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.collectives.engine_rank", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            pass_fds=descriptors,
        )

    def begin(self, **wishes: object) -> None:
        """Lets it begin an operation."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wishes) + "\n")
        self.process.stdin.flush()

    def outcome(self) -> dict[str, object]:
        """What has become of the operation that it began."""
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())  # type: ignore[no-any-return]

    def send(self, number: int) -> None:
        """Sends a signal; when it is to stop, returns once it has stopped."""
        os.kill(self.process.pid, number)
        if number == signal.SIGSTOP:
            os.waitpid(self.process.pid, os.WUNTRACED)

    def kill(self) -> None:
        """Kills it, and returns when it is gone."""
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Lets it end."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait(PATIENCE_S)
