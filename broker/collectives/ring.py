"""The engine of links between ranks, for Python: not in this build."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from broker.collectives.claims import CollectiveKind, ReduceOp
from broker.errors import LimitExceeded

AVAILABLE: Final = False
"""Whether this module can do anything."""
VERSION: Final = 1
"""Of what travels over links."""


class Outcome(IntEnum):
    """What has become of an operation: those of shm.Outcome, and one more."""

    PENDING = 0
    COMMITTED = 1
    MISSING = 2
    MISMATCH = 3
    INTERRUPTED = 4
    OVER = 5
    NO_MEMORY = 6
    BROKEN = 7
    UNDECIDED = 8


class Plan:
    """As shm.Plan, for links."""

    claim: bytes
    array_bytes: int
    result_bytes: int

    def __init__(
        self,
        kind: CollectiveKind,
        claim: bytes,
        positions: int,
        *,
        op: ReduceOp | None = None,
        dtype: str = "uint8",
        array_bytes: int = 0,
        root: int = 0,
        impossible: bool = False,
        schedule: str = "auto",
    ) -> None:
        raise LimitExceeded("links", positions, 0, "there is no engine in this build")


class Task:
    """As shm.Task, for links."""

    status: int
    sequence: int
    positions: list[int]
    timeout_ns: int
    claim: bytes

    def __init__(self, plan: Plan, source: object, target: object, timeout_ns: int) -> None:
        raise LimitExceeded("links", 0, 0, "there is no engine in this build")

    def claims(self) -> dict[int, bytes]:
        """MISMATCH: the claims of the positions that had come."""
        return {}


class Engine:
    """One position's part in the operations over its links."""

    def __init__(self, links: Sequence[Sequence[int]], position: int, descriptor: int = -1) -> None:
        raise LimitExceeded("links", len(links), 0, "there is no engine in this build")

    def run(self, task: Task) -> int:
        """Carries an operation out; returns its Outcome."""
        raise NotImplementedError

    def submit(self, task: Task) -> None:
        """Has an operation carried out behind all others, by the engine's own thread."""
        raise NotImplementedError

    def wait(self, task: Task, timeout_s: float) -> int:
        """Waits for a submitted operation."""
        raise NotImplementedError

    def settle(self, task: Task, *, committed: bool) -> int:
        """Ends an UNDECIDED operation."""
        raise NotImplementedError

    def end(self) -> None:
        """Ends what has no verdict."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the engine."""
        raise NotImplementedError
