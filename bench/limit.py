"""What the hardware lets anybody do: an all-reduce with nothing around it, as the reference for all-reduce.

The arrays lie in one piece of memory that all ranks map. Each rank reduces its part of all of them in one pass, with
the same kernels as tensorbus, and writes the result into all of them; a spinning barrier stands before and after. So
each array is read once and written once, which is the least that is possible in place. `limit/apart` writes the result
to memory of its own, past the caches, as `tensorbus/shared` does: it reads and writes as many bytes, of twice as much
memory, so that less of it is in the caches.

It leaves out all that an application needs: arrays of its own, wherever they lie; claims, deadlines, a way to wait that
leaves the processor to others; and any failure. A rank that dies leaves the others spinning over half-reduced arrays.
With more ranks than processors its spinning costs more than it is worth: there small arrays show no limit.

limit.c is compiled when a step begins, by the process that stands in the broker's place and owns the memory.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from bench import kernels
from bench.contestant import Array, Collective, CollectiveBus, Contestant, numpy_dtype
from bench.tasks import Task

ADDRESS: Final = "file://"
SOURCE: Final = Path(__file__).with_name("limit.c")
FLAGS_BYTES: Final = 2 << 20
"""Before the arrays, each of which begins at a multiple of it, a large page."""
TURNS_OF_A_RUN: Final = 1 << 32


def compiler() -> str | None:
    """A C compiler."""
    return shutil.which("cc") or shutil.which("gcc")


class LimitCollective(Collective):
    """A rank; its array is a part of the shared memory, and so is its result, if that is to be apart."""

    def __init__(self, directory: Path, task: Task, *, apart: bool) -> None:
        self._library = ctypes.CDLL(str(directory / "limit.so"))
        self._rank, self._ranks = task.rank, task.world_size
        room = -(-task.size_bytes // FLAGS_BYTES) * FLAGS_BYTES
        descriptor = os.open(directory / "memory", os.O_RDWR)
        # All ranks say the same.
        size_bytes = FLAGS_BYTES + self._ranks * (1 + apart) * room
        os.ftruncate(descriptor, size_bytes)
        self._memory = mmap.mmap(descriptor, size_bytes)
        os.close(descriptor)
        self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._flags = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        places = [FLAGS_BYTES + each * room for each in range(self._ranks * (1 + apart))]
        self._places, self._results = places[: self._ranks], places[self._ranks :]
        self._turn = ctypes.c_uint64(task.run * TURNS_OF_A_RUN)

    def empty(self, count: int, dtype: str) -> Array:
        return self._array(self._places, count, numpy_dtype(dtype))

    def _array(self, places: list[int], count: int, dtype: np.dtype[np.generic]) -> Array:
        return np.frombuffer(self._memory, np.uint8, count * dtype.itemsize, places[self._rank]).view(dtype)

    def result(self, array: Array) -> Array:
        return self._array(self._results, array.size, array.dtype) if self._results else array

    def barrier(self) -> None:
        self._turn.value += 1
        self._library.limit_barrier(ctypes.c_void_p(self._flags), self._rank, self._ranks, self._turn)

    def all_reduce(self, array: Array) -> Callable[[], object]:
        known = kernels.Kernels()
        kernel = known.of(known.level, "sum", array.dtype.name)
        arrays, results = (
            (ctypes.c_void_p * self._ranks)(*(self._flags + place for place in places)) if places else None
            for places in (self._places, self._results)
        )
        call, flags, turn = self._library.limit_all_reduce, ctypes.c_void_p(self._flags), self._turn
        rank, ranks, sizes = self._rank, self._ranks, [ctypes.c_size_t(n) for n in (array.nbytes, array.itemsize)]

        def reduce() -> None:
            turn.value += 2
            call(flags, rank, ranks, ctypes.c_uint64(turn.value - 1), arrays, results, *sizes, kernel)

        return reduce


class LimitBus(CollectiveBus):
    """Where the memory and the library are."""

    def __init__(self, directory: Path, *, apart: bool) -> None:
        self._directory = directory
        self._apart = apart

    def collective(self, task: Task) -> Collective:
        return LimitCollective(self._directory, task, apart=self._apart)


class Limit(Contestant):
    """The bare limit, in place or with results apart."""

    def __init__(self, *, apart: bool = False) -> None:
        self.name = "limit/apart" if apart else "limit"
        self._apart = apart

    def missing(self) -> str:
        if compiler() is None:
            return "apt-get install gcc libc6-dev"
        return "" if kernels.is_compiled() else "pip install --editable . where a C compiler is, for the kernels"

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-m", "bench.limit", str(directory)]

    def connect(self, address: str, *, threads: bool = False) -> LimitBus:
        return LimitBus(Path(address.removeprefix(ADDRESS)), apart=self._apart)


def main(directory: Path) -> None:
    """Owns the memory."""
    command = [compiler() or "cc", "-O2", "-shared", "-fPIC", "-o", str(directory / "limit.so"), str(SOURCE)]
    subprocess.run(command, check=True)
    memory = os.memfd_create("limit")
    (directory / "memory").symlink_to(f"/proc/{os.getpid()}/fd/{memory}")
    print(f"listening on {ADDRESS}{directory}", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
