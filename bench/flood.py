"""What thousands of connections that say nothing, or a byte a second, cost the clients of a broker.

    python -m bench.flood [--connections 5000] [--seconds 10]

Two clients on this host ask and answer, one request at a time, for so long on a quiet broker, then beside the flood,
and then quietly again; the percentiles of the round trips and their ratio are printed. The flood is a process of its
own: it dials so many connections, half of which send a byte a second, and dials anew what the broker closes, 1,000 in
a second at most. The broker is `tensorbus serve` with its own limits.
"""

from __future__ import annotations

import argparse
import resource
import select
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final

import clients

REDIALS_PER_S: Final = 1000
TICK_S: Final = 0.05


def raise_descriptor_limit() -> int:
    """As far as it goes; returns how many descriptors this process may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Flood:
    """Connections that say nothing, or little."""

    def __init__(self, url: str, connections: int) -> None:
        host, _, port = url.removeprefix("tcp://").rpartition(":")
        self._address = (host, int(port))
        self._connections = connections
        self._open: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self.dialled = self.closed = 0

    def dial(self, most: int) -> None:
        """Opens what is missing, up to so many."""
        for _ in range(min(most, self._connections - len(self._open))):
            sock = socket.socket()
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(self._address)
            self._open[sock.fileno()] = sock
            self._poll.register(sock.fileno(), select.POLLIN)
            self.dialled += 1

    def look(self) -> None:
        """Lets go of those that the broker has closed."""
        for descriptor, _ in self._poll.poll(0):
            sock = self._open[descriptor]
            try:
                ended = not sock.recv(4096)
            except BlockingIOError:
                continue
            except OSError:
                ended = True
            if ended:
                self._poll.unregister(descriptor)
                self._open.pop(descriptor).close()
                self.closed += 1

    def drip(self) -> None:
        """A byte from every second one: the first of a hello, as long as that lasts."""
        for sock in list(self._open.values())[::2]:
            with suppress(OSError):
                sock.send(b"\x93")

    def run(self) -> None:
        """Goes on until the process is ended."""
        self.dial(self._connections)
        print(f"flood of {len(self._open)}", flush=True)
        dripped_s = time.monotonic()
        while True:
            time.sleep(TICK_S)
            self.look()
            self.dial(int(REDIALS_PER_S * TICK_S))
            if time.monotonic() - dripped_s > 1.0:
                dripped_s = time.monotonic()
                self.drip()


def round_trips_us(asker: clients.Client, seconds: float) -> list[float]:
    """The times of requests, one after the other, sorted, in microseconds."""
    times: list[float] = []
    end_s = time.perf_counter() + seconds
    while (began_s := time.perf_counter()) < end_s:
        asker.request("flood/echo", len(times), timeout_s=30.0)
        times.append((time.perf_counter() - began_s) * 1e6)
    return sorted(times)


def told(what: str, times: list[float]) -> float:
    """Prints the percentiles; returns the 99th."""
    p50, p99 = (times[len(times) * percent // 100] for percent in (50, 99))
    print(
        f"{what:8} {len(times):7} requests  p50 {p50:8.0f} us  p99 {p99:8.0f} us  max {times[-1]:8.0f} us", flush=True
    )
    return p99


def measure(connections: int, seconds: float) -> None:
    """Starts a broker and a flood, and prints what that costs."""
    command = [sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as broker:
        assert broker.stdout is not None
        url = broker.stdout.readline().removeprefix("listening on ").strip()
        try:
            with (
                clients.connect(url) as asker,
                clients.connect(url) as answerer,
                answerer.respond("flood/echo", lambda message: message.value),
            ):
                round_trips_us(asker, 1.0)
                quiet = told("quiet", round_trips_us(asker, seconds))
                command = [sys.executable, "-m", "bench.flood", "--flood", url, "--connections", str(connections)]
                with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
                    assert flood.stdout is not None
                    print(flood.stdout.readline().strip(), flush=True)
                    flooded = told("flooded", round_trips_us(asker, seconds))
                    flood.kill()
                after = told("after", round_trips_us(asker, seconds))
                print(f"p99 beside the flood: {flooded / quiet:.2f} times the quiet one; after it: {after / quiet:.2f}")
        finally:
            broker.terminate()


def main() -> None:
    """Measures, or is the flood."""
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--connections", type=int, default=5000)
    arguments.add_argument("--seconds", type=float, default=10.0)
    arguments.add_argument("--flood", metavar="URL", help=argparse.SUPPRESS)
    wanted = arguments.parse_args()
    descriptors = raise_descriptor_limit()
    if descriptors < wanted.connections + 64:
        sys.exit(f"this needs {wanted.connections + 64} descriptors, and {descriptors} are allowed (ulimit -Hn)")
    if wanted.flood:
        Flood(wanted.flood, wanted.connections).run()
    else:
        measure(wanted.connections, wanted.seconds)


if __name__ == "__main__":
    main()
