"""The other process of `tensorbus bench`: `python -m broker.cli.bench_far DESCRIPTOR`, of one end of its Pipe."""

from __future__ import annotations

import os
import signal
import socket
import sys

import msgspec

import clients
from broker.cli.bench import PARTS, Task
from broker.cli.bench_pipe import Pipe
from broker.errors import BrokerError
from broker.measuring import payloads


def main() -> None:
    """Does what the first thing that it is told says."""
    # Ctrl-C is for the parent, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Pipe(socket.socket(fileno=int(sys.argv[1])))
    task = msgspec.convert(pipe.receive(), Task)
    try:
        with clients.connect(task.url, name=f"tensorbus-bench-far-{os.getpid()}", reconnect_timeout_s=0.0) as bus:
            pipe.send(PARTS[task.point.part][1](bus, task, pipe))
    except (BrokerError, payloads.WrongPayload) as error:
        pipe.send(BrokerError(str(error)))


if __name__ == "__main__":
    main()
