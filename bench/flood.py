"""What thousands of connections that say nothing, or a byte a second, cost the clients of a broker.

    python -m bench.flood                     # three minutes; says whether p99 stays under twice the quiet one
    python -m bench.flood --burst 0.05        # the flood does all it has to do at a stretch, 20 times a second
    python -m bench.flood --half-open 5000 --redials 1700    # a broker that takes all of them, for 3 s each

Two brokers run side by side, `tensorbus serve` with its own limits, and one client asks both in turns, a request at a
time. One of them is flooded for a second, now and then, and for a second it is not, in an order that turns around
(slices.py). The flood is a process of its own (flooding.py): it dials so many connections before its second begins,
half of which send a byte a second, and dials anew what the broker closes, 1,000 in a second at most; when its second is
over it lets go of all of them. So there are four kinds of round trips:

                          while there is a flood    while it is quiet
    the flooded broker            A                        B
    its neighbour                 C                        D

- p99 of A over that of B: what a client of this host has of it. Processors that the flood itself takes, and the kernel
  for it, are in that, although floods come from other machines; it has the lowest priority. What it came to is told.
- p99 of A over that of C: what of it is the broker's doing, how it deals with the flood beside its clients. The two
  were asked at the same moments, so what the flood takes of the machine is in both.
- p99 of C over that of D: what the flood's own work does to a broker that it does not touch.
- p99 of B over that of D: what the method itself makes up; the two are the same.

Each p99 is of all round trips of its kind together, and each ratio stands with the interval in which it lies with 95 %,
by bootstrap over the pairs of slices. Packets that the kernel has dropped between two processes of this host, because
too many came at a time, are told too: who waits for one of them waits for 200 ms.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

import clients
from bench.machine import processor_ns
from bench.slices import interval, resampled, turns

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


@dataclass(slots=True)
class Done:
    """What the flood and the flooded broker came to, in all slices with a flood."""

    seconds: float = 0.0
    dialled: int = 0
    sent_bytes: int = 0
    open: int = 0
    flood_processor_s: float = 0.0
    broker_processor_s: float = 0.0
    dropped_packets: int = 0

    def __str__(self) -> str:
        return (
            f"the flood, each second of it: {self.dialled / self.seconds:.0f} connections dialled anew, "
            f"{self.sent_bytes / self.seconds:.0f} bytes sent, {self.open} connections there at last, "
            f"{self.flood_processor_s / self.seconds:.1%} of a processor for it, "
            f"{self.broker_processor_s / self.seconds:.1%} for the flooded broker; "
            f"{self.dropped_packets} packets dropped in all"
        )


class Flood:
    """The process of flooding.py."""

    def __init__(self, process: subprocess.Popen[str], broker_pid: int) -> None:
        self._process = process
        self._broker_pid = broker_pid
        self._used_s = 0.0
        self._dropped = 0
        self._flooding = False
        self.done = Done()

    def toggle(self) -> None:
        """Begins or ends a flood, and waits until that is so."""
        used_s, dropped = processor_ns(self._broker_pid) / 1e9, dropped_packets()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("!")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        if self._flooding:
            done = self.done
            done.seconds += told["seconds"]
            done.dialled += told["dialled"]
            done.sent_bytes += told["sent_bytes"]
            done.open = told["open"]
            done.flood_processor_s += told["processor_s"]
            done.broker_processor_s += used_s - self._used_s
            done.dropped_packets += dropped - self._dropped
        self._flooding = not self._flooding
        self._used_s, self._dropped = processor_ns(self._broker_pid) / 1e9, dropped_packets()


def dropped_packets() -> int:
    """That the kernel has dropped on their way in, because too many came at a time (net.core.netdev_max_backlog)."""
    lines = Path("/proc/net/softnet_stat").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


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
def broker(more: Sequence[str]) -> Iterator[tuple[str, int]]:
    """A broker with more options; gives its address and its process's number."""
    command = [sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().removeprefix("listening on ").strip(), process.pid
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


def measure(wishes: argparse.Namespace) -> tuple[Mapping[str, Counts], Done]:
    """Starts brokers and a flood; returns the round trips of each kind, by slice, and what the flood came to."""
    found: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    most = wishes.half_open
    more = ["--half-open-max", str(most), "--connections-per-address-max", str(most + 64)] if most else []
    with ExitStack() as stack:
        (flooded, pid), (neighbour, _) = (stack.enter_context(broker(more)) for _ in range(2))
        askers = [stack.enter_context(asking(url)) for url in (flooded, neighbour)]
        numbers = (wishes.connections, wishes.redials, wishes.burst)
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "bench.flooding", flooded, *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )  # fmt: skip
        )
        stack.callback(process.kill)
        flood = Flood(process, pid)
        ask(askers, 1.0)
        flooding = False
        for wanted in turns(wishes.pairs):
            if wanted != flooding and not wishes.nothing:
                flooding = wanted
                flood.toggle()
            time.sleep(SETTLE_S)
            for kind, times in zip("AC" if wanted else "BD", ask(askers, wishes.duration), strict=True):
                found[kind].append(times)
        if flooding:
            flood.toggle()
        return {kind: counted(slices) for kind, slices in found.items()}, flood.done


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
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--redials", type=int, default=1000, help="of what the broker closes, in a second at most")
    parser.add_argument("--burst", type=float, default=0.001, help="the flood does what is due so often, in seconds")
    parser.add_argument("--half-open", type=int, help="that the brokers take; their own limit where it is not given")
    parser.add_argument("--pairs", type=int, default=30, help="each a slice with the flood and one without")
    parser.add_argument("--duration", type=float, default=1.0, help="of each slice, in seconds")
    parser.add_argument("--nothing", action="store_true", help="flood in neither slice: the error of the method")
    wishes = parser.parse_args()
    descriptors = raise_descriptor_limit()
    if descriptors < wishes.connections + 64:
        sys.exit(f"this needs {wishes.connections + 64} descriptors, and {descriptors} are allowed (ulimit -Hn)")
    kinds, done = measure(wishes)
    print(*told(kinds), sep="\n")
    if done.seconds:
        print(done)


if __name__ == "__main__":
    main()
