"""A rank in a process of its own, of either kind of client, for tests of what the broker is told of its operations.

It prints `joined`, makes steps until it has made enough, each of them late by so many milliseconds, and prints
`running` after the third one. At last it prints `done`, or the error that has ended it, and does nothing more, or
ends at once, without a word to anybody.

    python -m tests.system.watched_rank KIND URL RANK WORLD_SIZE ELEMENTS STEPS [LATE_MS [ends]]
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np

import clients
from tests.clients.asynchronous import AsyncLoop


def work(group: clients.Group, elements: int, steps: int, late_ms: float) -> None:
    array = np.ones(elements, np.float32)
    for step in range(steps):
        time.sleep(late_ms / 1000)
        group.all_reduce(array, op="mean", timeout_s=30.0)
        if step == 2:
            print("running", flush=True)


def main(
    kind: str, url: str, rank: str, world_size: str, elements: str, steps: str, late_ms: str = "0", then: str = ""
) -> None:
    connect = clients.connect if kind == "synchronous" else AsyncLoop().connect
    bus = connect(url, name=f"rank-{rank}")
    group = bus.group("ranks", world_size=int(world_size), rank=int(rank), timeout_s=30.0)
    print(f"joined {group.schedule}", flush=True)
    try:
        work(group, int(elements), int(steps), float(late_ms))
    except clients.CollectiveError as error:
        print(error, flush=True)
    else:
        print("done", flush=True)
    if then == "ends":
        os._exit(0)
    # It stays a member until it is killed.
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
