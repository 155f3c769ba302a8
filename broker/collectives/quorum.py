"""A collective operation that does not wait for everybody: an all_reduce of those who come in time.

                the first whole contribution          all have come; or enough have, and the deadline is over, or
               +-----------------------------+        the others were late the last time or are operations behind
               |  then the deadline runs     v       +--------------> CLOSED: the result is made once, for all
            GATHERING ------------------> RUNNING ---'                   |
               |         all have begun      |                           |  a late rank's contribution is whole:
               | claims differ               | time-out, too few         |  it is carried or dropped, and the rank
               v                             v                           v  gets the result that all have
            MISMATCHED ----------------> FAILED                       answered to all: gone

Contributions are gathered whole, because who takes part has to be known before the first byte is reduced, and a rank
may stop in the middle of its array. So arrays are bounded (`limits.QUORUM_ARRAY_BYTES_MAX`), and a rank has one such
operation under way. The result is kept until all ranks have it, so those who are late end with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from broker.buffers import Buffer
from broker.collectives.claims import Claim, Quorum
from broker.collectives.effects import Behind, Effect, Failed, Mismatch, Result, TookPart, Wake
from broker.collectives.late import Late
from broker.collectives.layout import chunk_bounds
from broker.collectives.operation import Contribution, Operation, OperationState, reduced
from broker.ids import Generation, Rank, SessionId


class QuorumOperation(Operation):
    """As Operation, but it ends for each rank when that rank has come; `ended` is when its result is made."""

    __slots__ = (
        "_answered",
        "_carried",
        "_closes_ns",
        "_first_ns",
        "_given",
        "_included",
        "_laggards",
        "_late",
        "_result",
        "_whole",
    )

    def __init__(
        self,
        generation: Generation,
        sequence: int,
        sessions: Mapping[Rank, SessionId],
        late: Late,
        laggards: Callable[[int], set[Rank]],
    ) -> None:
        """Args:
        generation: of the members.
        sequence: of the operation.
        sessions: the members of the generation, in ascending order of rank.
        late: what the group knows of late ranks.
        laggards: gives the ranks that have not begun the operation before a sequence.
        """
        super().__init__(generation, sequence, sessions)
        self._late = late
        self._laggards = laggards
        self._first_ns = 0
        self._closes_ns = 0
        self._included: tuple[Rank, ...] = ()
        self._carried: tuple[Rank, ...] = ()
        self._result: list[Buffer] = []
        self._answered: set[Rank] = set()
        # Ranks whose contribution is here whole, and how many of them have not abstained.
        self._whole: set[Rank] = set()
        self._given = 0

    @property
    def settled(self) -> bool:
        """Whether all ranks have the result."""
        return len(self._answered) == len(self._sessions)

    @property
    def alarm_ns(self) -> int:
        return self._closes_ns if self._enough else self.deadline_ns

    @property
    def held_bytes(self) -> int:
        return super().held_bytes + sum(map(len, self._result))

    @property
    def missing_ranks(self) -> tuple[Rank, ...]:
        return tuple(rank for rank in self._sessions if rank not in self._whole)

    def owes(self, rank: Rank) -> bool:
        """Whether a rank has begun this operation and waits for its end."""
        return rank in self._contributions and rank not in self._answered and self.failure is None

    def arrive(self, rank: Rank, claim: Claim, payload: Buffer, now_ns: int) -> list[Effect]:
        if self.state is not OperationState.FINISHED:
            return super().arrive(rank, claim, payload, now_ns) + self._came(rank, now_ns)
        contribution = Contribution(rank, claim, now_ns)
        contribution.receive(0, payload, claim.rounds)
        first_rank, first = next(iter(self._contributions.items()))
        if not claim.matches(first.claim):
            self._answered.add(rank)
            claims: dict[int, str] = {first_rank: first.claim.describe(), rank: claim.describe()}
            return [Failed(self._sessions[rank], self._generation, self.sequence, Mismatch(claims))]
        self._contributions[rank] = contribution
        return self._came_late(rank, now_ns)

    def contribute(self, rank: Rank, round_number: int, payload: Buffer, now_ns: int = 0) -> list[Effect]:
        if self.state is OperationState.MISMATCHED or rank in self._answered:
            return []
        contribution = self._contributions[rank]
        contribution.receive(round_number, payload, contribution.claim.rounds)
        if self.state is OperationState.FINISHED:
            return self._came_late(rank, now_ns)
        return self._came(rank, now_ns)

    def expire(self, now_ns: int) -> list[Effect]:
        return self._close_if_due(now_ns) or super().expire(now_ns)

    def forget(self) -> list[Effect]:
        """The result is not kept any more: ranks that are in the middle of this operation hear that they are behind."""
        behind = Behind(self._late.newest - self.sequence)
        waiting = [rank for rank in self._contributions if rank not in self._answered]
        self._answered.update(waiting)
        return [Failed(self._sessions[rank], self._generation, self.sequence, behind) for rank in waiting]

    def _run(self, claim: Claim) -> list[Effect]:
        # All have begun, which is not yet all that has to come.
        self.state = OperationState.RUNNING
        return []

    def _is_whole(self, rank: Rank) -> bool:
        contribution = self._contributions[rank]
        return contribution.received == contribution.rounds

    def _wishes(self, rank: Rank) -> Quorum:
        wishes = self._contributions[rank].claim.quorum
        assert wishes is not None, "a claim without a quorum matches no claim with one"
        return wishes

    @property
    def _enough(self) -> bool:
        """Whether as many ranks have contributed as have to."""
        return self._given > 0 and self._given >= self._wishes(next(iter(self._contributions))).ranks

    def _came(self, rank: Rank, now_ns: int) -> list[Effect]:
        if self.state not in (OperationState.GATHERING, OperationState.RUNNING) or not self._is_whole(rank):
            return []
        effects: list[Effect] = []
        wishes = self._wishes(rank)
        self._whole.add(rank)
        if not wishes.abstains:
            self._given += 1
            if self._first_ns:
                self._observe(rank, now_ns)
            else:
                wait_ns = wishes.deadline_ns or self._late.deadlines(self._contributions[rank].claim).wait_ns
                self._first_ns, self._closes_ns = now_ns, min(now_ns + wait_ns, self.deadline_ns)
                self._late.slow.discard(rank)
                effects.append(Wake(self._closes_ns))
        return effects + self._close_if_due(now_ns)

    def _close_if_due(self, now_ns: int) -> list[Effect]:
        if self.state not in (OperationState.GATHERING, OperationState.RUNNING):
            return []
        is_due = len(self._whole) == len(self._sessions) or (
            self._enough and (now_ns >= self._closes_ns or self._others_are_hopeless())
        )
        return self._close(now_ns) if is_due else []

    def _others_are_hopeless(self) -> bool:
        """Whether all that are missing were late the last time, or are operations behind."""
        return (self._late.slow | self._laggards(self.sequence)).issuperset(self.missing_ranks)

    def _close(self, now_ns: int) -> list[Effect]:
        self.state = OperationState.FINISHED
        given = [rank for rank in self._sessions if rank in self._whole and not self._wishes(rank).abstains]
        claim = self._contributions[next(iter(self._contributions))].claim
        carried = self._late.take(claim)
        arrays = [[*self._contributions[rank].chunks] for rank in given] + [[*each.chunks] for each in carried]
        self._result = [_total(claim, number, [array[number] for array in arrays]) for number in range(claim.rounds)]
        self._included = tuple(given)
        self._carried = tuple(each.rank for each in carried)
        self._late.newest = max(self._late.newest, self.sequence)
        self._late.totals.operations += 1
        effects: list[Effect] = []
        missed = self.missing_ranks
        for rank, contribution in [*self._contributions.items()]:
            if rank in missed:
                # On its way. If it is not to be carried, there is no need to wait for the rest.
                effects += self._came_late(rank, now_ns)
            else:
                contribution.chunks.clear()
                effects += self._answer(rank)
        return effects + self._late.missed(missed, self.sequence, now_ns)

    def _observe(self, rank: Rank, now_ns: int) -> None:
        claim = self._contributions[rank].claim
        self._late.observe(claim, rank, now_ns - self._first_ns, self._closes_ns - self._first_ns)

    def _came_late(self, rank: Rank, now_ns: int) -> list[Effect]:
        contribution, wishes = self._contributions[rank], self._wishes(rank)
        if wishes.carry and not self._is_whole(rank):
            return []
        if not wishes.abstains:
            self._observe(rank, now_ns)
            if wishes.carry:
                self._late.carry(contribution.claim, rank, [*contribution.chunks])
            else:
                self._late.totals.dropped += 1
        contribution.chunks.clear()
        return self._answer(rank)

    def _answer(self, rank: Rank) -> list[Effect]:
        """All that a rank is to hear: who took part, and the result."""
        self._answered.add(rank)
        session, last = self._sessions[rank], len(self._result) - 1
        behind = self._late.newest - self.sequence
        told = TookPart(session, self._generation, self.sequence, self._included, self._carried, behind)
        results = [
            Result(session, self._generation, self.sequence, number, 0, chunk, number == last)
            for number, chunk in enumerate(self._result)
        ]
        return [told, *results]


def _total(claim: Claim, number: int, chunks: list[Buffer]) -> Buffer:
    """One chunk of the result; nothing but zeros when all ranks have abstained."""
    if chunks:
        return reduced(claim, chunks)
    start, stop = chunk_bounds(number, claim.chunk_bytes, claim.nbytes)
    return np.zeros(stop - start, np.uint8).data
