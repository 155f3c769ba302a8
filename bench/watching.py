"""What it costs to be watched: a broker with a page of the dashboard open and its metrics scraped, beside itself alone.

    python -m bench.watching                  # two minutes; says whether the cost is at most 3 %

A publisher and a subscriber, in processes of their own, move as many small messages as they can through a broker, over
sockets. Now and then it is watched for a second, and then for a second it is not, in an order that turns around:

    |watched| alone | alone |watched|watched| alone | ...        each two make a pair, and a pair makes a ratio

The processes are the same all the time, and the two seconds of a pair lie side by side: what slows the machine for
longer slows both. What is compared is the broker's processor time for a message, in nanoseconds, which
other processes disturb little; and messages per second, which they do. The result is the geometric mean of the ratios,
with the interval in which it lies with 95 % (bootstrap over the pairs). `--nothing` watches in neither second: what is
then told is what the method itself makes up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import select
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

import clients

TOPIC: Final = "watched"
PAYLOAD: Final = bytes(64)
WARM_UP_S: Final = 2.0
SETTLE_S: Final = 0.15
"""Until pages have been opened or closed."""
SCRAPE_S: Final = 1.0
COUNTED: Final = 64
"""The subscriber says how many messages have come, each time that so many more have."""
RESAMPLES: Final = 10_000
GOAL: Final = 0.03


@dataclass(frozen=True, slots=True)
class Slice:
    """Of one interval: messages per second, and the broker's processor time for each, in nanoseconds."""

    rate: float
    broker_ns: float


@dataclass(frozen=True, slots=True)
class Cost:
    """By how much something is more when the broker is watched, as a share; and where that lies with 95 %."""

    share: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What it says of the goal."""
        if self.high <= GOAL:
            return f"at most {GOAL:.0%}: shown"
        return f"at most {GOAL:.0%}: refuted" if self.low > GOAL else f"at most {GOAL:.0%}: neither shown nor refuted"

    def __str__(self) -> str:
        return f"{self.share:+.2%} (95 %: {self.low:+.2%} to {self.high:+.2%}); {self.verdict}"


def cost(ratios: npt.ArrayLike, seed: int = 1) -> Cost:
    """The geometric mean of ratios, less 1, with its interval by bootstrap.

    Args:
        ratios: of each pair, what is more if watching costs something; above 0.
        seed: of the resampling.
    """
    logs = np.log(np.asarray(ratios, np.float64))
    chosen = np.random.default_rng(seed).integers(0, len(logs), (RESAMPLES, len(logs)))
    low, high = np.percentile(logs[chosen].mean(axis=1), [2.5, 97.5])
    return Cost(*(float(np.expm1(each)) for each in (logs.mean(), low, high)))


def publish(url: str, shared_memory: bool) -> None:  # noqa: FBT001
    """Publishes without end."""
    with clients.connect(url, name="publisher", shared_memory=shared_memory) as bus:
        while True:
            bus.publish(TOPIC, PAYLOAD)


def receive(url: str, shared_memory: bool, count: Synchronized[int]) -> None:  # noqa: FBT001
    """Counts what comes, without end."""
    with (
        clients.connect(url, name="subscriber", shared_memory=shared_memory) as bus,
        bus.subscribe(TOPIC) as subscription,
    ):
        for number, _ in enumerate(subscription):
            if not number % COUNTED:
                count.value = number


def watch(admin: str, on: Event, pages: int, tap: bool) -> None:  # noqa: FBT001
    """Reads events as browsers do, and scrapes, while it is on."""
    host, _, port = admin.removeprefix("http://").rpartition(":")
    while on.wait():
        paths = ["/api/v1/events"] * pages + [f"/api/v1/tap?topic={TOPIC}"] * tap
        streams = [socket.create_connection((host, int(port))) for _ in paths]
        for stream, path in zip(streams, paths, strict=True):
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        scraped_s = 0.0
        while on.is_set():
            for stream in select.select(streams, [], [], 0.05)[0]:
                stream.recv(1 << 20)
            if time.monotonic() - scraped_s > SCRAPE_S:
                scraped_s = time.monotonic()
                with socket.create_connection((host, int(port))) as scrape:
                    scrape.sendall(f"GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                    while scrape.recv(1 << 20):
                        pass
        for stream in streams:
            stream.close()


def processor_ns(pid: int) -> int:
    """Processor time that all threads of a process have taken, in nanoseconds."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def measure(count: Synchronized[int], broker: int, duration_s: float) -> Slice:
    """Waits, and tells what has moved meanwhile."""
    started_s, before, spent_ns = time.monotonic(), count.value, processor_ns(broker)
    time.sleep(duration_s)
    moved = max(1, count.value - before)
    return Slice(moved / (time.monotonic() - started_s), (processor_ns(broker) - spent_ns) / moved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="of a second watched and a second alone")
    parser.add_argument("--duration", type=float, default=1.0, help="of each measurement, in seconds")
    parser.add_argument("--pages", type=int, default=1, help="that are open while it is watched")
    parser.add_argument("--tap", action="store_true", help="one of them taps the busy topic")
    parser.add_argument("--shared-memory", action="store_true", help="messages go on lines, past the broker")
    parser.add_argument("--nothing", action="store_true", help="watch in neither second: the error of the method")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all slices and the result to FILE")
    wishes = parser.parse_args()
    serve = [sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "127.0.0.1:0"]
    context = multiprocessing.get_context("spawn")
    count, on = context.Value("q", 0, lock=False), context.Event()
    pairs: list[dict[bool, Slice]] = []
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as broker:
        assert broker.stdout is not None
        url, admin = (broker.stdout.readline().strip().rpartition(" ")[2] for _ in range(2))
        workers = [
            context.Process(target=receive, args=(url, wishes.shared_memory, count), daemon=True),
            context.Process(target=publish, args=(url, wishes.shared_memory), daemon=True),
            context.Process(target=watch, args=(admin, on, wishes.pages, wishes.tap), daemon=True),
        ]
        for worker in workers:
            worker.start()
        try:
            while not count.value:
                time.sleep(SETTLE_S)
            measure(count, broker.pid, WARM_UP_S)
            for number in range(wishes.pairs):
                pair = {}
                for watched in (False, True) if number % 2 else (True, False):
                    (on.set if watched and not wishes.nothing else on.clear)()
                    time.sleep(SETTLE_S)
                    pair[watched] = measure(count, broker.pid, wishes.duration)
                pairs.append(pair)
        finally:
            for worker in workers:
                worker.kill()
            broker.terminate()
    alone = pairs[0][False] if len(pairs) == 1 else _median([pair[False] for pair in pairs])
    costs = {
        "broker's processor time per message": cost([pair[True].broker_ns / pair[False].broker_ns for pair in pairs]),
        "time per message": cost([pair[False].rate / pair[True].rate for pair in pairs]),
    }
    print(f"alone: {alone.rate:,.0f} messages/s, {alone.broker_ns:,.0f} ns of the broker for each; {len(pairs)} pairs")
    for name, each in costs.items():
        print(f"{name}, watched: {each}")
    if wishes.json is not None:
        slices = [
            {"watched": [p[True].rate, p[True].broker_ns], "alone": [p[False].rate, p[False].broker_ns]} for p in pairs
        ]
        told = {name: [each.share, each.low, each.high] for name, each in costs.items()}
        wishes.json.write_text(json.dumps({"costs": told, "slices": slices}))


def _median(slices: list[Slice]) -> Slice:
    return Slice(*(float(np.median([getattr(each, name) for each in slices])) for name in ("rate", "broker_ns")))


if __name__ == "__main__":
    main()
