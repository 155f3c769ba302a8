"""A rank in a process of its own that says how it is linked, and cuts its links at SIGUSR1.

It reduces until an all-reduce with its last rank's word says that it is enough, checks every result, and prints each
change of the generation.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import ExitStack, suppress

import numpy as np

import clients
from tests.system.collective_faults import is_link


def cut_links(broker_port: int) -> None:
    """Ends all connections of this process to other ranks."""
    with ExitStack() as stack:
        links = []
        # All are found before one is cut: that one may be made anew before the next is looked at, by its thread.
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                sock = stack.enter_context(socket.socket(fileno=os.dup(int(name))))
                if is_link(sock, broker_port):
                    links.append(sock)
        for link in links:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


def main(url: str, rank: int, world_size: int, elements: int) -> None:
    signal.signal(signal.SIGUSR1, lambda *_: cut_links(int(url.rpartition(":")[2])))
    with clients.connect(url, name=f"rank-{rank}") as bus:
        stop = bus.subscribe("control/stop")
        group = bus.group("ranks", world_size=world_size, rank=rank, timeout_s=30.0)
        print(f"joined {group.rank} {group.schedule}", flush=True)
        array, done = np.empty(elements, np.float32), 0
        while True:
            ranks, schedule = group.ranks, group.schedule
            array.fill(group.rank + 1)
            if stop.pending:
                array[0] = -1000
            try:
                group.all_reduce(array, timeout_s=20.0)
            except clients.GenerationChangedError as error:
                assert (array[1:] == group.rank + 1).all(), "a failed operation has changed the array"
                print(f"changed lost={error.lost_ranks} done={done}", flush=True)
                done = 0
                continue
            expected = sum(each + 1 for each in ranks)
            assert (array[1:] == expected).all(), f"{array} is not {expected}"
            done += 1
            if done == 5:
                print("running", flush=True)
            if array[0] < 0:
                print(f"stopped {schedule} ranks={list(ranks)}", flush=True)
                return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
