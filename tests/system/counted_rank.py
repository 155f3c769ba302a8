"""A rank in a process of its own that counts what its host sends while all ranks reduce an array some times.

    python -m tests.system.counted_rank URL RANK WORLD_SIZE ELEMENTS TIMES SCHEDULE

It prints the schedule, a digest of the results, and the bytes that the host's eth0 has sent.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

import clients


def sent_bytes(device: str = "eth0") -> int:
    """What a network device of this process's host has sent."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counters = line.strip().partition(":")
        if name == device:
            return int(counters.split()[8])
    raise RuntimeError(f"there is no {device}")


def main(url: str, rank: int, world_size: int, elements: int, times: int, schedule: str) -> None:
    with clients.connect(url, name=f"rank-{rank}") as bus:
        group = bus.group("counted", world_size=world_size, rank=rank, timeout_s=30.0, schedule=schedule)
        used = group.schedule
        numbers, digest = np.random.default_rng(rank).standard_normal(elements).astype(np.float32), hashlib.sha256()
        group.barrier()
        before = sent_bytes()
        group.barrier()
        for _ in range(times):
            array = numbers.copy()
            group.all_reduce(array, timeout_s=60.0)
            digest.update(array)
        group.barrier()
        print(used, digest.hexdigest(), sent_bytes() - before, flush=True)
        group.barrier()


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:6]), sys.argv[6])
