"""Ranks that reduce arrays they share, on threads that may use few processors; see test_moments.

Prints for each rank how its results compare with sums in the order of the ranks, and whether the kernel schedules its
thread as before.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

import clients

RANKS = 4
ELEMENTS = (1 << 20) + 13
"""Of float32: so many bytes of all ranks that those which have no processor each take theirs in short turns."""
ROUNDS = 3
PATIENCE_S = 60.0
NUMBERS = {"x86_64": (314, 315), "aarch64": (274, 275)}
"""Of sched_setattr and sched_getattr."""
_LIBRARY = ctypes.CDLL(None, use_errno=True)
_SLICE_AT = 24
_ATTRIBUTES_BYTES = 48


def refuse(number: int, error: int) -> None:
    """Lets the kernel answer a system call of this process with an error from here on (seccomp(2))."""
    load, jump_if_equal, answer = 0x20, 0x15, 0x06
    allow, refused = 0x7FFF0000, 0x00050000 | error
    code = [(load, 0, 0, 0), (jump_if_equal, 0, 1, number), (answer, 0, 0, refused), (answer, 0, 0, allow)]
    steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in code))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(steps))
    no_new_privileges, set_seccomp, filtering = 38, 22, 2
    zero = ctypes.c_ulong(0)
    if _LIBRARY.prctl(no_new_privileges, ctypes.c_ulong(1), zero, zero, zero) or _LIBRARY.prctl(
        set_seccomp, ctypes.c_ulong(filtering), ctypes.c_char_p(program), zero, zero
    ):
        raise OSError(ctypes.get_errno(), "prctl")


def slice_ns() -> int:
    """How long a turn of this thread is, as the kernel says; 0 where it does not."""
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    if _LIBRARY.syscall(NUMBERS[platform.machine()][1], 0, attributes, _ATTRIBUTES_BYTES, 0):
        return 0
    return int(struct.unpack_from("Q", attributes.raw, _SLICE_AT)[0])


@cache
def given(rank: int, number: int) -> np.ndarray:
    """Numbers whose sums depend on their order."""
    return np.random.default_rng(100 * number + rank).normal(size=ELEMENTS).astype(np.float32)


@cache
def due(ranks: int, number: int) -> bytes:
    """The sum, as it is in the order of the ranks."""
    total = given(0, number)
    for rank in range(1, ranks):
        total = total + given(rank, number)
    return total.tobytes()


def work(url: str, rank: int, processors: set[int], ranks: int, meet: threading.Barrier) -> str:
    os.sched_setaffinity(0, processors)
    with clients.connect(url, name=f"rank-{rank}") as bus:
        group = bus.group("crowded", world_size=ranks, rank=rank, schedule="shm", timeout_s=PATIENCE_S)
        array, result = group.empty(ELEMENTS), group.empty(ELEMENTS)
        before, right = slice_ns(), True
        for number in range(ROUNDS):
            array[:] = given(rank, number)
            meet.wait(PATIENCE_S)
            group.all_reduce(array, out=result, timeout_s=PATIENCE_S)
            right = right and result.tobytes() == due(ranks, number)
        return (
            f"rank {rank}: {'right' if right else 'wrong'}, {'as before' if slice_ns() == before else 'not as before'}"
        )


def main(url: str, where: str, refused: str = "", error: str = "") -> None:
    if refused:
        refuse(NUMBERS[platform.machine()][("sched_setattr", "sched_getattr").index(refused)], getattr(errno, error))
    usable = sorted(os.sched_getaffinity(0))
    ranks = min(RANKS, len(usable)) if where == "apart" else RANKS
    meet = threading.Barrier(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        places = [{usable[rank]} if where == "apart" else {usable[0]} for rank in range(ranks)]
        for line in pool.map(lambda rank: work(url, rank, places[rank], ranks, meet), range(ranks)):
            print(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
