"""`tensorbus bench` whose other processes are forks, one for each point, as it may be one itself.

    python -m tests.cli.forked_bench ARGUMENTS      as tensorbus bench ARGUMENTS

A new interpreter takes more processor time than a short measurement.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from types import SimpleNamespace

from broker.cli import bench
from broker.cli.main import main as command
from tests import forks


class Child(forks.Fork):
    """What the command asks of subprocess.Popen."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int]) -> None:
        _, _, module, *arguments = command
        super().__init__(module, arguments, os.environ, (0, 1, 2), pass_fds)


def main() -> None:
    """Is the command, the template of its processes, and each of these."""
    bench.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": Child})  # type: ignore[assignment]
    forks.beside(lambda: command(prog_name="tensorbus"))


if __name__ == "__main__":
    main()
