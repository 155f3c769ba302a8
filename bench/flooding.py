"""The flood of bench.flood, a process of its own: connections that say nothing, or a byte a second.

    python -m bench.flooding tcp://127.0.0.1:7011 5000 1000 0.001

Begins and ends with each byte of standard input, of which it answers each with a line of JSON: what it has done since
the last one. Between a beginning and its answer it dials so many connections; from then on it dials anew what the
broker closes, so many a second at most. Every second connection sends a byte a second, the first of a hello again and
again. When a flood is over, it lets go of all of them at once.

What it does is spread evenly: in each millisecond a connection, and a byte of some. Real strangers do not know of each
other either; and a process that does a second's work at a stretch takes a processor from whoever shares it, which would
be measured in place of the broker. `burst_s` gathers it nevertheless. It has the lowest priority, because a flood comes
from other machines; whether it came to what it wanted to do is in what it answers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Final

OPENINGS_PER_S: Final = 5000
"""While the flood begins. More in a row than the broker's backlog takes the kernel would drop, and try again later."""
LOWEST_PRIORITY: Final = 19


class Flood:
    """Connections that say nothing, or little."""

    def __init__(self, url: str, connections: int, redials_per_s: int, burst_s: float) -> None:
        """Args:
        url: of the broker, tcp://host:port.
        connections: how many there are to be.
        redials_per_s: how many of those that the broker closes are dialled anew, at most.
        burst_s: how long it waits between two times of doing what is due.
        """
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        self._address = (host, int(port))
        self._connections = connections
        self._redials_per_s = redials_per_s
        self._burst_s = burst_s
        self._open: dict[int, socket.socket] = {}
        self._talkers: deque[socket.socket] = deque()
        """Those that send, in turns; some may be closed since."""
        self._epoll = select.epoll()
        self._dialled = self._sent_bytes = 0

    def _dial(self) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect(self._address)
        descriptor = sock.fileno()
        self._open[descriptor] = sock
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP)
        self._dialled += 1
        if self._dialled % 2:
            # Its first byte comes at once.
            self._talkers.appendleft(sock)

    def _look(self, timeout_s: float) -> bool:
        """Lets go of those that the broker has closed; says whether there is something on standard input."""
        told = False
        for descriptor, _ in self._epoll.poll(timeout_s):
            if descriptor == 0:
                told = True
                continue
            try:
                ended = not self._open[descriptor].recv(4096)
            except BlockingIOError:
                continue
            except OSError:
                ended = True
            if ended:
                self._open.pop(descriptor).close()
        return told

    def _drip(self, count: int) -> None:
        """A byte from each of so many, who then have their turn again after all others."""
        for _ in range(min(count, len(self._talkers))):
            sock = self._talkers.popleft()
            if sock.fileno() >= 0:
                with suppress(OSError):
                    self._sent_bytes += sock.send(b"\x93")
                self._talkers.append(sock)

    def _begin(self) -> None:
        began_s = time.monotonic()
        while self._dialled < self._connections:
            self._look(self._burst_s)
            due = int((time.monotonic() - began_s) * OPENINGS_PER_S) + 1
            for _ in range(min(due, self._connections) - self._dialled):
                self._dial()

    def _flood(self) -> None:
        """Until there is a line on standard input."""
        last_s = time.monotonic()
        dials = drips = 0.0
        while not self._look(self._burst_s):
            now_s = time.monotonic()
            passed_s, last_s = now_s - last_s, now_s
            dials += passed_s * self._redials_per_s
            drips += passed_s * len(self._talkers)
            for _ in range(min(int(dials), self._connections - len(self._open))):
                self._dial()
            self._drip(int(drips))
            dials, drips = dials % 1.0, drips % 1.0

    def _end(self) -> None:
        for sock in self._open.values():
            sock.close()
        self._open.clear()
        self._talkers.clear()

    def _answer(self, began_s: float, began_processor_s: float) -> None:
        done = {
            "seconds": time.monotonic() - began_s,
            "processor_s": time.process_time() - began_processor_s,
            "dialled": self._dialled,
            "sent_bytes": self._sent_bytes,
            "open": len(self._open),
        }
        print(json.dumps(done), flush=True)
        self._dialled = self._sent_bytes = 0

    def run(self) -> None:
        """Floods when it is told to, until there are no more lines."""
        self._epoll.register(0, select.EPOLLIN)
        while os.read(0, 1):
            began_s, began_processor_s = time.monotonic(), time.process_time()
            self._begin()
            self._answer(began_s, began_processor_s)
            began_s, began_processor_s = time.monotonic(), time.process_time()
            self._flood()
            os.read(0, 1)
            self._answer(began_s, began_processor_s)
            self._end()


def main() -> None:
    """Is the flood."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("connections", type=int)
    parser.add_argument("redials_per_s", type=int)
    parser.add_argument("burst_s", type=float)
    wishes = parser.parse_args()
    os.nice(LOWEST_PRIORITY)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    Flood(wishes.url, wishes.connections, wishes.redials_per_s, wishes.burst_s).run()


if __name__ == "__main__":
    main()
