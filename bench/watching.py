"""What it costs to be watched: a broker with a page of the dashboard open and its metrics scraped, beside itself alone.

    python -m bench.watching                  # 3.6 minutes; says whether the cost is at most 3 %
    python -m bench.watching --metrics        # as long; the other broker measures no latencies either
    python -m bench.watching --nothing        # as long; says whether the method finds nothing where there is nothing

A publisher and a subscriber, in processes of their own, move small messages through a broker, over sockets. Now and
then it is watched for a second, and then for a second it is not, in an order that turns around:

    |watched| alone | alone |watched|watched| alone | ...        each two make a pair

The processes are the same all the time, and the two seconds of a pair lie side by side: what slows the machine for
longer slows both. What is told is a mean, with the interval in which it lies with 95 %, by bootstrap over the pairs.

**Throughput** is what counts, with as many messages as go: by how much the time per message is more. The whole interval
has to be at most 3 %; status 1 if it is not. On a machine that is not quiet the interval is wide, and nothing is shown.

Two more are told to explain it. With few messages, at a steady pace: which share of a processor the broker takes more.
It has one thread, so of all that it could carry no more than this share is lost; and other processes hardly disturb it.
And with as many as go, the broker's processor time for a message, which is no measure of throughput: it falls when
batches get longer, as they do whenever the broker is late, and rises when they get shorter.

`--metrics` has two brokers, each with a publisher and a subscriber of its own, of which one pair works at a time: one
with all metrics, a page and scrapes, and one without any of it, whose clients do not measure how long messages take.
Together with `--nothing` the two differ in no way.

`--nothing` watches in neither second. What it tells is made up by the method itself: 0 has to lie in the interval of
the throughput, else the status is 1, and how wide that is says which cost could be told from none.
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
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

import clients
from bench.machine import processor_ns
from bench.slices import interval, resampled, turns

TOPIC: Final = "watched"
PAYLOAD: Final = bytes(64)
WARM_UP_S: Final = 2.0
SETTLE_S: Final = 0.15
"""Until pages have been opened or closed."""
SCRAPE_S: Final = 1.0
COUNTED: Final = 64
"""The subscriber says how many messages have come, each time that so many more have."""
GOAL: Final = 0.03
PACE: Final = 1000
"""Messages per second, where they are few."""
PAUSE_S: Final = 0.01
"""Between two of their bursts."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Of one interval: messages per second, and the broker's processor time: for each, in ns, and as a share of one."""

    rate: float
    broker_ns: float
    broker_share: float


THROUGHPUT: Final = "all that go, time per message"
"""The one of the costs that decides."""


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

    @property
    def is_nothing(self) -> bool:
        """Whether it may be none."""
        return self.low <= 0 <= self.high

    def __str__(self) -> str:
        return f"{self.share:+.2%} (95 %: {self.low:+.2%} to {self.high:+.2%})"


def cost(ratios: npt.ArrayLike, seed: int = 1) -> Cost:
    """The geometric mean of ratios, less 1, with its interval by bootstrap.

    Args:
        ratios: of each pair, what is more if watching costs something; above 0.
        seed: of the resampling.
    """
    logs = cost_of_mean(np.log(np.asarray(ratios, np.float64)), seed)
    return Cost(*(float(np.expm1(each)) for each in (logs.share, logs.low, logs.high)))


def cost_of_mean(shares: npt.ArrayLike, seed: int = 1) -> Cost:
    """The mean of what each pair has taken more, with its interval by bootstrap."""
    found = np.asarray(shares, np.float64)
    return Cost(float(found.mean()), *interval(found[resampled(len(found), seed)].mean(axis=1)))


def publish(url: str, shared_memory: bool, going: Event, full: Event) -> None:  # noqa: FBT001
    """Publishes without end, while it is its turn: as much as goes, or at a pace."""
    with clients.connect(url, name="publisher", shared_memory=shared_memory) as bus:
        while going.wait():
            if not full.is_set():
                time.sleep(PAUSE_S)
            for _ in range(1000 if full.is_set() else int(PACE * PAUSE_S)):
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


class Scene:
    """A broker, its publisher and subscriber, and who watches it."""

    def __init__(self, wishes: argparse.Namespace, *settings: str) -> None:
        self._stack = ExitStack()
        serve = [sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "127.0.0.1:0"]
        context = multiprocessing.get_context("spawn")
        self._count = context.Value("q", 0, lock=False)
        self.on, self.full, self.going = context.Event(), context.Event(), context.Event()
        self._broker = self._stack.enter_context(
            subprocess.Popen([*serve, *settings], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        )
        self._stack.callback(self._broker.terminate)
        assert self._broker.stdout is not None
        url, admin = (self._broker.stdout.readline().strip().rpartition(" ")[2] for _ in range(2))
        for target, arguments in (
            (receive, (url, wishes.shared_memory, self._count)),
            (publish, (url, wishes.shared_memory, self.going, self.full)),
            (watch, (admin, self.on, wishes.pages, wishes.tap)),
        ):
            worker = context.Process(target=target, args=arguments, daemon=True)
            worker.start()
            self._stack.callback(worker.kill)

    def await_messages(self) -> None:
        """Waits until some have come."""
        while not self._count.value:
            time.sleep(SETTLE_S)

    def measure(self, duration_s: float) -> Slice:
        """Waits, and tells what has moved meanwhile."""
        pid = self._broker.pid
        started_s, before, spent_ns = time.monotonic(), self._count.value, processor_ns(pid)
        time.sleep(duration_s)
        moved, taken_ns = max(1, self._count.value - before), processor_ns(pid) - spent_ns
        elapsed_s = time.monotonic() - started_s
        return Slice(moved / elapsed_s, taken_ns / moved, taken_ns / 1e9 / elapsed_s)

    def close(self) -> None:
        """Ends all its processes."""
        self._stack.close()

    def __repr__(self) -> str:
        return f"<Scene broker={self._broker.pid}>"


Pair = tuple[Slice, Slice]
"""Watched, and alone."""


def pairs_of(scenes: Mapping[bool, Scene], pairs: int, wishes: argparse.Namespace) -> list[Pair]:
    """Measures pairs, one after the other; a scene for the watched seconds, and one, or the same, for the others."""
    found: dict[bool, list[Slice]] = {True: [], False: []}
    for scene in scenes.values():
        begin(scene, scenes)
        scene.measure(WARM_UP_S)
    for watched in turns(pairs):
        scene = scenes[watched]
        begin(scene, scenes)
        if watched and not wishes.nothing:
            scene.on.set()
        time.sleep(SETTLE_S)
        found[watched].append(scene.measure(wishes.duration))
        scene.on.clear()
    return list(zip(found[True], found[False], strict=True))


def begin(scene: Scene, scenes: Mapping[bool, Scene]) -> None:
    """Lets one scene's messages go, and no other's."""
    for other in scenes.values():
        if other is not scene:
            other.going.clear()
    scene.going.set()
    scene.await_messages()


def costs_of(paced: list[Pair], full: list[Pair]) -> dict[str, Cost]:
    """What pairs with few messages, and with as many as go, say."""
    return {
        "few messages, share of a processor": cost_of_mean(
            [watched.broker_share - alone.broker_share for watched, alone in paced]
        ),
        "all that go, broker's processor time per message": cost(
            [watched.broker_ns / alone.broker_ns for watched, alone in full]
        ),
        THROUGHPUT: cost([alone.rate / watched.rate for watched, alone in full]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=75, help="with as many as go: a second watched, one alone")
    parser.add_argument("--few", type=int, default=15, help="pairs with few messages")
    parser.add_argument("--duration", type=float, default=1.0, help="of each measurement, in seconds")
    parser.add_argument("--pages", type=int, default=1, help="that are open while it is watched")
    parser.add_argument("--tap", action="store_true", help="one of them taps the busy topic")
    parser.add_argument("--shared-memory", action="store_true", help="messages go on lines, past the broker")
    parser.add_argument("--metrics", action="store_true", help="beside a broker whose clients measure no latencies")
    parser.add_argument("--nothing", action="store_true", help="watch in neither second: the error of the method")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all slices and the result to FILE")
    wishes = parser.parse_args()
    with ExitStack() as stack:
        watched = alone = stack.enter_context(closing(Scene(wishes)))
        if wishes.metrics:
            settings = () if wishes.nothing else ("--latency-metrics", "false")
            alone = stack.enter_context(closing(Scene(wishes, *settings)))
        scenes = {True: watched, False: alone}
        paced = pairs_of(scenes, wishes.few, wishes)
        for scene in scenes.values():
            scene.full.set()
        most = pairs_of(scenes, wishes.pairs, wishes)
    for name, pairs in (("few messages", paced), ("all that go", most)):
        usual = _median([pair[1] for pair in pairs])
        print(f"{name}, alone: {usual.rate:,.0f} messages/s, {usual.broker_share:.1%} of a processor for the broker")
    costs = costs_of(paced, most)
    for name, each in costs.items():
        print(f"{name}, watched: {each}" + (f"; {verdict(each, nothing=wishes.nothing)}" if name == THROUGHPUT else ""))
    if wishes.json is not None:
        told = {name: asdict(each) for name, each in costs.items()}
        slices = [[[asdict(each) for each in pair] for pair in pairs] for pairs in (paced, most)]
        wishes.json.write_text(json.dumps({"costs": told, "paced": slices[0], "full": slices[1]}))
    throughput = costs[THROUGHPUT]
    sys.exit(not (throughput.is_nothing if wishes.nothing else throughput.high <= GOAL))


def verdict(throughput: Cost, *, nothing: bool) -> str:
    """What the cost in throughput says: of the goal, or of the method when there was nothing to find."""
    if not nothing:
        return throughput.verdict
    found = "finds nothing, as it should" if throughput.is_nothing else "finds something where nothing differs"
    return f"the method {found}, and would find what is over {(throughput.high - throughput.low) / 2:.2%}"


def _median(slices: list[Slice]) -> Slice:
    return Slice(
        *(float(np.median([getattr(each, name) for each in slices])) for name in ("rate", "broker_ns", "broker_share"))
    )


if __name__ == "__main__":
    main()
