"""A program that forks while it has clients of several workers, and a thread within them; test_workers starts it."""

from __future__ import annotations

import os
import sys
import threading

import clients
from tests.system.workers import topic_of

WORKERS = 2


def try_all(bus: clients.Client, every: clients.Subscription) -> None:
    for call in (
        lambda: bus.publish(topic_of(0, WORKERS), 1),
        lambda: bus.publish(topic_of(1, WORKERS), 1),
        lambda: every.next(),
        lambda: bus.subscribe("#"),
    ):
        try:
            print(f"child: {call()}", flush=True)
        except clients.ConnectionClosed as error:
            print(f"child: {error.reason}", flush=True)
    bus.close()


def main(url: str) -> None:
    # Of the second one the other worker's client is yet to be made.
    with clients.connect(url) as reader, clients.connect(url) as bus:
        every = reader.subscribe("#")
        held, forked = threading.Event(), threading.Event()

        def hold() -> None:
            with every._came, reader._opening, bus._opening:  # type: ignore[attr-defined]
                held.set()
                forked.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        child = os.fork()
        if child == 0:
            try_all(bus, every)
            sys.exit(0)
        forked.set()
        thread.join()
        os.waitpid(child, 0)
        for worker in range(WORKERS):
            bus.publish(topic_of(worker, WORKERS), worker, ack="accepted")
            print(f"parent: {every.next().value}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
