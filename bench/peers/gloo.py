"""Gloo, the collectives of PyTorch for processors: rank to rank over loopback, without a broker.

Its ranks find each other through a file. It has one transport that Linux hosts have without more, TCP; torch does not
offer Gloo's reduction in shared memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.contestant import Array, Collective, CollectiveBus, Contestant
from bench.peers import launch
from bench.processes import LIMIT_S
from bench.tasks import Task

ADDRESS: Final = "file://"


def tensor_of(array: Array) -> Any:
    """A torch tensor in the memory of an array; torch takes no bfloat16 from numpy."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


class GlooCollective(Collective):
    """The default process group of torch."""

    def __init__(self, directory: str, task: Task) -> None:
        import torch.distributed as dist

        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = dist.FileStore(f"{directory}/{task.run}", task.world_size)
        limit = timedelta(seconds=LIMIT_S)
        dist.init_process_group("gloo", store=store, rank=task.rank, world_size=task.world_size, timeout=limit)
        self._dist = dist

    def barrier(self) -> None:
        self._dist.barrier()

    def all_reduce(self, array: Array) -> Callable[[], object]:
        tensor, reduce = tensor_of(array), self._dist.all_reduce
        return lambda: reduce(tensor)


class GlooBus(CollectiveBus):
    """Where the ranks find each other."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def collective(self, task: Task) -> Collective:
        return GlooCollective(self._directory, task)


class Gloo(Contestant):
    """Gloo through torch.distributed."""

    name = "gloo"
    is_peer = True

    def missing(self) -> str:
        return launch.missing({}, {"torch": "torch"})

    def versions(self) -> dict[str, str]:
        return launch.versions({}, ["torch"])

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-m", "bench.peers.nobody", f"{ADDRESS}{directory}"]

    def connect(self, address: str, *, threads: bool = False) -> GlooBus:
        return GlooBus(address.removeprefix(ADDRESS))
