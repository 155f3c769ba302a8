"""What `tensorbus doctor` measures: the way to the broker, and what this machine could do at best.

Everything takes a fixed share of a few seconds, on a topic of its own.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

import clients
from broker.errors import BrokerError
from broker.limits import MIB
from broker.measuring.percentiles import percentile
from clients.connection.views import view

PINGS: Final = 300
PING_TIME_S: Final = 1.0
ARRAY_BYTES: Final = 8 * MIB
"""Longer than what a topic retains, so that nothing of it stays."""
TIME_S: Final = 0.7
"""For each of three bandwidths."""
CLOCK_TRIES: Final = 9
LOOPBACK_BYTES: Final = MIB
PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Pings:
    """Round trips to the broker and back, in seconds."""

    count: int
    p50_s: float
    p99_s: float


def ping(bus: clients.Client) -> Pings:
    """Asks the broker for an answer, again and again."""
    end_s = time.monotonic() + PING_TIME_S
    taken: list[float] = []
    while len(taken) < PINGS and (len(taken) < 2 or time.monotonic() < end_s):
        before_ns = time.perf_counter_ns()
        bus.flush(PATIENCE_S)
        taken.append((time.perf_counter_ns() - before_ns) / 1e9)
    taken.sort()
    return Pings(len(taken), percentile(taken, 50.0), percentile(taken, 99.0))


def clock_offset(bus: clients.Client) -> tuple[float, float]:
    """By how much the broker's wall clock is ahead of this one's, and how far that may be wrong, in seconds.

    Of some tries the quickest counts: half of its round trip is the error (Cristian, Probabilistic clock
    synchronization, 1989).
    """
    best: tuple[float, float] | None = None
    for _ in range(CLOCK_TRIES):
        before_ns = time.time_ns()
        theirs_ns = view(bus, "server", timeout_s=PATIENCE_S)[0]["clock_ns"]
        after_ns = time.time_ns()
        error_s = max(0, after_ns - before_ns) / 2e9
        if isinstance(theirs_ns, int) and (best is None or error_s < best[1]):
            best = ((theirs_ns - (before_ns + after_ns) / 2) / 1e9, error_s)
    return best or (0.0, float("inf"))


def bandwidth(bus: clients.Client) -> float:
    """Bytes per second of arrays of 8 MiB to the broker and back, one at a time: each is counted once.

    Raises:
        BrokerError: they do not come back.
    """
    topic, array = f"tensorbus/doctor/{os.getpid()}", np.zeros(ARRAY_BYTES, np.uint8)
    with bus.subscribe(topic, overflow="block") as subscription:
        moved, start_s, end_s = -1, time.monotonic(), time.monotonic() + TIME_S
        while moved < 1 or time.monotonic() < end_s:
            if not moved:
                # The first one has found memory for the others.
                start_s = time.monotonic()
            bus.publish(topic, array, timeout_s=PATIENCE_S)
            if len(subscription.next(timeout_s=PATIENCE_S).payload) != ARRAY_BYTES:
                raise BrokerError("an array came back with another length")
            moved += 1
        return moved * ARRAY_BYTES / (time.monotonic() - start_s)


def copy_bandwidth() -> float:
    """Bytes per second that one processor copies in memory, 8 MiB at a time."""
    source, target = np.ones(ARRAY_BYTES, np.uint8), np.empty(ARRAY_BYTES, np.uint8)
    np.copyto(target, source)
    copied, start_s = 0, time.monotonic()
    while not copied or time.monotonic() - start_s < TIME_S / 2:
        np.copyto(target, source)
        copied += 1
    return copied * ARRAY_BYTES / (time.monotonic() - start_s)


def loopback_bandwidth() -> float:
    """Bytes per second through a TCP connection of this host, with a thread at each end."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
    end_s = time.monotonic() + TIME_S / 2

    def send() -> None:
        data = bytes(LOOPBACK_BYTES)
        with sender:
            sender.sendall(data)
            # A thread that begins when the time is over, on a busy machine, has moved something all the same.
            while time.monotonic() < end_s:
                sender.sendall(data)

    sending = threading.Thread(target=send, daemon=True)
    buffer, moved, start_s = bytearray(LOOPBACK_BYTES), 0, time.monotonic()
    sending.start()
    with receiver:
        while size := receiver.recv_into(buffer):
            moved += size
    sending.join()
    return moved / (time.monotonic() - start_s)
