"""A worker in a process of its own: does jobs, writes down which, and acknowledges them, until it is killed or told to
stop."""

from __future__ import annotations

import os
import sys

import clients


def main(url: str, name: str, record: str) -> None:
    descriptor = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with clients.connect(url, name=name) as bus:
        stop = bus.subscribe("control/stop")
        jobs = bus.subscribe("jobs/numbers", queue_group="workers", queue_messages=32)
        print("ready", flush=True)
        while not stop.pending:
            try:
                message = jobs.next(timeout_s=0.2)
            except clients.TimeoutError:
                continue
            # Done means written down: a process that is killed after this and before the ack does it twice at most.
            os.write(descriptor, f"{message.value} {message.deliveries}\n".encode())
            message.ack()


if __name__ == "__main__":
    main(*sys.argv[1:])
