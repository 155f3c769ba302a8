"""OpenMPI through mpi4py: ranks that mpirun starts, over its transport for one host, shared memory.

Between two jobs of OpenMPI there is no shared memory, so the ranks have to be of one job, and mpirun has to start them:
see Contestant.launcher. Like everybody's, they are not bound to processors.

OpenMPI 4 cannot sum float16 or bfloat16. It keeps files in /dev/shm, which stay there when a run is killed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.contestant import Array, Collective, CollectiveBus, Contestant
from bench.peers import launch
from bench.tasks import Task

ADDRESS: Final = "file://"
ROOT_MAY: Final = ("--allow-run-as-root",)
"""mpirun refuses to be run by root otherwise."""


class OpenmpiCollective(Collective):
    """The communicator of all ranks."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi: Any = MPI

    def barrier(self) -> None:
        self._mpi.COMM_WORLD.Barrier()

    def all_reduce(self, array: Array) -> Callable[[], object]:
        return partial(self._mpi.COMM_WORLD.Allreduce, self._mpi.IN_PLACE, array)


class OpenmpiBus(CollectiveBus):
    """A process that mpirun has started."""

    def collective(self, task: Task) -> Collective:
        return OpenmpiCollective()


class Openmpi(Contestant):
    """OpenMPI."""

    name = "openmpi"
    is_peer = True
    dtypes = ("float32",)

    def missing(self) -> str:
        return launch.missing({"mpirun": "openmpi-bin"}, {"mpi4py": "mpi4py"})

    def versions(self) -> dict[str, str]:
        return launch.versions({"mpirun": "--version"}, ["mpi4py"])

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-m", "bench.peers.nobody", f"{ADDRESS}{directory}"]

    def connect(self, address: str, *, threads: bool = False) -> OpenmpiBus:
        return OpenmpiBus()

    def launcher(self, ranks: int, address: str) -> list[str]:
        mpirun = launch.program("mpirun") or "mpirun"
        as_root = ROOT_MAY if os.geteuid() == 0 else ()
        session = ("--mca", "orte_tmpdir_base", address.removeprefix(ADDRESS))
        return [mpirun, *as_root, "--oversubscribe", "--bind-to", "none", *session, "-n", str(ranks)]
