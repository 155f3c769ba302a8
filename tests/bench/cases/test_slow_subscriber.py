"""What the benchmark of a slow subscriber counts."""

from __future__ import annotations

import os
import threading
from collections import Counter

import pytest

from bench.cases.slow_subscriber import BUCKET_NS, SIZE_BYTES, Reader, memory_bytes, rate_hz, status_bytes
from bench.contestant import Bus, Handler, Publisher, Subscriber
from bench.tasks import Task


class Handed(Bus):
    """A bus that keeps its handler."""

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        raise NotImplementedError

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        raise NotImplementedError

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        self.function = function

    def close(self) -> None:
        raise NotImplementedError


def read(*numbers: int) -> Reader:
    bus = Handed()
    reader = Reader(bus, Task("", size_bytes=SIZE_BYTES), threading.Event())
    for number in numbers:
        bus.function(number.to_bytes(8, "little") + bytes(SIZE_BYTES - 8))
    return reader


def test_messages_that_never_came_are_missed() -> None:
    reader = read(1, 2, 5)
    assert (reader.seen, reader.missed, reader.disorder, reader.counts.total()) == (5, 2, 0, 3)


@pytest.mark.parametrize("numbers", [(1, 1), (1, 3, 2)])
def test_messages_that_come_again_or_late_are_noticed(numbers: tuple[int, ...]) -> None:
    assert read(*numbers).disorder == 1


def test_counts_that_were_told_do_not_change_when_messages_go_on_coming() -> None:
    reader = read(1, 2)
    told = reader.counted()
    reader.bus.function((3).to_bytes(8, "little") + bytes(SIZE_BYTES - 8))
    assert (told.total(), reader.counted().total()) == (2, 3)


def test_a_rate_counts_whole_buckets_between_two_times() -> None:
    counts = Counter({9: 1000, 10: 5, 11: 15, 12: 1000})
    assert rate_hz(counts, 9 * BUCKET_NS + 1, 12 * BUCKET_NS + 1) == pytest.approx(20 / (2 * BUCKET_NS / 1e9))


def test_memory_is_read_in_bytes_and_a_process_that_has_ended_has_none() -> None:
    status = "Name:\tbroker\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n"
    assert [status_bytes(status, field) for field in ("VmHWM", "VmRSS")] == [2 << 20, 1 << 20]
    assert status_bytes("Name:\tbroker\nState:\tZ (zombie)\n", "VmRSS") is None
    assert memory_bytes(os.getpid(), "VmRSS") > 0
