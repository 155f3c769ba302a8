"""What a group shows of itself to people: plain values, taken at one moment."""

from __future__ import annotations

from dataclasses import dataclass

from broker.collectives.operation import Operation, OperationState
from broker.collectives.recorder import Recorder
from broker.ids import Generation, GroupNumber, Rank, SessionId
from broker.schedules import STAR


@dataclass(frozen=True, slots=True)
class OperationSnapshot:
    """An operation in progress, for people who look at a job that does not move.

    Attributes:
        arrived_ns: when each rank's claim came, in the order of their coming.
        missing_ranks: who holds the operation up at this moment.
        deadline_ns: when it fails; None when only its ranks know.
        schedule: `star`, `shm`, `ring` or `halving`.
        moved_ns: when it last moved, as far as was observed; else when its first rank came.
    """

    sequence: int
    state: OperationState
    claim: str
    rounds_done: int
    arrived_ns: dict[Rank, int]
    missing_ranks: tuple[Rank, ...]
    deadline_ns: int | None
    held_bytes: int
    schedule: str = STAR
    moved_ns: int = 0

    @classmethod
    def of(cls, operation: Operation, moved_ns: int | None = None) -> OperationSnapshot:
        """The state of an operation at this moment."""
        if moved_ns is None:
            moved_ns = min(operation.arrived_ns.values(), default=0)
        return cls(
            sequence=operation.sequence,
            state=operation.state,
            claim=operation.describe(),
            rounds_done=operation.rounds_done,
            arrived_ns=operation.arrived_ns,
            missing_ranks=operation.missing_ranks,
            deadline_ns=operation.deadline_ns,
            held_bytes=operation.held_bytes,
            moved_ns=moved_ns,
        )


@dataclass(frozen=True, slots=True)
class NewcomerSnapshot:
    """A session that waits to become a member; a rank of None is chosen when it does."""

    session: SessionId
    rank: Rank | None
    since_ns: int


@dataclass(frozen=True, slots=True)
class GroupSnapshot:
    """A group for the admin interface.

    Attributes:
        missing_ranks: those that nobody has and nobody waits for.
        sessions: of the members, by ascending rank.
        newcomers: sessions that are to become members.
        untold_failures: failed operations that some rank has not started, and so not heard of.
        recorder: what was; it goes on being written.
        schedule: how operations go at the moment: `shm` when the generation has a board, `ring` or `halving` when its
            members are linked, else `star`.
    """

    name: str
    number: GroupNumber
    created_ns: int
    generation: Generation
    world_size: int
    ranks: tuple[Rank, ...]
    missing_ranks: tuple[Rank, ...]
    sessions: tuple[SessionId, ...]
    newcomers: tuple[NewcomerSnapshot, ...]
    operations: tuple[OperationSnapshot, ...]
    untold_failures: int
    recorder: Recorder
    schedule: str = STAR
