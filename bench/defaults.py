"""What a default costs beside other values of it: the length of chunks, the publisher's window, the window of batches.

    python -m bench.defaults                       # all three, 5 repeats
    python -m bench.defaults --only chunk --repeats 9

Chunks and windows: arrays of 16 MiB back to back over TCP, beside messages of 64 B in the control lane, 200 a second,
from the same client to the same client. Windows of batches: messages of 64 B as fast as they can be published.

Each value has a broker, a publisher and a subscriber of its own, processes all three, and all values run in turn in
each repeat, in an order that turns around. Figures are medians over the repeats; "of the default's" is the median
of the ratios within each repeat. Processor time is what the scheduler has counted, of all threads of a process, so it
says something on a busy machine too; latencies do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from bench.children import Child, end_all, program
from bench.machine import processor_ns
from broker import limits
from broker.limits import KIB, MIB

LIMIT_S: Final = 60
ARRAY_BYTES: Final = 16 * MIB
ARRAYS: Final = 64
WARM_UP: Final = 16
CONTROL_HZ: Final = 200
MESSAGES: Final = 400_000
SMALL: Final = bytes(64)
STAMP: Final = struct.Struct("<Q")
VALUES: Final = {
    "chunk": (128 * KIB, 256 * KIB, 512 * KIB, 1024 * KIB),
    "window": (1 * MIB, 2 * MIB, 4 * MIB, 8 * MIB),
    "batch": (50, 100, 200, 400, 800),
}
DEFAULTS: Final = {
    "chunk": limits.CHUNK_BYTES,
    "window": limits.PUBLISH_WINDOW_BYTES,
    "batch": limits.BATCH_WINDOW_NS // 1000,
}
UNITS: Final = {"chunk": (KIB, "KiB"), "window": (MIB, "MiB"), "batch": (1, "us")}
ROLES: Final = ("publisher", "broker", "subscriber")


# What the processes do.


def say(word: object) -> None:
    """Tells the parent."""
    print(word, flush=True)


def serve(options: str) -> None:
    """The broker."""
    from broker.cli.main import main as tensorbus

    tensorbus(json.loads(options), prog_name="tensorbus")


def publish_arrays(address: str) -> None:
    """Sends arrays from one thread and control messages from another one."""
    import clients

    over = threading.Event()
    with clients.connect(address, reconnect_timeout_s=0.0) as bus:

        def control() -> None:
            while not over.wait(1 / CONTROL_HZ):
                bus.publish("defaults/control", STAMP.pack(time.monotonic_ns()), lane="control")

        array = np.ones(ARRAY_BYTES // 4, np.float32)
        say("ready")
        sys.stdin.readline()
        beside = threading.Thread(target=control)
        beside.start()
        for _ in range(WARM_UP + ARRAYS):
            bus.publish("defaults/arrays", array, lane="bulk")
        over.set()
        beside.join()
        bus.flush(timeout_s=LIMIT_S)
        sys.stdin.readline()


def receive_arrays(address: str) -> None:
    """Sums arrays, and notes how long control messages took."""
    import clients

    took_ns: list[int] = []
    with clients.connect(address, reconnect_timeout_s=0.0) as bus:
        bus.subscribe(
            "defaults/control",
            handler=lambda message: took_ns.append(time.monotonic_ns() - STAMP.unpack(message.value)[0]),
        )
        arrays = bus.subscribe("defaults/arrays")
        say("ready")
        for count in range(WARM_UP + ARRAYS):
            if count == WARM_UP:
                took_ns.clear()
                say("warm")
                began_s = time.monotonic()
            np.asarray(arrays.next(timeout_s=LIMIT_S).value).sum(dtype=np.float32)
        elapsed_s = time.monotonic() - began_s
        ordered = sorted(took_ns) or [0]
        p50, p99 = (ordered[int(share * (len(ordered) - 1))] / 1e6 for share in (0.5, 0.99))
        say(json.dumps({"rate": ARRAYS * ARRAY_BYTES / elapsed_s / 1e9, "p50": p50, "p99": p99, "per": ARRAYS}))
        sys.stdin.readline()


def publish_small(address: str, window_us: int) -> None:
    """Sends small messages, and says how long batches may wait."""
    import clients

    with clients.connect(address, reconnect_timeout_s=0.0) as bus:
        bus.declare("defaults/small", batch_window_us=window_us)
        say("ready")
        sys.stdin.readline()
        for _ in range(MESSAGES + MESSAGES // 4):
            bus.publish("defaults/small", SMALL)
        bus.flush(timeout_s=LIMIT_S)
        sys.stdin.readline()


def receive_small(address: str) -> None:
    """Counts them."""
    import clients

    with clients.connect(address, reconnect_timeout_s=0.0) as bus:
        messages = bus.subscribe("defaults/small")
        say("ready")
        for _ in range(MESSAGES // 4):
            messages.next(timeout_s=LIMIT_S)
        say("warm")
        began_s = time.monotonic()
        for _ in range(MESSAGES):
            messages.next(timeout_s=LIMIT_S)
        elapsed_s = time.monotonic() - began_s
        say(json.dumps({"rate": MESSAGES / elapsed_s / 1e3, "per": MESSAGES / 1000}))
        sys.stdin.readline()


# One run.


def measure(kind: str, value: int) -> dict[str, float]:
    """One run with one value of one default; the processor time is that for an array, or for 1,000 messages."""
    chunk_bytes = value if kind == "chunk" else DEFAULTS["chunk"]
    serving = ["serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off"]
    if kind == "window":
        serving += ["--publish-window-bytes", str(value)]
    children: list[Child] = []

    def start(role: str, *words: str) -> Child:
        command = [sys.executable, "-m", "bench.defaults", "--role", role, "--chunk-bytes", str(chunk_bytes)]
        child = Child(role, program([*command, "--words", *words], LIMIT_S))
        children.append(child)
        return child

    try:
        broker = start("broker", json.dumps(serving))
        address = broker.line().removeprefix("listening on ")
        subscriber = start("subscriber", kind, address)
        subscriber.line()
        publisher = start("publisher", kind, address, str(value))
        publisher.line()
        publisher.say("go")
        subscriber.line()
        ids = [child.process_id for child in (publisher, broker, subscriber)]
        before = [processor_ns(one) for one in ids]
        figures: dict[str, float] = json.loads(subscriber.line())
        spent_ms = [(processor_ns(one) - earlier) / 1e6 for one, earlier in zip(ids, before, strict=True)]
    finally:
        end_all(children)
    per = figures.pop("per")
    return figures | {role: ms / per for role, ms in zip(ROLES, spent_ms, strict=True)} | {"all": sum(spent_ms) / per}


def compare(kind: str, repeats: int) -> None:
    """Prints the table of one default."""
    values, (unit, name), default = VALUES[kind], UNITS[kind], DEFAULTS[kind]
    runs: dict[int, list[dict[str, float]]] = {value: [] for value in values}
    for repeat in range(repeats):
        for value in values if repeat % 2 == 0 else reversed(values):
            runs[value].append(measure(kind, value))
    small = kind == "batch"
    print(f"\n{kind}, {'64 B' if small else '16 MiB arrays'}, {repeats} repeats")
    print(f"{'value':>12} {'thousand/s' if small else 'GB/s':>10}", end=" ")
    print("".join(f"{role:>11}" for role in (*ROLES, "all, ms")), end=" ")
    print("  of the default's" + ("" if small else "   control p50, ms    p99"))
    for value in values:

        def median(of: Callable[[dict[str, float]], float], chosen: int = value) -> float:
            return statistics.median(map(of, runs[chosen]))

        ratio = statistics.median(
            one["all"] / other["all"] for one, other in zip(runs[value], runs[default], strict=True)
        )
        mark = "*" if value == default else ""
        row = f"{mark}{value // unit} {name}".rjust(12) + f" {median(lambda run: run['rate']):10.2f} "
        for key in (*ROLES, "all"):
            row += f"{median(lambda run, key=key: run[key]):11.2f}"  # type: ignore[misc]
        row += f" {ratio:17.2f}"
        if not small:
            row += f" {median(lambda run: run['p50']):17.2f} {median(lambda run: run['p99']):6.2f}"
        print(row, flush=True)


def play(role: str, chunk_bytes: int, words: Sequence[str]) -> None:
    """One process of a run."""
    # Before anything else has read it.
    limits.CHUNK_BYTES = chunk_bytes  # type: ignore[misc]
    if role == "broker":
        serve(words[0])
        return
    kind, address, *value = words
    if role == "subscriber":
        (receive_small if kind == "batch" else receive_arrays)(address)
    elif kind == "batch":
        publish_small(address, int(value[0]))
    else:
        publish_arrays(address)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(VALUES), help="which defaults, with commas between them")
    parser.add_argument("--repeats", type=int, default=5, help="runs with each value")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--chunk-bytes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--words", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        play(options.role, options.chunk_bytes, options.words)
        return
    for kind in options.only.split(","):
        compare(kind, options.repeats)


if __name__ == "__main__":
    main()
