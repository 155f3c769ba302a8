"""What a group shows of itself to people: plain values, taken at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from broker.collectives.operation import Operation, OperationState
from broker.ids import Generation, GroupNumber, Rank


@dataclass(frozen=True, slots=True)
class OperationSnapshot:
    """An operation in progress, for people who look at a job that does not move.

    Attributes:
        arrived_ns: when each rank's claim came, in the order of their coming.
        missing_ranks: who holds the operation up at this moment.
    """

    sequence: int
    state: OperationState
    claim: str
    rounds_done: int
    arrived_ns: dict[Rank, int]
    missing_ranks: tuple[Rank, ...]
    deadline_ns: int
    held_bytes: int

    @classmethod
    def of(cls, operation: Operation) -> OperationSnapshot:
        """The state of an operation at this moment."""
        return cls(
            sequence=operation.sequence,
            state=operation.state,
            claim=operation.describe(),
            rounds_done=operation.rounds_done,
            arrived_ns=operation.arrived_ns,
            missing_ranks=operation.missing_ranks,
            deadline_ns=operation.deadline_ns,
            held_bytes=operation.held_bytes,
        )


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """A group for the admin interface.

    Attributes:
        missing_ranks: those that nobody has and nobody waits for.
        waiting: sessions that are to become members.
        untold_failures: failed operations that some rank has not started, and so not heard of.
    """

    name: str
    number: GroupNumber
    created_ns: int
    generation: Generation
    world_size: int
    ranks: tuple[Rank, ...]
    missing_ranks: tuple[Rank, ...]
    waiting: int
    operations: tuple[OperationSnapshot, ...]
    untold_failures: int
