"""State dicts that are longer than the memory of the broker, and of everybody else."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import clients
from broker.limits import MIB
from broker.protocol.codes import Code
from tests.daemon import Daemon, Process

MEMORY_BYTES = 512 * MIB
"""What the broker's process may have: of address space, so code, stacks and all that is only reserved count too."""
SEEN_BYTES_MAX = 256 * MIB
"""The most that it may have used."""
GROWN_BYTES_MAX = 32 * MIB
PATIENCE_S = 400.0
"""As long as four gibibytes may take with nothing compiled, where others have the processors too."""


@contextmanager
def limited_broker() -> Iterator[Daemon]:
    # Libraries reserve address space for each thread, and threads by the number of cores; neither is the broker's need.
    environment = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    # A reader is stopped for as long as gigabytes take, on a busy machine as well.
    with Daemon("--heartbeat-timeout-s", f"{2 * PATIENCE_S}", admin="off", environment=environment) as daemon:
        assert daemon.process is not None
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        yield daemon
        assert daemon.running, daemon.errors
        assert most_memory_bytes(daemon.process.pid) < SEEN_BYTES_MAX


def most_memory_bytes(pid: int) -> int:
    """The most memory that a process has had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def start(stack: ExitStack, *arguments: object) -> Process:
    return stack.enter_context(Process(*map(str, arguments), module="tests.system.state_dict"))


def start_reader(stack: ExitStack, url: str, tensors: int, overflow: str) -> Process:
    reader = start(stack, "read", url, tensors, overflow)
    assert reader.read_line(PATIENCE_S) == "subscribed"
    return reader


def grown_bytes(line: str, how: str) -> int:
    words, _, grown = line.partition(" grown=")
    assert words == how
    return int(grown)


@pytest.mark.timeout(600)
def test_four_gibibytes_pass_through_a_broker_of_half_a_gibibyte_and_a_slow_reader_costs_nobody_anything() -> None:
    with limited_broker() as daemon, ExitStack() as stack:
        reader, slow = (start_reader(stack, daemon.url, 64, overflow) for overflow in ("block", "drop_newest"))
        publisher = start(stack, "publish", daemon.url, 64, PATIENCE_S)
        assert slow.read_line(PATIENCE_S) == "begun"
        slow.signal(signal.SIGSTOP)
        # Nobody has copied it: not the publisher, whose tensors share 64 MiB, nor the broker.
        assert grown_bytes(publisher.read_line(PATIENCE_S), "published") < GROWN_BYTES_MAX
        assert reader.read_line(PATIENCE_S) == "begun"
        name, _, size = reader.read_line(PATIENCE_S).partition(" bytes=")
        assert name == "complete"
        assert 4096 * MIB < int(size) < 4097 * MIB
        slow.signal(signal.SIGCONT)
        assert slow.read_line(PATIENCE_S) == f"aborted code={int(Code.DROPPED)}"


def test_a_reader_that_stops_holds_back_the_publisher_of_a_large_message_and_nothing_else() -> None:
    with limited_broker() as daemon, ExitStack() as stack:
        stopped = start_reader(stack, daemon.url, 64, "block")
        # Before the message begins: how far it would come in the publisher's time is the machine's affair.
        stopped.signal(signal.SIGSTOP)
        publisher = start(stack, "publish", daemon.url, 64, 2.0)
        with clients.connect(daemon.url, name="other") as bus:
            for sequence in range(1, 100):
                assert bus.publish("metrics/loss", 0.5, ack="accepted") == sequence
        assert grown_bytes(publisher.read_line(PATIENCE_S), "timed out") < GROWN_BYTES_MAX
        stopped.signal(signal.SIGCONT)
        assert stopped.read_line(PATIENCE_S) == "begun"
        assert stopped.read_line(PATIENCE_S) == f"aborted code={int(Code.PUBLISHER_GONE)}"
