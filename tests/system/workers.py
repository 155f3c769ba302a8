"""A daemon with several workers, and what tests want to know of its processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from broker.protocol.bodies import Hello, Refusal, Welcome
from broker.protocol.handshake import decode_greeting, encode_greeting
from broker.topics.owners import owner
from tests.daemon import PATIENCE_S, Daemon


def children(pid: int) -> list[int]:
    """The processes that a process has started, in that order."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def parent(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def worker_pids(daemon: Daemon) -> list[int]:
    """By worker, while none has been started again."""
    return children(parent(daemon))


def topic_of(worker: int, workers: int, name: str = "topic") -> str:
    """A topic that a worker has."""
    return next(each for number in range(10_000) if owner(each := f"{name}/{number}", workers) == worker)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline_s
        os.sched_yield()


def answer(sock: socket.socket) -> Hello | Welcome | Refusal:
    """What the broker answers to a hello."""
    data = b""
    while (greeting := decode_greeting(memoryview(data))) is None:
        part = sock.recv(65_536)
        assert part, f"closed after {data!r}"
        data += part
    return greeting[0]


def greet(url: str, hello: Hello) -> Hello | Welcome | Refusal:
    """Says hello at an address, and leaves."""
    with dial(url) as sock:
        sock.sendall(encode_greeting(hello))
        return answer(sock)


def dial(url: str) -> socket.socket:
    """A bare connection to a broker at tcp or unix."""
    scheme, _, place = url.partition("://")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE_S)
        sock.connect(place)
        return sock
    host, _, port = place.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)
