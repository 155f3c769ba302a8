"""The gaps of one subscription: which messages it has lost and has not been told of.

A gap is told with the first message of its topic that comes after it, so that the reader sees it where it is:

    sequence   4     5 6 7    8     9
               sent  dropped  sent  sent
                              |
                              gap of 3
"""

from __future__ import annotations


class Gaps:
    """Runs of lost sequences by topic; empty as a rule, and then false."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: dict[str, list[tuple[int, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    def add(self, topic: str, sequence: int, count: int) -> None:
        """Messages are lost: `count` from a sequence on. Runs that touch become one."""
        runs = self._runs.setdefault(topic, [])
        if runs and runs[-1][0] + runs[-1][1] == sequence:
            sequence, before = runs.pop()
            count += before
        runs.append((sequence, count))

    def take(self, topic: str, sequence: int) -> int:
        """How many messages of a topic were lost ahead of a sequence; they are told now."""
        runs = self._runs.get(topic)
        if runs is None:
            return 0
        ahead = sum(count for first, count in runs if first < sequence)
        left = [run for run in runs if run[0] >= sequence]
        if left:
            self._runs[topic] = left
        else:
            del self._runs[topic]
        return ahead

    def __repr__(self) -> str:
        return f"<Gaps {self._runs}>"
