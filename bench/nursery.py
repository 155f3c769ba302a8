"""Forks workers: a fork costs a few milliseconds, where a new Python with numpy and the clients costs half a second.

The nursery is a process without threads and connections that has imported all that a worker needs. A worker is forked
from it, so it begins as a new process does, and ends as one. The parent asks through a socket, one request at a time:

    request                                                     answer
    Birth, with the three standard descriptors of the worker    its process id
    Death: wait for a worker that ends or was ended             its status
    Usage                                                       the processor time of the nursery and of ended workers

Nobody but the nursery waits for its workers, so a process id stays theirs until the parent has asked for the status.
When the parent is gone the socket ends, the nursery ends, and the kernel ends its workers; see bench.children.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from bench.children import ROOT, Start, StepFailed, bind
from bench.machine import own_s
from bench.tasks import Task

MESSAGE_BYTES_MAX: Final = 64 << 10


class Birth(msgspec.Struct, frozen=True, tag=True):
    """Start a worker, with a time limit."""

    task: Task
    limit_s: float


class Death(msgspec.Struct, frozen=True, tag=True):
    """Wait for a worker."""

    process_id: int


class Usage(msgspec.Struct, frozen=True, tag=True):
    """How much processor time was used, in microseconds."""


Request = Birth | Death | Usage


class Born:
    """A worker."""

    def __init__(self, nursery: Nursery, process_id: int) -> None:
        self.pid = process_id
        self._nursery = nursery
        self._status: int | None = None

    def wait(self) -> int:
        if self._status is None:
            self._status = self._nursery.ask(Death(self.pid))
        return self._status

    def kill(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """The parent's end; leaving the context ends the nursery, and with it the workers that are left."""

    def __enter__(self) -> Self:
        self._socket, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its_end:
            command = [sys.executable, "-m", "bench.nursery", str(its_end.fileno())]
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[its_end.fileno()]
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.wait()

    def ask(self, request: Request, descriptors: Sequence[int] = ()) -> int:
        """Sends a request and waits for the answer.

        Raises:
            StepFailed: the nursery has ended.
        """
        socket.send_fds(self._socket, [msgspec.json.encode(request)], descriptors)
        answer = self._socket.recv(MESSAGE_BYTES_MAX)
        if not answer:
            raise StepFailed("the nursery has ended")
        return int(answer)

    def processor_s(self) -> float:
        """Processor time of the nursery and of the workers that have ended, which are no children of this process."""
        return self.ask(Usage()) / 1e6

    def worker(self, task: Task, limit_s: float) -> Start:
        """Starts a worker with a time limit."""
        return lambda standard: Born(self, self.ask(Birth(task, limit_s), standard))


def grow_up(birth: Birth, descriptors: Sequence[int], nursery: int) -> None:
    """Makes a process of its own of a fork."""
    bind(nursery, birth.limit_s)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for standard, descriptor in enumerate(descriptors):
        os.dup2(descriptor, standard)
        os.close(descriptor)


def main(requests: socket.socket) -> None:
    """Serves until the parent is gone; in a worker, returns when the worker is done."""
    from bench import worker

    # Ctrl-C is for the parent, which ends the workers and then the nursery.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    nursery = os.getpid()
    decoder = msgspec.json.Decoder(Request)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MESSAGE_BYTES_MAX, 3)
        if not message:
            return
        request = decoder.decode(message)
        if isinstance(request, Death):
            _, status = os.waitpid(request.process_id, 0)
            answer = os.waitstatus_to_exitcode(status)
        elif isinstance(request, Usage):
            answer = round(own_s() * 1e6)
        else:
            worker.prepare(request.task)
            # The collector would write to every object, and so copy the memory that workers share.
            gc.freeze()
            answer = os.fork()
            if not answer:
                requests.close()
                grow_up(request, descriptors, nursery)
                worker.main(request.task)
                return
            for descriptor in descriptors:
                os.close(descriptor)
        requests.send(str(answer).encode())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
