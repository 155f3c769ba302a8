"""Gives a parser many inputs, and watches what they cost.

Memory is what Python's allocators have handed out at most during one input (tracemalloc), beyond what was there before.
It is measured for all of the corpus and for one in 64 of the other inputs, because measuring takes longer than parsing.
"""

from __future__ import annotations

import signal
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import ClassVar, Final

from tests.fuzz.mutations import mutated
from tests.fuzz.parsers import PARSERS, Parser

CORPUS: Final = Path(__file__).with_name("corpus")
MEMORY_RATIO_MAX: Final = 200
"""Bytes of memory for each byte of input."""
MEMORY_BYTES_FREE: Final = 64 * 1024
"""What an input may cost however short it is: the objects of one error with its text."""
MEMORY_BYTES_MADE: Final[Mapping[str, int]] = {"broker": 2 << 20, "toml": 1 << 20}
"""What comes on top for some: a broker and three clients are made for each input; and what is nested too deeply takes
frames of Python until there are as many as may be, whatever the length of the input."""
SHARES: Final[Mapping[str, int]] = {"broker": 10}
"""Which get fewer inputs than the others, one in so many: for each a broker and three clients are made."""
MEASURED_EVERY: Final = 64
HANG_S: Final = 30
"""So long may HANG_INPUTS take of the processor, thousands of times as long as they do."""
WAIT_S: Final = 600
"""So long may they take where others have the processor: what waits for something takes none."""
HANG_INPUTS: Final = 1024


class Hang(Exception):
    """A parser does not come back."""


@dataclass
class Report:
    """What became of a run.

    Attributes:
        parser: its name.
        inputs: how many it was given.
        seconds: of the processor's time, mutating included.
        memory_bytes: what the worst input that was measured has taken.
        memory_ratio: bytes for each byte of input, of the worst one that took more than any may (what is free).
        slowest_s: what the slowest input has taken of the processor.
        faults: each with the input and what was wrong.
        hangs: how many of the faults were inputs that did not come back.
    """

    HEAD: ClassVar[str] = (
        "| Parser | Inputs | Crashes | Hangs | Slowest, ms | Most memory, KiB "
        "| Of it not free, times the input | Processor, s |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    """Of the table that `row` is a line of."""

    parser: str
    inputs: int = 0
    seconds: float = 0.0
    memory_bytes: int = 0
    memory_ratio: float = 0.0
    slowest_s: float = 0.0
    faults: list[tuple[bytes, str]] = field(default_factory=list)
    hangs: int = 0

    @classmethod
    def of(cls, parts: Sequence[Report]) -> Report:
        """What became of several runs of one parser together."""
        return cls(
            parts[0].parser,
            sum(part.inputs for part in parts),
            sum(part.seconds for part in parts),
            max(part.memory_bytes for part in parts),
            max(part.memory_ratio for part in parts),
            max(part.slowest_s for part in parts),
            [fault for part in parts for fault in part.faults],
            sum(part.hangs for part in parts),
        )

    @property
    def row(self) -> str:
        """A line of a table in Markdown."""
        return (
            f"| {self.parser} | {self.inputs:,} | {len(self.faults) - self.hangs} | {self.hangs} | "
            f"{self.slowest_s * 1e3:.1f} | {self.memory_bytes // 1024} | {self.memory_ratio:.0f} | {self.seconds:.0f} |"
        )

    def __str__(self) -> str:
        rate = self.inputs / self.seconds if self.seconds else 0.0
        return (
            f"{self.parser}: {self.inputs} inputs in {self.seconds:.1f} s of the processor ({rate:.0f} per second), "
            f"memory at most {self.memory_bytes // 1024} KiB, {self.memory_ratio:.0f} times the input beyond what is "
            f"free, {len(self.faults)} faults"
        )


def corpus(parser: str) -> list[bytes]:
    """The corpus of a parser: a line in hexadecimal for each input."""
    return [bytes.fromhex(line) for line in (CORPUS / f"{parser}.hex").read_text(encoding="ascii").splitlines()]


def run(parser: str, inputs: int, *, seed: int, faults_max: int = 1) -> Report:
    """Gives a parser its corpus and so many mutations of it; stops at faults_max faults."""
    report, seeds = Report(parser), corpus(parser)
    harness = PARSERS[parser]
    began_s = time.process_time()
    with _no_hang():
        for number, data in enumerate(_inputs(seeds, inputs, Random(seed))):
            if number % HANG_INPUTS == 0:
                signal.setitimer(signal.ITIMER_PROF, HANG_S)
                signal.alarm(WAIT_S)
            measured = number < len(seeds) or number % MEASURED_EVERY == 0
            try:
                if measured:
                    free_bytes = MEMORY_BYTES_FREE + MEMORY_BYTES_MADE.get(parser, 0)
                    taken_bytes = memory_bytes(harness, data)
                    report.memory_bytes = max(report.memory_bytes, taken_bytes)
                    ratio = max(0, taken_bytes - free_bytes) / max(1, len(data))
                    report.memory_ratio = max(report.memory_ratio, ratio)
                    if ratio > MEMORY_RATIO_MAX:
                        raise MemoryError(f"{taken_bytes} bytes of memory for {len(data)} of input")
                else:
                    started_s = time.process_time()
                    harness(data)
                    report.slowest_s = max(report.slowest_s, time.process_time() - started_s)
            except Exception as error:
                report.hangs += isinstance(error, Hang)
                report.faults.append((data, f"{type(error).__name__}: {error}"))
                if len(report.faults) >= faults_max:
                    break
            report.inputs += 1
    report.seconds = time.process_time() - began_s
    return report


def memory_bytes(harness: Parser, data: bytes) -> int:
    """Gives a parser one input; returns how much memory was in use for it at most."""
    tracemalloc.start()
    try:
        harness(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _inputs(seeds: Sequence[bytes], count: int, random: Random) -> Iterator[bytes]:
    yield from seeds
    for _ in range(count):
        yield mutated(seeds, random)


@contextmanager
def _no_hang() -> Iterator[None]:
    """An alarm that nobody puts off raises Hang."""

    def ring(number: int, frame: FrameType | None) -> None:
        seconds = f"{HANG_S} s of the processor" if number == signal.SIGPROF else f"{WAIT_S} s"
        raise Hang(f"{HANG_INPUTS} inputs have taken more than {seconds}")

    before = {number: signal.signal(number, ring) for number in (signal.SIGPROF, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def shares_of(inputs: int, jobs: int) -> list[int]:
    """How many of the inputs each of so many processes gets."""
    return [inputs // jobs + (number < inputs % jobs) for number in range(jobs)]


def names(wanted: Iterable[str]) -> list[str]:
    """The parsers that are meant: all of them for none."""
    return list(wanted) or list(PARSERS)
