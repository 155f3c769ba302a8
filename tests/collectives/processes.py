"""Ranks of an engine, each a process that can be stopped and killed (engine_rank.py)."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence

from tests.daemon import has_stopped
from tests.forks import Fork

PATIENCE_S = 60.0
ATTEMPTS = 10
"""So often something is tried that a busy machine may spoil, but not each time."""


class Process:
    """A rank in a process of its own."""

    def __init__(self, arguments: Sequence[str], descriptors: Sequence[int]) -> None:
        """The descriptors are passed on; they stay the caller's."""
        inputs, input_end = os.pipe()
        output, output_end = os.pipe()
        with open(inputs, "rb"), open(output_end, "wb"):
            files = inputs, output_end, 2
            self._fork = Fork("tests.collectives.engine_rank", arguments, os.environ, files, descriptors)
        self._wishes, self._outcomes = open(input_end, "w"), open(output)  # noqa: SIM115 - closed by end

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._fork.pid

    def begin(self, **wishes: object) -> None:
        """Lets it begin an operation."""
        print(json.dumps(wishes), file=self._wishes, flush=True)

    def outcome(self) -> dict[str, object]:
        """What has become of the operation that it began."""
        return json.loads(self._outcomes.readline())  # type: ignore[no-any-return]

    def send(self, number: int) -> None:
        """Sends a signal; when it is to stop, returns once it has stopped."""
        os.kill(self.pid, number)
        while number == signal.SIGSTOP and not has_stopped(self.pid):
            time.sleep(0.001)

    def kill(self) -> None:
        """Kills it, and returns when it is gone."""
        self._fork.kill()
        self.end()

    def end(self) -> None:
        """Lets it end."""
        self._outcomes.close()
        self._wishes.close()
        self._fork.wait(PATIENCE_S)
