"""What thousands of connections that say nothing, or a byte a second, cost the clients of a broker.

    python -m bench.flood                     # two and a half minutes; says whether p99 stays under twice the quiet one

Two brokers run side by side, `tensorbus serve` with its own limits, and one client asks both in turns, a request at a
time. One of them is flooded for a second, now and then, and for a second it is not, in an order that turns around
(slices.py). The flood is a process of its own: it dials so many connections before its second begins, half of which
send a byte a second, and dials anew what the broker closes, 1,000 in a second at most; when its second is over it lets
go of all of them. So there are four kinds of round trips:

                          while there is a flood    while it is quiet
    the flooded broker            A                        B
    its neighbour                 C                        D

- p99 of A over that of B: what a client of this host has of it. Processors that the flood itself takes, and the kernel
  for it, are in that.
- p99 of A over that of C: what of it is the broker's doing, how it deals with the flood beside its clients. The two
  were asked at the same moments, so what the flood takes of the machine is in both.
- p99 of C over that of D: what the flood's own work does to a broker that it does not touch.
- p99 of B over that of D: what the method itself makes up; the two are the same.

Each p99 is of all round trips of its kind together, and each ratio stands with the interval in which it lies with 95 %,
by bootstrap over the pairs of slices.
"""

from __future__ import annotations

import argparse
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

import clients
from bench.slices import interval, resampled, turns

REDIALS_PER_S: Final = 1000
TICK_S: Final = 0.05
SETTLE_S: Final = 0.5
"""Until a broker has dealt with what the flood's beginning or its end left to it."""
GOAL: Final = 2.0
RESAMPLES: Final = 2000
EDGES_US: Final = np.geomspace(1.0, 1e8, 3700)
"""Half a per cent from each to the next."""
KINDS: Final = {
    "A": "the flooded broker, while there is a flood",
    "B": "the flooded broker, while it is quiet",
    "C": "its neighbour, while there is a flood",
    "D": "its neighbour, while it is quiet",
}
RATIOS: Final = {
    "AB": "what a client of this host has of the flood (A to B)",
    "AC": "what of it is the broker's doing (A to C)",
    "CD": "what the flood's own work does to others (C to D)",
    "BD": "what the method makes up (B to D)",
}


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

    def dial(self, most: int) -> None:
        """Opens what is missing, up to so many."""
        for _ in range(min(most, self._connections - len(self._open))):
            sock = socket.socket()
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect(self._address)
            self._open[sock.fileno()] = sock
            self._poll.register(sock.fileno(), select.POLLIN)

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
                self._let_go(descriptor)

    def drip(self) -> None:
        """A byte from every second one: the first of a hello, as long as that lasts."""
        for sock in list(self._open.values())[::2]:
            with suppress(OSError):
                sock.send(b"\x93")

    def end(self) -> None:
        """Lets go of all."""
        for descriptor in list(self._open):
            self._let_go(descriptor)

    def _let_go(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        self._open.pop(descriptor).close()

    def run(self) -> None:
        """Begins and ends with each line of standard input, of which it answers each, until there are no more."""
        flooding, dripped_s = False, 0.0
        while True:
            if select.select([0], [], [], TICK_S if flooding else None)[0]:
                if not sys.stdin.buffer.readline():
                    return
                flooding = not flooding
                self.dial(self._connections) if flooding else self.end()
                print(len(self._open), flush=True)
            if flooding:
                self.look()
                self.dial(int(REDIALS_PER_S * TICK_S))
                if time.monotonic() - dripped_s > 1.0:
                    dripped_s = time.monotonic()
                    self.drip()


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long one kind's p99 is as another's, and where that lies with 95 %."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What it says of the goal."""
        if self.high < GOAL:
            return f"under {GOAL:.0f}: shown"
        return f"under {GOAL:.0f}: refuted" if self.low >= GOAL else f"under {GOAL:.0f}: neither shown nor refuted"

    def __str__(self) -> str:
        return f"{self.value:.2f} (95 %: {self.low:.2f} to {self.high:.2f})"


Counts = npt.NDArray[np.int64]
"""How many round trips were so long, by slice and by EDGES_US."""


def counted(slices: list[list[float]]) -> Counts:
    """The round trips of each slice, in microseconds, by length."""
    return np.array([np.histogram(np.clip(times, EDGES_US[0], EDGES_US[-1]), EDGES_US)[0] for times in slices])


def percentiles_us(counts: Counts, percent: float) -> npt.NDArray[np.float64]:
    """Below which length so many per cent of the round trips are, of each row."""
    shares = counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True)
    return EDGES_US[1:][(shares >= percent / 100).argmax(axis=1)]


def ratio(above: Counts, below: Counts, seed: int = 1) -> Ratio:
    """Of the p99 of all slices of one kind to that of another, slice by slice at the same time or beside it."""
    chosen = resampled(len(above), seed, RESAMPLES)
    weights = np.apply_along_axis(np.bincount, 1, chosen, minlength=len(above))
    estimates = percentiles_us(weights @ above, 99) / percentiles_us(weights @ below, 99)
    whole = [float(percentiles_us(each.sum(axis=0, keepdims=True), 99)[0]) for each in (above, below)]
    return Ratio(whole[0] / whole[1], *interval(estimates))


def ask(askers: list[clients.Client], seconds: float) -> list[list[float]]:
    """Requests to each of several brokers in turns; returns the times of each one's, in microseconds."""
    times: list[list[float]] = [[] for _ in askers]
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for asker, found in zip(askers, times, strict=True):
            began_s = time.perf_counter()
            asker.request("flood/echo", len(found), timeout_s=30.0)
            found.append((time.perf_counter() - began_s) * 1e6)
    return times


@contextmanager
def broker() -> Iterator[str]:
    """A broker; gives its address."""
    command = [sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.terminate()


@contextmanager
def asking(url: str) -> Iterator[clients.Client]:
    """A client whose requests at `flood/echo` another one answers."""
    with (
        clients.connect(url) as asker,
        clients.connect(url) as answerer,
        answerer.respond("flood/echo", lambda message: message.value),
    ):
        yield asker


def measure(wishes: argparse.Namespace) -> Mapping[str, Counts]:
    """Starts brokers and a flood; returns the round trips of each kind, by slice."""
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        flooded, neighbour = (stack.enter_context(broker()) for _ in range(2))
        askers = [stack.enter_context(asking(url)) for url in (flooded, neighbour)]
        command = [sys.executable, "-m", "bench.flood", "--flood", flooded, "--connections", str(wishes.connections)]
        flood = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        )
        stack.callback(flood.kill)
        ask(askers, 1.0)
        flooding = False
        for wanted in turns(wishes.pairs):
            if wanted != flooding and not wishes.nothing:
                flooding = wanted
                toggle(flood)
            time.sleep(SETTLE_S)
            for kind, times in zip("AC" if wanted else "BD", ask(askers, wishes.duration), strict=True):
                found[kind].append(times)
    return {kind: counted(slices) for kind, slices in found.items()}


def toggle(flood: subprocess.Popen[str]) -> None:
    """Begins or ends a flood, and waits until that is so."""
    assert flood.stdin is not None
    assert flood.stdout is not None
    flood.stdin.write("\n")
    flood.stdout.readline()


def told(kinds: Mapping[str, Counts]) -> Iterator[str]:
    """What was measured, in lines."""
    for kind, what in KINDS.items():
        whole = kinds[kind].sum(axis=0, keepdims=True)
        p50, p99, most = (percentiles_us(whole, percent)[0] for percent in (50, 99, 100))
        yield f"{kind} {what:44} {whole.sum():8} requests  p50 {p50:7.0f}  p99 {p99:7.0f}  max {most:8.0f} us"
    for (above, below), what in RATIOS.items():
        found = ratio(kinds[above], kinds[below])
        yield f"p99, {what}: {found}" + (f"; {found.verdict}" if above == "A" else "")


def main() -> None:
    """Measures, or is the flood."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--pairs", type=int, default=30, help="each a slice with the flood and one without")
    parser.add_argument("--duration", type=float, default=1.0, help="of each slice, in seconds")
    parser.add_argument("--nothing", action="store_true", help="flood in neither slice: the error of the method")
    parser.add_argument("--flood", metavar="URL", help=argparse.SUPPRESS)
    wishes = parser.parse_args()
    descriptors = raise_descriptor_limit()
    if descriptors < wishes.connections + 64:
        sys.exit(f"this needs {wishes.connections + 64} descriptors, and {descriptors} are allowed (ulimit -Hn)")
    if wishes.flood:
        Flood(wishes.flood, wishes.connections).run()
    else:
        print(*told(measure(wishes)), sep="\n")


if __name__ == "__main__":
    main()
