"""What a parent asks of a worker and what comes back, as JSON on its command line and its standard output."""

from __future__ import annotations

from collections.abc import Callable, Generator

import msgspec

from bench.contestant import Bus


class Task(msgspec.Struct, frozen=True, omit_defaults=True):
    """One worker's part of a step; a role uses what it needs.

    Attributes:
        role: which part.
        contestant: the name of the system to measure.
        address: where its broker listens.
        size_bytes: of each message.
        count: messages or operations to measure.
        warm_up: messages or operations before them that are not measured.
        rate_hz: messages per second of a paced sender.
        duration_s: how long a sender without a count sends, or waits before it begins.
        rank: of a collective's member.
        world_size: members of a collective.
        dtype: of a collective's arrays.
        run: which of the broker's runs of ranks it is, from 1.
        subscribers: in one process.
        threads: whether several threads are to use the worker's bus; see Contestant.connect.
    """

    role: str
    contestant: str = ""
    address: str = ""
    size_bytes: int = 0
    count: int = 0
    warm_up: int = 0
    rate_hz: float = 0.0
    duration_s: float = 0.0
    rank: int = 0
    world_size: int = 0
    dtype: str = ""
    run: int = 0
    subscribers: int = 0
    threads: bool = False


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker has measured; a role fills in what it has.

    Attributes:
        count: messages.
        elapsed_s: from the first measured message to the last.
        times_ns: times on CLOCK_MONOTONIC, of each message or operation.
        stream_times_ns: the same of a stream beside them.
        counts: messages by time, the keys in units that the role says.
        numbers: of the messages that it got.
    """

    count: int = 0
    elapsed_s: float = 0.0
    times_ns: tuple[int, ...] = ()
    stream_times_ns: tuple[int, ...] = ()
    counts: dict[int, int] = {}
    numbers: tuple[int, ...] = ()


Part = Generator[None, None, Result]
Role = Callable[[Bus, Task], Part]
"""What a worker does: preparation, one yield when it is ready, then what is measured; its value is the result."""
