"""What a group knows of ranks that do not keep up with its quorum operations.

    operation closes ----> kept, for ranks that have not heard of it, until all have, or too much is kept
    late contribution ---> carried: it waits here for the next operation over the same tensor, which adds it
                           or dropped, if its rank asks for that, there is no room, or its generation ends

Each late contribution is carried or dropped, and counted as what it is; a carried one is taken out of here by the
operation that adds it, so it is never added twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from broker import limits
from broker.buffers import Buffer
from broker.collectives.claims import Claim
from broker.collectives.deadlines import Deadlines
from broker.collectives.effects import Effect, Lagging
from broker.ids import Rank

if TYPE_CHECKING:
    from broker.collectives.quorum import QuorumOperation

TOLD_INTERVAL_NS: Final = 1_000_000_000
"""A rank that is always late is spoken of so often, and not with every operation."""
TENSORS_MAX: Final = 1024
"""Whose deadlines are learned; beyond it all are learned anew."""

Tensor = tuple[str, str, tuple[int, ...], str, int]
"""What makes contributions of several operations ones to the same tensor: name, dtype, shape, op and chunk_bytes."""


def tensor_of(claim: Claim) -> Tensor:
    """To which tensor a quorum operation belongs."""
    name = "" if claim.quorum is None else claim.quorum.name
    return name, claim.dtype, claim.shape, str(claim.op), claim.chunk_bytes


@dataclass(slots=True)
class LateTotals:
    """Counts that never fall.

    Attributes:
        operations: quorum operations that have closed.
        missed: contributions that were not there when their operation closed, over all ranks.
        carried: those of them that came later and were kept for the next operation.
        added: carried ones that an operation has added.
        dropped: late ones that nobody gets.
    """

    operations: int = 0
    missed: int = 0
    carried: int = 0
    added: int = 0
    dropped: int = 0

    def add(self, other: LateTotals) -> None:
        """Adds the counts of a group that is gone."""
        self.operations += other.operations
        self.missed += other.missed
        self.carried += other.carried
        self.added += other.added
        self.dropped += other.dropped


@dataclass(frozen=True, slots=True)
class Carried:
    """A contribution that came too late for its operation."""

    rank: Rank
    chunks: Sequence[Buffer]

    @property
    def nbytes(self) -> int:
        """Its payload."""
        return sum(map(len, self.chunks))


@dataclass(slots=True)
class Late:
    """The closed operations, carried contributions and learned deadlines of one group.

    Attributes:
        totals: counts over all generations.
        newest: the last operation of this generation that has closed, 0 if none has.
        forgotten: the last one that is not kept any more.
        slow: ranks whose last contribution came later than its deadline. Nobody waits for them, until one is in time.
    """

    totals: LateTotals = field(default_factory=LateTotals)
    newest: int = 0
    forgotten: int = 0
    slow: set[Rank] = field(default_factory=set)
    _past: dict[int, QuorumOperation] = field(default_factory=dict)
    _carried: dict[Tensor, list[Carried]] = field(default_factory=dict)
    _carried_bytes: int = 0
    _deadlines: dict[Tensor, Deadlines] = field(default_factory=dict)
    _told_ns: dict[Rank, int] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        """Payload of results and contributions that are kept."""
        return self._carried_bytes + sum(operation.held_bytes for operation in self._past.values())

    def observe(self, claim: Claim, rank: Rank, lag_ns: int, wait_ns: int) -> None:
        """A contribution has come so long after the first one, of which `wait_ns` were to be waited out."""
        self.deadlines(claim).observe(lag_ns)
        if lag_ns > wait_ns:
            self.slow.add(rank)
        else:
            self.slow.discard(rank)

    def deadlines(self, claim: Claim) -> Deadlines:
        """What has been learned of a tensor."""
        tensor = tensor_of(claim)
        if tensor not in self._deadlines:
            if len(self._deadlines) >= TENSORS_MAX:
                self._deadlines.clear()
            self._deadlines[tensor] = Deadlines()
        return self._deadlines[tensor]

    def find(self, sequence: int) -> QuorumOperation | None:
        """A closed operation that some rank has not heard of."""
        return self._past.get(sequence)

    def keep(self, operation: QuorumOperation) -> list[Effect]:
        """An operation has closed, and some rank has not heard of it: a rank that is too far behind is told so."""
        self._past[operation.sequence] = operation
        effects: list[Effect] = []
        while len(self._past) > 1 and (len(self._past) > limits.QUORUM_KEPT_MAX or self._too_much):
            oldest = min(self._past)
            effects += self._past.pop(oldest).forget()
            self.forgotten = max(oldest, self.forgotten)
        return effects

    @property
    def _too_much(self) -> bool:
        return sum(operation.held_bytes for operation in self._past.values()) > limits.QUORUM_KEPT_BYTES_MAX

    def release(self, operation: QuorumOperation) -> None:
        """All ranks have heard of an operation."""
        self._past.pop(operation.sequence, None)

    def carry(self, claim: Claim, rank: Rank, chunks: Sequence[Buffer]) -> None:
        """A contribution was too late for its operation, and is for the next one over its tensor."""
        contribution = Carried(rank, chunks)
        if self._carried_bytes + contribution.nbytes > limits.QUORUM_KEPT_BYTES_MAX:
            self.totals.dropped += 1
            return
        self.totals.carried += 1
        self._carried_bytes += contribution.nbytes
        self._carried.setdefault(tensor_of(claim), []).append(contribution)

    def take(self, claim: Claim) -> list[Carried]:
        """What was carried for a tensor, by rank, then in the order of coming; it is the caller's now."""
        taken = sorted(self._carried.pop(tensor_of(claim), ()), key=lambda contribution: contribution.rank)
        self._carried_bytes -= sum(contribution.nbytes for contribution in taken)
        self.totals.added += len(taken)
        return taken

    def missed(self, ranks: Sequence[Rank], sequence: int, now_ns: int) -> list[Effect]:
        """An operation has closed without these ranks."""
        self.totals.missed += len(ranks)
        effects: list[Effect] = []
        for rank in ranks:
            if now_ns - self._told_ns.get(rank, -TOLD_INTERVAL_NS) >= TOLD_INTERVAL_NS:
                self._told_ns[rank] = now_ns
                effects.append(Lagging(rank, sequence))
        return effects

    def end_generation(self) -> None:
        """The members change: sequences begin anew, and what waits belongs to a step that is made again."""
        self.totals.dropped += sum(map(len, self._carried.values()))
        self.slow.clear()
        self._past.clear()
        self._carried.clear()
        self._carried_bytes = self.newest = self.forgotten = 0
