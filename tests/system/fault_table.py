"""What a run of faults has found, by the kind of fault (collective_faults.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

PROBLEMS: Final = ("hang", "wrong", "leak")
"""Nothing was said, or nobody went on, in time; a result that is wrong or half applied; something was left behind."""


class Broken(AssertionError):
    """Something did not hold.

    Attributes:
        problem: one of PROBLEMS.
        kind: of the fault after which it was seen.
    """

    def __init__(self, problem: str, words: str, kind: str = "the beginning") -> None:
        super().__init__(words)
        self.problem = problem
        self.kind = kind


class Table:
    """Faults and what came of them.

    Attributes:
        done: faults after which all was well, by kind.
        problems: those after which it was not, by kind and problem.
        told_ms: from a fault, or a survivor's later call, to the last survivor's typed error, by kind.
        whole_ms: from a fault to the first operation with all ranks, by kind.
        since_ms: to that from the moment in which the newcomer's program ran, if there was one, by kind: the rest is an
            interpreter's start and its imports.
    """

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.problems: Counter[tuple[str, str]] = Counter()
        self.told_ms: dict[str, list[float]] = {}
        self.whole_ms: dict[str, list[float]] = {}
        self.since_ms: dict[str, list[float]] = {}

    def add(self, other: Table) -> None:
        """Counts what another run has found."""
        self.done += other.done
        self.problems += other.problems
        pairs = (
            (self.told_ms, other.told_ms),
            (self.whole_ms, other.whole_ms),
            (self.since_ms, other.since_ms),
        )
        for mine, theirs in pairs:
            for kind, times_ms in theirs.items():
                mine.setdefault(kind, []).extend(times_ms)

    def lines(self) -> list[str]:
        """For people: a line for each kind, and one for all."""
        kinds = sorted({*self.done, *(kind for kind, _ in self.problems)}, key=lambda kind: (-self.done[kind], kind))
        head = f"{'fault':<18} {'count':>6} {'hangs':>6} {'wrong':>6} {'leaks':>6}"
        head += "".join(
            f" {title:>18} {'p99':>6} {'max':>6}" for title in ("named, ms: p50", "whole, ms: p50", "since start: p50")
        )
        lines = [head]
        for kind in kinds:
            of_kind = [self.problems[kind, problem] for problem in PROBLEMS]
            times_ms = [found.get(kind, []) for found in (self.told_ms, self.whole_ms, self.since_ms)]
            lines.append(_line(kind, self.done[kind], of_kind, times_ms))
        of_all = [sum(self.problems[kind, problem] for kind in kinds) for problem in PROBLEMS]
        return [*lines, _line("all", self.done.total(), of_all, [])]


def _line(kind: str, well: int, problems: Sequence[int], times_ms: Sequence[Sequence[float]]) -> str:
    counts = "".join(f" {count:>6}" for count in problems)
    return f"{kind:<18} {well + sum(problems):>6}{counts}{''.join(map(_places, times_ms))}"


def _places(times_ms: Sequence[float]) -> str:
    """Median, 99th percentile and maximum."""
    if not times_ms:
        return f" {'-':>18} {'-':>6} {'-':>6}"
    ordered = sorted(times_ms)
    middle, late, last = (ordered[min(len(ordered) - 1, int(len(ordered) * place))] for place in (0.5, 0.99, 1.0))
    return f" {middle:>18.0f} {late:>6.0f} {last:>6.0f}"
