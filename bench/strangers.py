"""How long a broker's event loop is at a time with strangers, while everybody else waits.

    python -m bench.strangers                 # a minute and a half

A broker runs with a probe in its event loop, which asks in each turn what the turn has taken of the processor: the
longest one counts, and how busy the machine is makes little difference. Interrupts do, though: what the kernel does in
one for other processes counts as time of whoever it has interrupted. So each thing happens to several brokers, of which
the median counts. A client makes requests all the while. The broker is stopped (SIGSTOP) while a thousand things are
made to happen, so that they are there at once when it goes on.

Beside the turns: what a stranger costs in all, from being accepted to being turned away, in processor time and in
memory while it is there.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import uvloop

import clients
from bench.flood import asking, processor_s, raise_descriptor_limit
from broker.limits import HALF_OPEN_MAX, HELLO_TIMEOUT_S

SETTLE_S = 1.5


class Probe:
    """Measures the turns of an event loop; tells the longest one since it was last asked, on SIGUSR1."""

    def __init__(self, loop: uvloop.Loop) -> None:
        self._loop = loop
        self._longest_s = 0.0
        self._last_s = time.thread_time()
        loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._loop.add_signal_handler(signal.SIGUSR1, self._tell)
        self._turn()

    def _turn(self) -> None:
        now_s = time.thread_time()
        self._longest_s, self._last_s = max(self._longest_s, now_s - self._last_s), now_s
        self._loop.call_soon(self._turn)

    def _tell(self) -> None:
        print(f"longest {self._longest_s:.9f}", flush=True)
        self._longest_s, self._last_s = 0.0, time.thread_time()


def serve() -> None:
    """Is the broker, with a probe."""
    make = uvloop.new_event_loop

    def make_probed() -> uvloop.Loop:
        loop = make()
        Probe(loop)
        return loop

    uvloop.new_event_loop = make_probed
    from broker.cli.main import main as broker

    broker(["serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off"])


class Broker:
    """A process of `serve`, or of a broker without a probe."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process, self._stdout = process, process.stdout
        self.url = self._stdout.readline().removeprefix("listening on ").strip()

    def longest_ms(self) -> float:
        """The longest turn since this was last called."""
        os.kill(self.process.pid, signal.SIGUSR1)
        while not (line := self._stdout.readline()).startswith("longest "):
            continue
        return float(line.split()[1]) * 1e3

    def own_kib(self) -> int:
        """What it has resident of its own."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1])


@contextmanager
def running(*command: str) -> Iterator[Broker]:
    """A broker."""
    with subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield Broker(process)
        finally:
            process.terminate()


def dial(url: str, count: int) -> list[socket.socket]:
    """So many connections in a row."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.setblocking(False)
        with suppress(BlockingIOError):
            sock.connect((host, int(port)))
    return socks


def ask(asker: clients.Client, seconds: float) -> None:
    """Requests, for so long."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        asker.request("flood/echo", 1, timeout_s=30.0)


def turns(connections: int) -> dict[str, float]:
    """The longest turns of one broker, in milliseconds, by what happened."""
    found = {}
    with running("bench.strangers", "--serve") as broker, asking(broker.url) as asker:

        def at_once(what: Callable[[socket.socket], object]) -> None:
            os.kill(broker.process.pid, signal.SIGSTOP)
            for sock in socks:
                with suppress(OSError):
                    what(sock)
            os.kill(broker.process.pid, signal.SIGCONT)

        ask(asker, SETTLE_S)
        broker.longest_ms()
        ask(asker, SETTLE_S)
        found["quiet"] = broker.longest_ms()
        socks = dial(broker.url, connections)
        ask(asker, SETTLE_S)
        found[f"{connections} dial in a row"] = broker.longest_ms()
        at_once(lambda sock: sock.send(b"\x93"))
        ask(asker, SETTLE_S)
        found["a byte of each at once"] = broker.longest_ms()
        at_once(socket.socket.close)
        ask(asker, SETTLE_S)
        found["all of them gone at once"] = broker.longest_ms()
        socks = dial(broker.url, HALF_OPEN_MAX)
        ask(asker, SETTLE_S)
        broker.longest_ms()
        ask(asker, HELLO_TIMEOUT_S)
        found[f"the time of {HALF_OPEN_MAX} over at once"] = broker.longest_ms()
        at_once(socket.socket.close)
    return found


def costs(connections: int) -> str:
    """What a stranger costs who is pushed out by others, in a line."""
    with running("broker", "serve", "--listen", "tcp://127.0.0.1:0", "--admin", "off") as broker:
        for sock in dial(broker.url, HALF_OPEN_MAX):
            sock.close()
        time.sleep(SETTLE_S)
        kib, used_s = broker.own_kib(), processor_s(broker.process.pid)
        socks = []
        for _ in range(0, connections, 50):
            socks += dial(broker.url, 50)
            time.sleep(0.01)
        time.sleep(SETTLE_S)
        used_s, kib = processor_s(broker.process.pid) - used_s, broker.own_kib() - kib
        for sock in socks:
            sock.close()
    each_us, each_kib = used_s / connections * 1e6, kib / HALF_OPEN_MAX
    return f"a stranger: {each_us:.0f} us of the processor in all, {each_kib:.1f} KiB while it is there"


def main() -> None:
    """Measures, or is the broker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--brokers", type=int, default=5, help="one after the other")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    wishes = parser.parse_args()
    raise_descriptor_limit()
    if wishes.serve:
        serve()
        return
    found = [turns(wishes.connections) for _ in range(wishes.brokers)]
    print(f"the longest turn of each of {wishes.brokers} brokers, in ms of the processor")
    for what in found[0]:
        longest = [each[what] for each in found]
        print(f"{what:36} median {median(longest):6.2f}  from {min(longest):6.2f} to {max(longest):6.2f}")
    print(costs(wishes.connections))


if __name__ == "__main__":
    main()
