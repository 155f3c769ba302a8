"""The training example with processes that are forks, as it may be one itself.

    python -m tests.examples.forked ARGUMENTS       as python -m examples.training_loop ARGUMENTS

It starts a broker, a monitor, servers and trainers. Each is a process that can be killed, as in the example, but not a
new interpreter, which takes as much processor time as all that a trainer does in a short run.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from types import SimpleNamespace
from typing import IO

from examples.training_loop import __main__ as command
from examples.training_loop import data, monitor, processes, server, trainer
from tests import forks

IMPORTED = monitor, server, trainer
"""What the forks need."""


class Child(forks.Fork):
    """What the example asks of subprocess.Popen."""

    def __init__(
        self, command: Sequence[str], *, stdin: int, stdout: int | None, stderr: IO[bytes], start_new_session: bool
    ) -> None:
        _, _, module, *arguments = command
        reading, writing = os.pipe() if stdout == subprocess.PIPE else (None, os.dup(1))
        with open(os.devnull, "rb") as nothing, open(writing, "wb") as output:
            super().__init__(module, arguments, os.environ, (nothing.fileno(), output.fileno(), stderr.fileno()))
        self.stdout = None if reading is None else open(reading, "rb")  # noqa: SIM115 - it is closed with the child


def main() -> None:
    """Is the example, the template of its processes, and each of these."""
    # All trainers and servers need it, which read it from a file else.
    data.table()
    processes.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": Child})  # type: ignore[assignment]
    forks.beside(lambda: command.main(prog_name="python -m tests.examples.forked"))


if __name__ == "__main__":
    main()
