"""Rank 1 of two, whose connections another process keeps open when this one is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import numpy as np

import clients


def sockets() -> list[int]:
    """The descriptors of all sockets of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.append(int(name))
    return found


def main(url: str, schedule: str) -> None:
    with clients.connect(url, name="rank-1") as bus:
        group = bus.group("ranks", world_size=2, rank=1, timeout_s=60.0, schedule=schedule)
        group.all_reduce(np.ones(4), timeout_s=60.0)
        # It ends with its standard input, which is this one's, and says so by the end of its standard output.
        subprocess.Popen(["cat"], pass_fds=sockets(), stdout=sys.stdout.fileno())
        print("kept", flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
