"""A program that forks while it has a client; see test_lifetime."""

from __future__ import annotations

import os
import sys

import numpy as np

import clients


def main(url: str) -> None:
    bus = clients.connect(url)
    group = bus.group("alone", world_size=1)
    child = os.fork()
    if child == 0:
        try:
            bus.publish("t", 1)
        except clients.ConnectionClosed as error:
            print(f"child: {error.reason.removeprefix('closed: ')}", flush=True)
        with clients.connect(url) as own:
            own.publish("t", 1, ack="accepted")
            print("child: published by its own", flush=True)
        sys.exit(0)
    os.waitpid(child, 0)
    print(f"parent: {(group.all_reduce(np.ones(2), op='sum') * 2).tolist()}", flush=True)
    bus.close()


if __name__ == "__main__":
    main(sys.argv[1])
