# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined"
"""The engine of `ring`, `halving` and `hierarchical`, for Python: collectives of ranks of several hosts, over sockets.

What happens there is in C: ring_engine.h has what engines say to one another and why they agree, ring_engine_steps.c
and ring_engine_kinds.c which bytes go where. Plans, tasks and turns are those of all engines (tasks.py). Only the
compiled module can do any of it; the plain one says that it cannot (`AVAILABLE`).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final, NamedTuple

from broker.collectives.tasks import (
    ARRAY_BYTES_MAX,
    CLAIM_BYTES_MAX,
    POSITIONS_MAX,
    Outcome,
    Plan,
    Task,
    Turns,
    reducible,
)
from broker.errors import InvalidValue, LimitExceeded

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

__all__ = [
    "ARRAY_BYTES_MAX",
    "AVAILABLE",
    "CLAIM_BYTES_MAX",
    "LANES_MAX",
    "LOG_ENTRIES",
    "POSITIONS_MAX",
    "VERSION",
    "Engine",
    "Entry",
    "Glance",
    "Outcome",
    "Plan",
    "Task",
    "reducible",
]

AVAILABLE: Final = bool(cython.compiled)
"""Whether this module can do anything: it has to be compiled."""
VERSION: Final = 4
"""Of what engines say to one another over a link."""
LANES_MAX: Final = 16
"""Sockets of one link."""
LOG_ENTRIES: Final = 64
"""Operations of which an engine can tell: the one under way, and the newest that stay."""
THINNING_MAX: Final = 32


class Entry(NamedTuple):
    """An operation, as its engine remembers it.

    Attributes:
        sequence: its number.
        began_ns: when its program asked for it, on CLOCK_MONOTONIC.
        ended_ns: when it was over; not set while it is PENDING.
        status: an Outcome.
        positions: bits of those that failed it, as of a Task.
        timeout_ns: the time that was over, as of a Task.
        claim: what this position has asked for.
    """

    sequence: int
    began_ns: int
    ended_ns: int
    status: int
    positions: int
    timeout_ns: int
    claim: bytes


class Glance(NamedTuple):
    """What an engine is at.

    Attributes:
        now_ns: when it was looked, on CLOCK_MONOTONIC.
        begun: the last operation; 0 before the first one.
        seen: the last one that has taken 50 ms or more, of which the rest tells, as it was 100 ms ago or later.
        phase: 0 while not all positions have come, 1 while arrays move, 2 when this position has the whole result.
        waits_for: bits of the positions for which this one waits.
        received_bytes: of that operation.
        entries: operations, in the order of their numbers; the last one may be PENDING.
    """

    now_ns: int
    begun: int
    seen: int
    phase: int
    waits_for: int
    received_bytes: int
    entries: list[Entry]


class Engine(Turns):
    """One position's part in the operations of positions that are connected with one another.

    An operation that is UNDECIDED has its result here, and its array is as it was: a link broke, or a position fell
    silent, in the moment in which the others may or may not have applied it. The engine is over then. Ask the others,
    after their engines have ended, whether the task of the same sequence is COMMITTED on one of them, and `settle` it;
    a position that cannot be asked must not go on with this generation.
    """

    def __init__(
        self, links: Sequence[Sequence[int]], position: int, descriptor: int = -1, hosts: Sequence[object] = ()
    ) -> None:
        """Args:
            links: for each position, the descriptors of sockets that are connected with its engine: streams, TCP or
                Unix, made non-blocking here. Every other position has at least one, whatever the schedule, and at most
                LANES_MAX; the own one has none. The k-th one of a link is the other end of the k-th one there. A ring's
                data are spread over all that the neighbours have (position - 1 and + 1, around); one is enough.
                From now on the engine owns and closes them, unless this raises.
            position: this process's own.
            descriptor: an eventfd to which is added for each operation that the engine's thread is done with.
            hosts: for each position, what is the same for all positions of a host; none when that is not known.

        Raises:
            InvalidValue: there are too many positions, or a link has too few or too many sockets.
            LimitExceeded: there is no memory, or no descriptor left.
        """
        super().__init__()
        if not 0 < len(links) <= POSITIONS_MAX:
            raise InvalidValue("positions", len(links), f"must be from 1 to {POSITIONS_MAX}")
        if not 0 <= position < len(links):
            raise InvalidValue("position", position, f"must be from 0 to {len(links) - 1}")
        for other, lanes in enumerate(links):
            if bool(lanes) is (other == position) or len(lanes) > LANES_MAX:
                problem = f"to position {other} must be from 1 to {LANES_MAX}, and none to the own one"
                raise InvalidValue("sockets", len(lanes), problem)
        self.position, self.positions = position, len(links)
        files = array("i", [file for lanes in links for file in lanes]).tobytes()
        counts = array("i", [len(lanes) for lanes in links]).tobytes()
        self._ring = tb_ring_new(
            cython.cast("const int *", cython.cast("const unsigned char *", files)),
            cython.cast("const int *", cython.cast("const unsigned char *", counts)),
            len(links),
            position,
            descriptor,
        )
        if self._ring == cython.NULL:
            raise LimitExceeded("links", len(links), POSITIONS_MAX, f"cannot be used: errno {errno}")
        self._turns = cython.address(self._ring.turns)
        numbers = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
        for each, host in enumerate(hosts[: len(links)]):
            self._ring.hosts[cython.cast("int", each)] = numbers[host]

    def _admit(self, task: Task) -> int:
        if task._task.sources != cython.NULL or task._task.targets != cython.NULL:
            raise InvalidValue("arrays", 2, "must be one in place of several, which links do not carry")
        return 0

    @property
    def committed(self) -> int:
        """The sequence of the last operation that was committed here; 0 before the first."""
        return self._ring.committed  # type: ignore[no-any-return]

    def settle(self, task: Task, *, committed: bool) -> int:
        """Gives a task that is UNDECIDED the verdict of the others; returns its Outcome. Any other task stays as it is.

        Args:
            task: of this engine.
            committed: whether it has been committed on another position: then the array becomes the result. Else it
                stays as it was, and the outcome says what has led to the doubt.
        """
        return self._settle(task, committed)

    def _settle(self, task: Task, committed: bool) -> int:
        return tb_ring_settle(self._ring, cython.address(task._task), committed)  # type: ignore[no-any-return]

    def glance(self, after: int, thinning: int) -> Glance:
        """What the engine is at, and what has become of the operations with higher numbers than `after`.

        Any thread may call, and nobody waits for it.

        Args:
            after: a sequence.
            thinning: from now on one operation of 2^thinning is remembered when it has been done, the same on all
                positions that say the same, and those of a higher thinning are among those of a lower one.
        """
        wanted, bits = after, thinning
        log = cython.address(self._ring.log)
        tb_link_log_thin(log, min(bits, THINNING_MAX))
        entries = []
        for place in range(LOG_ENTRIES):
            if tb_link_log_read(log, place, cython.address(told)) and told.sequence > wanted:
                claim = cython.cast("const unsigned char *", told.claim)[: told.claim_bytes]
                entries.append(
                    Entry(
                        told.sequence, told.began_ns, told.ended_ns, told.status, told.positions, told.timeout_ns,
                        claim,
                    )
                )  # fmt: skip
        tb_link_log_standing(log, cython.address(standing))
        entries.sort()
        return Glance(
            tb_now_ns(), standing.begun, standing.seen, standing.phase, standing.waits_for, standing.received_bytes,
            entries,
        )  # fmt: skip

    def end(self) -> None:
        """What is under way ends, as OVER or UNDECIDED; what comes is OVER. Any thread may call; it does not wait."""
        tb_ring_end(self._ring)

    def close(self) -> None:
        """Ends, and waits for the engine's thread. An operation that a thread is in ends meanwhile."""
        ring = self._ring
        with cython.nogil:
            tb_ring_close(ring)

    def __repr__(self) -> str:
        return f"<Engine position={self.position} of {self.positions} committed={self.committed}>"

    def __dealloc__(self) -> None:
        if self._ring != cython.NULL:
            tb_ring_close(self._ring)
            tb_ring_free(self._ring)
