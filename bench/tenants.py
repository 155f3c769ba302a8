"""What a tenant that sends as much as it can costs another one, with and without a quota.

    python -m bench.tenants

A broker; the noisy tenant's publisher and reader, each in a process of its own, with messages of 64 KiB over TCP; the
quiet tenant's requests, one after the other, from this process to a responder in a fourth. The rounds go in turns, so
that all of them meet the same machine: quiet alone, noisy without a quota, noisy at its quota.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

import clients
from broker.measuring.percentiles import percentile

MESSAGE: Final = bytes(64 << 10)
TIMEOUT_S: Final = 30.0
CASES: Final = ("alone", "unbounded", "bounded")


def serve(quota: int) -> tuple[subprocess.Popen[str], str]:
    """Starts a broker in which the tenant `bounded` has a quota; returns it and its address."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "broker.toml")
        file.write_text(f"shared_memory = false\n[tenants.bounded]\nbytes_per_second_max = {quota}\n")
        command = [
            sys.executable, "-m", "broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off",
            "--config", str(file), "--log-level", "error",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        return process, process.stdout.readline().removeprefix("listening on ").strip()


def send(url: str, tenant: str, stop: Event, told: Connection) -> None:
    """The noisy tenant's publisher; tells how many bytes a second it has got rid of."""
    with clients.connect(url, name="noisy", tenant=tenant) as bus:
        sent, started_s = 0, time.monotonic()
        while not stop.is_set():
            try:
                bus.publish("noise", MESSAGE, timeout_s=0.2)
            except clients.TimeoutError:
                continue
            sent += len(MESSAGE)
        told.send(sent / (time.monotonic() - started_s))


def read(url: str, tenant: str, stop: Event, ready: Connection) -> None:
    """The noisy tenant's reader."""
    with clients.connect(url, name="reader", tenant=tenant) as bus, bus.subscribe("noise") as subscription:
        ready.send(None)
        while not stop.is_set():
            try:
                subscription.next(0.2)
            except clients.TimeoutError:
                continue


def respond(url: str, stop: Event, ready: Connection) -> None:
    """The quiet tenant's responder."""
    with clients.connect(url, name="responder", tenant="quiet") as bus:
        bus.respond("ask", lambda message: message.value)
        ready.send(None)
        stop.wait()


def measure(url: str, case: str, duration_s: float) -> tuple[list[float], float]:
    """The quiet tenant's round trips in seconds, and the bytes a second that the noisy one has sent."""
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    near, far = spawn.Pipe()
    children = [spawn.Process(target=respond, args=(url, stop, far))]
    if case != "alone":
        children.append(spawn.Process(target=read, args=(url, case, stop, far)))
    for child in children:
        child.start()
        near.recv()
    samples: list[float] = []
    with clients.connect(url, name="asker", tenant="quiet") as bus:
        if case != "alone":
            children.append(spawn.Process(target=send, args=(url, case, stop, far)))
            children[-1].start()
            # Its first second is what its allowance lets through.
            time.sleep(2.0)
        end_s = time.monotonic() + duration_s
        while (asked_s := time.monotonic()) < end_s:
            bus.request("ask", 1, timeout_s=TIMEOUT_S)
            samples.append(time.monotonic() - asked_s)
    stop.set()
    rate = float(near.recv()) if case != "alone" else 0.0
    for child in children:
        child.join()
    return samples, rate


def main() -> None:
    """Prints a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--duration", type=float, default=3.0, metavar="SECONDS", help="of each round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of each case")
    parser.add_argument("--quota", type=int, default=5_000_000, metavar="BYTES", help="a second")
    options = parser.parse_args()
    broker, url = serve(options.quota)
    found: dict[str, tuple[list[float], list[float]]] = {case: ([], []) for case in CASES}
    try:
        for _ in range(options.repeats):
            for case in CASES:
                samples, rate = measure(url, case, options.duration)
                found[case][0].extend(samples)
                found[case][1].append(rate)
    finally:
        broker.terminate()
        broker.wait()
    quiet = sorted(found["alone"][0])
    print(f"{'noisy tenant':12}  {'MB/s':>10}  {'requests':>9}  {'p50 us':>8}  {'p99 us':>8}  {'p50':>6}  {'p99':>6}")
    for case, (samples, rates) in found.items():
        ordered = sorted(samples)
        p50, p99 = (percentile(ordered, percent) for percent in (50, 99))
        print(
            f"{case:12}  {sum(rates) / len(rates) / 1e6:10.1f}  {len(samples):9d}  {p50 * 1e6:8.0f}  {p99 * 1e6:8.0f}  "
            f"{p50 / percentile(quiet, 50):5.2f}x  {p99 / percentile(quiet, 99):5.2f}x"
        )


if __name__ == "__main__":
    main()
