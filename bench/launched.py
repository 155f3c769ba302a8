"""The ranks of a collective that a launcher has started: `LAUNCHER python -m bench.launched TASK`.

Rank 0 has the launcher's standard input and output, and says what a worker says (bench.processes), with the results of
all ranks as its one line. The ranks tell each other through MPI, as the launcher is one of MPI.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from bench import contestants
from bench.cases import ROLES
from bench.children import bind
from bench.processes import LIMIT_S
from bench.tasks import Result, Task


def main(task: Task) -> None:
    """Does one rank's part."""
    # The launcher's time limit and its end reach its ranks only by this.
    bind(os.getppid(), LIMIT_S)
    from mpi4py import MPI

    world: Any = MPI.COMM_WORLD
    bus = contestants.by_name(task.contestant).connect(task.address, threads=task.threads)
    part = ROLES[task.role](bus, msgspec.structs.replace(task, rank=world.rank))
    next(part)
    world.Barrier()
    if not world.rank:
        print("ready", flush=True)
        sys.stdin.readline()
    world.Barrier()
    try:
        next(part)
    except StopIteration as done:
        results: list[Result] | None = world.gather(done.value)
        if results is not None:
            print(msgspec.json.encode(results).decode(), flush=True)
            sys.stdin.readline()
    bus.close()


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Task))
