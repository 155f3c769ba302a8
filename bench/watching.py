"""What it costs to be watched: messages per second with and without open dashboards, in turns, in one run.

    python -m bench.watching

A publisher and a subscriber, in processes of their own, move as many small messages as they can through a broker. While
it is watched, another process has pages open, one of them with a tap on the busy topic, and scrapes /metrics once a
second. Each repeat measures both, in an order that turns around; beside the rate stands the broker's own processor time
for a message, which the other processes of a small machine disturb less.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Final

import clients

TOPIC: Final = "watched"
PAYLOAD: Final = bytes(64)
SETTLE_S: Final = 0.5
SCRAPE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one interval: messages per second, and the broker's processor time for each."""

    rate: float
    broker_us: float


def publish(url: str) -> None:
    """Publishes without end."""
    with clients.connect(url, name="publisher") as bus:
        while True:
            bus.publish(TOPIC, PAYLOAD)


def receive(url: str, count: Synchronized[int]) -> None:
    """Counts what comes, without end."""
    with clients.connect(url, name="subscriber") as bus, bus.subscribe(TOPIC) as subscription:
        for number, _ in enumerate(subscription):
            if not number % 500:
                count.value = number


def watch(admin: str, on: Event, pages: int) -> None:
    """Reads events as browsers do while it is on."""
    host, _, port = admin.removeprefix("http://").rpartition(":")
    while on.wait():
        paths = [f"/api/v1/tap?topic={TOPIC}", *["/api/v1/events"] * pages]
        streams = [socket.create_connection((host, int(port))) for _ in paths]
        for stream, path in zip(streams, paths, strict=True):
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        scraped_s = 0.0
        while on.is_set():
            for stream in select.select(streams, [], [], 0.1)[0]:
                stream.recv(1 << 20)
            if time.monotonic() - scraped_s > SCRAPE_S:
                scraped_s = time.monotonic()
                with socket.create_connection((host, int(port))) as scrape:
                    scrape.sendall(f"GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                    while scrape.recv(1 << 20):
                        pass
        for stream in streams:
            stream.close()


def processor_s(pid: int) -> float:
    """Processor time that a process has taken, in seconds."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(count: Synchronized[int], broker: int, duration_s: float) -> Measured:
    """Waits, and tells what has moved meanwhile."""
    started_s, before, spent_s = time.monotonic(), count.value, processor_s(broker)
    time.sleep(duration_s)
    moved = count.value - before
    spent_us = (processor_s(broker) - spent_s) * 1e6
    return Measured(moved / (time.monotonic() - started_s), spent_us / max(1, moved))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=8, help="of both")
    parser.add_argument("--duration", type=float, default=3.0, help="of each measurement, in seconds")
    parser.add_argument("--pages", type=int, default=1, help="that are open while it is watched")
    wishes = parser.parse_args()
    serve = [sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "127.0.0.1:0"]
    context = multiprocessing.get_context("spawn")
    count, on = context.Value("q", 0, lock=False), context.Event()
    found: dict[bool, list[Measured]] = {False: [], True: []}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as broker:
        assert broker.stdout is not None
        url, admin = (broker.stdout.readline().strip().rpartition(" ")[2] for _ in range(2))
        workers = [
            context.Process(target=receive, args=(url, count), daemon=True),
            context.Process(target=publish, args=(url,), daemon=True),
            context.Process(target=watch, args=(admin, on, wishes.pages), daemon=True),
        ]
        for worker in workers:
            worker.start()
        try:
            measure(count, broker.pid, 2.0)
            for repeat in range(wishes.repeats):
                for watched in (False, True) if repeat % 2 else (True, False):
                    (on.set if watched else on.clear)()
                    time.sleep(SETTLE_S)
                    seen = measure(count, broker.pid, wishes.duration)
                    found[watched].append(seen)
                    word = "watched" if watched else "alone"
                    print(f"{word:<8} {seen.rate:10.0f} messages/s {seen.broker_us:7.3f} us of the broker", flush=True)
        finally:
            for worker in workers:
                worker.kill()
            broker.terminate()
    for name in ("rate", "broker_us"):
        ratios = [
            getattr(watched, name) / getattr(alone, name)
            for alone, watched in zip(found[False], found[True], strict=True)
        ]
        print(f"{name}: watched / alone, median of {len(ratios)}: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
