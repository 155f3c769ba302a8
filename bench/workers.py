"""What a message costs publisher, broker and subscriber, with one worker and with several; and what follows from it.

    python -m bench.workers                            # about a minute
    python -m bench.workers --workers 1,2,4 --pairs 8

Pairs of a publisher and a subscriber, each in a process of its own, over TCP without shared memory: on one host that
would spare the broker most of its work. The topics of the pairs are spread evenly over the workers. A round is so many
messages from each publisher; the rounds of all numbers of workers go in turns, so that they meet the same machine. The
processor time is the processes' own and counts what they do between the first message and the last.

The cost model: a worker takes b of processor time for a message, a publisher p, a subscriber s. With c cores and w
workers whose topics are used evenly, at most min(w / b, c / (p + b + s)) messages pass in a second. The second
figure is what a machine is bound by that runs everything; where clients are elsewhere, a worker is what there is of it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import clients
from bench.machine import processor_ns
from broker.topics.owners import owner

TIMEOUT_S: Final = 60.0
CASES: Final = {"batched": (100, False), "single": (100, True), "64 KiB": (64 << 10, False)}
"""By name, the bytes of a message, and whether each leaves at once."""


class Round(NamedTuple):
    """What one round has taken; times in seconds, of all messages together."""

    messages: int
    wall_s: float
    publishers_s: float
    broker_s: float
    subscribers_s: float


@contextmanager
def serving(workers: int) -> Iterator[tuple[str, list[int]]]:
    """A broker; gives its address and the processes that serve."""
    command = [
        sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off",
        "--log-level", "error", "--workers", str(workers),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("listening on ").strip()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            yield url, list(map(int, children)) if workers > 1 else [process.pid]
        finally:
            process.terminate()


def topics_of(pairs: int, workers: int) -> list[str]:
    """A topic for each pair, as many for each worker as for any other."""
    found: list[str] = []
    number = 0
    while len(found) < pairs:
        if owner(f"bench/{number}", workers) == len(found) % workers:
            found.append(f"bench/{number}")
        number += 1
    return found


def publish(url: str, topic: str, size: int, urgent: bool, orders: Connection) -> None:
    """Sends as many messages as it is told, again and again; tells what that has taken of the processor."""
    value = bytes(size)
    with clients.connect(url, shared_memory=False) as bus:
        orders.send(0.0)
        while count := orders.recv():
            began_s = time.process_time()
            for _ in range(count):
                bus.publish(topic, value, urgent=urgent, timeout_s=TIMEOUT_S)
            bus.flush(TIMEOUT_S)
            orders.send(time.process_time() - began_s)


def subscribe(url: str, topic: str, orders: Connection) -> None:
    """Takes as many messages as it is told, likewise."""
    with clients.connect(url, shared_memory=False) as bus, bus.subscribe(topic) as subscription:
        orders.send(0.0)
        while count := orders.recv():
            began_s = time.process_time()
            for _ in range(count):
                subscription.next(TIMEOUT_S)
            orders.send(time.process_time() - began_s)


class Setting:
    """A broker with its clients, for one case."""

    def __init__(self, url: str, pids: list[int], topics: list[str], size: int, *, urgent: bool) -> None:
        self._pids = pids
        # Forks of a process that has imported this module: each would import all of it anew.
        multiprocessing.set_forkserver_preload(["bench.workers"])
        server = multiprocessing.get_context("forkserver")
        self._ends: list[Connection] = []
        self._children = []
        for topic in topics:
            for target, arguments in ((subscribe, (url, topic)), (publish, (url, topic, size, urgent))):
                ours, theirs = server.Pipe()
                self._children.append(server.Process(target=target, args=(*arguments, theirs)))
                self._ends.append(ours)
        for child in self._children:
            child.start()
        for end in self._ends:
            end.recv()

    def run(self, count: int) -> Round:
        """Has each publisher send so many messages."""
        before_ns, began_s = sum(map(processor_ns, self._pids)), time.monotonic()
        for end in self._ends:
            end.send(count)
        taken_s = [end.recv() for end in self._ends]
        wall_s = time.monotonic() - began_s
        broker_s = (sum(map(processor_ns, self._pids)) - before_ns) / 1e9
        return Round(count * len(self._ends) // 2, wall_s, sum(taken_s[1::2]), broker_s, sum(taken_s[::2]))

    def end(self) -> None:
        """Ends the clients."""
        for end in self._ends:
            end.send(0)
        for child in self._children:
            child.join()


def measure(case: str, counts: list[int], pairs: int, rounds: int, round_s: float) -> dict[int, list[Round]]:
    """The rounds of one case, by the number of workers."""
    size, urgent = CASES[case]
    settings: dict[int, Setting] = {}
    found: dict[int, list[Round]] = {workers: [] for workers in counts}
    brokers = {workers: serving(workers) for workers in counts}
    try:
        for workers, broker in brokers.items():
            url, pids = broker.__enter__()
            settings[workers] = Setting(url, pids, topics_of(pairs, workers), size, urgent=urgent)
        # The first round settles all, and says how many messages a round of the length that is wanted has.
        first = {workers: setting.run(50) for workers, setting in settings.items()}
        first = {workers: setting.run(500) for workers, setting in settings.items()}
        count = max(100, int(500 * round_s / statistics.mean(each.wall_s for each in first.values())))
        for _ in range(rounds):
            for workers, setting in settings.items():
                found[workers].append(setting.run(count))
    finally:
        for setting in settings.values():
            setting.end()
        for broker in brokers.values():
            broker.__exit__(None, None, None)
    return found


def table(case: str, found: dict[int, list[Round]], cores: int) -> list[str]:
    """A line for each number of workers, and what one of them can do."""
    lines = []
    for workers, rounds in found.items():
        rate = statistics.median(each.messages / each.wall_s for each in rounds)
        publisher, broker, subscriber = (
            statistics.median(taken / each.messages * 1e6 for each, taken in zip(rounds, column, strict=True))
            for column in zip(*((each.publishers_s, each.broker_s, each.subscribers_s) for each in rounds), strict=True)
        )
        bound = min(workers / broker, cores / (publisher + broker + subscriber)) * 1e6
        lines.append(
            f"{case:8}  {workers:7}  {rate:10,.0f}  {publisher:9.2f}  {broker:6.2f}  {subscriber:10.2f}  {bound:10,.0f}"
            f"  {workers / broker * 1e6:12,.0f}"
        )
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", default="1,2", help="numbers of workers, with commas")
    parser.add_argument("--pairs", type=int, default=4, help="publishers, and as many subscribers")
    parser.add_argument("--cases", default=",".join(CASES), help="which, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration", type=float, default=1.0, metavar="SECONDS", help="about, of each round")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {options.pairs} publishers and as many subscribers; processor time in us per message")
    print("case      workers  messages/s  publisher  broker  subscriber   at most/s  elsewhere/s")
    for case in options.cases.split(","):
        counts = list(map(int, options.workers.split(",")))
        for line in table(case, measure(case, counts, options.pairs, options.rounds, options.duration), cores):
            print(line, flush=True)


if __name__ == "__main__":
    main()
