"""How long it takes until a rank that stops in the middle of an all-reduce is named, by `stuck` and on the dashboard.

    python -m tests.system.naming --count 25                # by star, shm, ring and halving: about three minutes

Four ranks, real processes, carry out one all-reduce after the other. At a random moment a random one of them is stopped
with SIGSTOP, and from that moment it is measured until it is named, and nobody else:

    known      what `stuck` asks the broker for names it: it would have, had it been run just then
    command    `tensorbus stuck`, run again and again as somebody would type it, has ended and names it
    page       the events by which the dashboard is told name it as one who is waited for

Then it goes on, and when operations are done again the next one is stopped. It prints the p50, the p99 and the longest
of each, and how often another rank was named first: on a busy machine one that gets no processor does stand still. It
ends with status 1 when one took longer than a second. The times are of interest on a quiet machine alone.

Which delays there are by design is written at NAMED_WITHIN_S in broker/limits.py.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from typing import Any, Final

import numpy as np

import clients
from broker.limits import NAMED_WITHIN_S, WAITS_S
from clients.connection.views import view
from tests.daemon import PATIENCE_S, ROOT, Daemon, Process

SCHEDULES: Final = ("star", "shm", "ring", "halving")
WATCHERS: Final = ("known", "command", "page")
WORLD_SIZE: Final = 4
MOMENT_MAX_S: Final = 0.2
"""How long the ranks work between two stops."""
LOOK_S: Final = 0.005
"""Between two questions of `known`, which cost the broker something too."""

Named = set[int]
"""Ranks for whom something waits."""


def named_in(groups: list[dict[str, Any]]) -> Named:
    """Whom `stuck` and the page name, of groups as both are told of them."""
    waiting = [each for group in groups for each in group["operations"] if each["unmoved_s"] >= WAITS_S]
    return {rank for each in waiting for rank in each["missing_ranks"]}


def known(daemon: Daemon) -> Generator[Named, None, None]:
    with clients.connect(daemon.url, name="known") as bus:
        while True:
            yield named_in(list(view(bus, "groups")))
            time.sleep(LOOK_S)


def command(daemon: Daemon) -> Generator[Named, None, None]:
    words = [sys.executable, "-m", "broker", "stuck", daemon.url, "--json"]
    while True:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        yield {rank for line in done.stdout.splitlines() for rank in json.loads(line)["missing_ranks"]}


def page(daemon: Daemon) -> Generator[Named, None, None]:
    with closing(HTTPConnection(daemon.admin_url.removeprefix("http://"), timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/api/v1/events")
        with connection.getresponse() as events:
            for line in events:
                if line.startswith(b"data:"):
                    yield named_in(json.loads(line.removeprefix(b"data:"))["groups"])


class Watcher:
    """Somebody who looks again and again who is named, on a thread of its own."""

    def __init__(self, look: Callable[[Daemon], Generator[Named, None, None]], daemon: Daemon) -> None:
        self._looks = look(daemon)
        self._changed = threading.Condition()
        self._stopped: int | None = None
        self._since_s = 0.0
        self._took_s: float | None = None
        self._over = False
        self.failure: BaseException | None = None
        self.others = 0
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def expect(self, rank: int, since_s: float) -> None:
        """A rank has been stopped at a time of the monotonic clock."""
        with self._changed:
            self._stopped, self._since_s, self._took_s = rank, since_s, None

    def wait(self) -> float:
        """Returns how long it took until it was named, in seconds."""
        with self._changed:
            told = self._changed.wait_for(lambda: self._took_s is not None or self.failure is not None, PATIENCE_S)
            if not told or self._took_s is None:
                raise SystemExit(f"rank {self._stopped} was not named: {self.failure or 'nobody is'}")
            return self._took_s

    def close(self) -> None:
        self._over = True
        self._thread.join(PATIENCE_S)

    def _watch(self) -> None:
        try:
            for found in self._looks:
                if self._over:
                    return
                self._see(found)
        except BaseException as error:
            with self._changed:
                self.failure = error
                self._changed.notify_all()
        finally:
            self._looks.close()

    def _see(self, found: Named) -> None:
        with self._changed:
            if self._stopped is None or not found:
                return
            if found != {self._stopped}:
                self.others += 1
                return
            self._took_s, self._stopped = time.monotonic() - self._since_s, None
            self._changed.notify_all()


def measure(schedule: str, count: int, elements: int, chance: random.Random) -> tuple[dict[str, list[float]], int]:
    """Stops ranks of one group so often; returns the times of each watcher, and how often another was named."""
    with tempfile.TemporaryDirectory(prefix="naming-") as folder, ExitStack() as stack:
        shared = "true" if schedule == "shm" else "false"
        listen = [f"unix://{folder}/bus"] if schedule == "shm" else ["tcp://127.0.0.1:0"]
        daemon = stack.enter_context(Daemon("--shared-memory", shared, listen=listen))
        ranks = []
        for number in range(WORLD_SIZE):
            words = (daemon.url, str(number), str(WORLD_SIZE), str(elements), schedule)
            ranks.append(stack.enter_context(Process(*words, module="tests.system.rank")))
        for rank in ranks:
            while rank.read_line() != "running":
                pass
        bus = stack.enter_context(clients.connect(daemon.url, name="naming"))
        watchers = {name: Watcher(globals()[name], daemon) for name in WATCHERS}
        for watcher in watchers.values():
            stack.callback(watcher.close)
        times: dict[str, list[float]] = {name: [] for name in WATCHERS}
        for _ in range(count):
            time.sleep(chance.uniform(0, MOMENT_MAX_S))
            victim = chance.randrange(WORLD_SIZE)
            ranks[victim].signal(signal.SIGSTOP)
            stopped_s = time.monotonic()
            for watcher in watchers.values():
                watcher.expect(victim, stopped_s)
            for name, watcher in watchers.items():
                times[name].append(watcher.wait())
            before = operations(bus)
            ranks[victim].signal(signal.SIGCONT)
            await_more(bus, before)
        return times, sum(watcher.others for watcher in watchers.values())


def operations(bus: clients.Client) -> int:
    """How many the group has done."""
    (group,) = view(bus, "groups")
    return int(str(group["recorded_operations"]))


def await_more(bus: clients.Client, before: int) -> None:
    """Waits until the group does operations again."""
    end_s = time.monotonic() + PATIENCE_S
    while operations(bus) <= before:
        if time.monotonic() > end_s:
            raise SystemExit("the ranks do not go on")
        time.sleep(LOOK_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=25, help="how often to stop a rank, of each schedule")
    parser.add_argument("--schedules", default=",".join(SCHEDULES))
    parser.add_argument("--elements", type=int, default=100_000, help="of the arrays, float64")
    parser.add_argument("--seed", type=int, default=1)
    wishes = parser.parse_args()
    chance, too_long = random.Random(wishes.seed), 0
    print(f"{'schedule':9} {'named by':9} {'p50 s':>7} {'p99 s':>7} {'max s':>7}  over {NAMED_WITHIN_S:g} s")
    for schedule in wishes.schedules.split(","):
        times, others = measure(schedule, wishes.count, wishes.elements, chance)
        for name, found in times.items():
            late = sum(each > NAMED_WITHIN_S for each in found)
            too_long += late
            shown = "".join(f" {each:7.3f}" for each in np.percentile(found, [50, 99, 100]))
            print(f"{schedule:9} {name:9}{shown}  {late} of {len(found)}", flush=True)
        print(f"{schedule:9} another rank was named first: {others} times in {wishes.count} stops", flush=True)
    sys.exit(bool(too_long))


if __name__ == "__main__":
    main()
