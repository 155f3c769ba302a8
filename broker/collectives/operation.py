"""One collective operation in the broker, by the schedule `star`: chunks of all ranks in, results of each round out.

                 a claim, others lacking              the last round is out
                +-----------------------+           +----------------------> FINISHED
                v                       |           |
            GATHERING ------------------+------> RUNNING
                |    the last claim, all match      |
                | claims differ                     | deadline
                v                                   v
           MISMATCHED -----------------------> FAILED <---- deadline, from GATHERING
                      all claims here, or grace over

An operation belongs to one generation, so its ranks never change: when the members do, the group forgets it.
What it holds is bounded: `limits.ROUNDS_AHEAD` chunks for each rank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np

from broker import limits
from broker.buffers import Buffer
from broker.collectives.claims import Claim, CollectiveKind, member_problem
from broker.collectives.effects import Effect, Failed, Failure, GivenUp, Mismatch, Missing, Result
from broker.collectives.layout import chunk_bounds, overlap, shard_bounds
from broker.collectives.reduce import accumulate
from broker.errors import ProtocolError
from broker.ids import Generation, Rank, SessionId


class OperationState(Enum):
    """Where an operation stands; the drawing above has the ways between."""

    GATHERING = "gathering"
    MISMATCHED = "mismatched"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


class Contribution:
    """What one rank has sent: its claim, and the chunks whose round is not complete."""

    __slots__ = ("arrived_ns", "array_bytes", "chunks", "claim", "received", "rounds")

    def __init__(self, rank: Rank, claim: Claim, now_ns: int) -> None:
        self.claim = claim
        self.arrived_ns = now_ns
        # Of a broadcast only the root has bytes to send. The others' empty chunks say how far they have got, so that
        # results for a rank that does not read them cannot pile up.
        self.array_bytes = claim.sent_bytes(rank)
        self.rounds = 1 if claim.quorum is not None and claim.quorum.abstains else claim.rounds
        self.received = 0
        self.chunks: deque[Buffer] = deque()

    def receive(self, round_number: int, payload: Buffer, rounds_done: int) -> None:
        """Keeps a chunk.

        Raises:
            ProtocolError: it is out of order, too far ahead, or has the wrong length.
        """
        if round_number != self.received:
            raise ProtocolError(f"round {round_number} of a collective operation came in place of {self.received}")
        if round_number >= self.rounds:
            raise ProtocolError(f"round {round_number} of a collective operation that has {self.rounds}")
        if round_number >= rounds_done + limits.ROUNDS_AHEAD:
            raise ProtocolError(
                f"round {round_number} of a collective operation came before the result of round {rounds_done}: "
                f"a rank may be {limits.ROUNDS_AHEAD} rounds ahead"
            )
        start, stop = chunk_bounds(round_number, self.claim.chunk_bytes, self.array_bytes)
        if len(payload) != stop - start:
            raise ProtocolError(
                f"round {round_number} of {self.claim.describe()} has {len(payload)} bytes, not {stop - start}"
            )
        self.received += 1
        self.chunks.append(payload)


class Operation:
    """One operation of a group, from the first claim to its end.

    A payload is kept as it is until its round is complete and must not change until then; all_gather and broadcast
    pass it on in their results. Every method returns effects; `state` says whether the operation has ended.
    """

    __slots__ = (
        "_channel",
        "_contributions",
        "_generation",
        "_lacking",
        "_problem",
        "_senders",
        "_sessions",
        "deadline_ns",
        "failure",
        "rounds_done",
        "sequence",
        "state",
        "timeout_ns",
    )

    def __init__(
        self, generation: Generation, sequence: int, sessions: Mapping[Rank, SessionId], channel: int = 0
    ) -> None:
        """`sessions` are those who take part, in ascending order of rank: all members, or the two of a channel."""
        self.sequence = sequence
        self.state = OperationState.GATHERING
        self.rounds_done = 0
        self.deadline_ns = 0
        self.timeout_ns = 0
        self.failure: Failure | None = None
        self._generation = generation
        self._channel = channel
        self._sessions = sessions
        self._contributions: dict[Rank, Contribution] = {}
        self._problem = ""
        # In ascending order of rank; empty until the operation runs.
        self._senders: dict[Rank, Contribution] = {}
        # Senders whose chunk of the current round is not here: counted, so that a chunk costs no walk over the ranks.
        self._lacking = 0

    def __repr__(self) -> str:
        return (
            f"<Operation {self.sequence} {self.state.name} {self.describe()} "
            f"arrived={len(self._contributions)}/{len(self._sessions)} rounds={self.rounds_done}>"
        )

    @property
    def ended(self) -> bool:
        """Whether all that this operation had to say has been said."""
        return self.state in (OperationState.FINISHED, OperationState.FAILED)

    @property
    def alarm_ns(self) -> int:
        """When `expire` has something to do."""
        return self.deadline_ns

    @property
    def arrived_ns(self) -> dict[Rank, int]:
        """When each rank's claim came, in the order of their coming."""
        return {rank: each.arrived_ns for rank, each in self._contributions.items()}

    @property
    def held_bytes(self) -> int:
        """Payload that waits for other ranks."""
        return sum(len(chunk) for each in self._contributions.values() for chunk in each.chunks)

    @property
    def missing_ranks(self) -> tuple[Rank, ...]:
        """Who holds the operation up: ranks whose claim, or whose chunk of the current round, is not here."""
        if self.state is OperationState.RUNNING:
            return tuple(rank for rank, sender in self._senders.items() if not sender.chunks)
        return tuple(rank for rank in self._sessions if rank not in self._contributions)

    @property
    def claim(self) -> Claim | None:
        """The first one that came."""
        return next((each.claim for each in self._contributions.values()), None)

    @property
    def moved(self) -> int:
        """A number that changes with each claim and each round."""
        return len(self._contributions) + self.rounds_done

    def describe(self) -> str:
        """The first claim in words."""
        return "" if self.claim is None else self.claim.describe()

    def arrive(self, rank: Rank, claim: Claim, payload: Buffer, now_ns: int) -> list[Effect]:
        """A rank's claim has come with its first chunk.

        Raises:
            ProtocolError: the payload is not as long as the claim says; nothing has changed.
        """
        contribution = Contribution(rank, claim, now_ns)
        contribution.receive(0, payload, self.rounds_done)
        self._contributions[rank] = contribution
        self._hasten(now_ns + claim.timeout_ns, claim.timeout_ns)
        if self.state is OperationState.GATHERING:
            self._compare(claim, now_ns)
        if self.state is OperationState.MISMATCHED:
            # Nothing will be reduced any more.
            for each in self._contributions.values():
                each.chunks.clear()
        if len(self._contributions) < len(self._sessions):
            return []
        return self._fail() if self.state is OperationState.MISMATCHED else self._run(claim)

    def contribute(self, rank: Rank, round_number: int, payload: Buffer, now_ns: int = 0) -> list[Effect]:
        """A later chunk has come from a rank that has arrived.

        Raises:
            ProtocolError: the round is out of order or too far ahead, or the payload has the wrong length.
        """
        if self.state is OperationState.MISMATCHED:
            return []
        contribution = self._contributions[rank]
        contribution.receive(round_number, payload, self.rounds_done)
        if self.state is OperationState.RUNNING and len(contribution.chunks) == 1:
            self._lacking -= 1
        return self._complete_rounds(self._agreed(contribution.claim) if self._senders else contribution.claim)

    def expire(self, now_ns: int) -> list[Effect]:
        """Fail when the deadline has passed."""
        return self._fail() if now_ns >= self.deadline_ns and not self.ended else []

    def give_up(self, rank: Rank) -> list[Effect]:
        """Fail, because the program of a rank that has arrived does not want the result any more."""
        return [] if self.ended else self._end(GivenUp(rank))

    def _hasten(self, deadline_ns: int, timeout_ns: int) -> None:
        if not self.deadline_ns or deadline_ns < self.deadline_ns:
            self.deadline_ns, self.timeout_ns = deadline_ns, timeout_ns

    def _compare(self, claim: Claim, now_ns: int) -> None:
        first = next(iter(self._contributions.values())).claim
        if claim is first:
            self._problem = member_problem(claim, self._sessions, self._generation)
        if self._problem or not claim.matches(first):
            self.state = OperationState.MISMATCHED
            self._hasten(now_ns + limits.MISMATCH_GRACE_NS, limits.MISMATCH_GRACE_NS)

    def _fail(self) -> list[Effect]:
        if self.state is not OperationState.MISMATCHED:
            return self._end(Missing(self.missing_ranks, self.timeout_ns / 1e9))
        return self._end(
            Mismatch({rank: each.claim.describe() + self._problem for rank, each in self._contributions.items()})
        )

    def _end(self, failure: Failure) -> list[Effect]:
        self.state, self.failure = OperationState.FAILED, failure
        return [
            Failed(self._sessions[rank], self._generation, self.sequence, failure, self._channel)
            for rank in self._contributions
        ]

    def _run(self, claim: Claim) -> list[Effect]:
        self.state = OperationState.RUNNING
        self._senders = {rank: self._contributions[rank] for rank in self._sessions}
        return self._complete_rounds(self._agreed(claim))

    def _agreed(self, claim: Claim) -> Claim:
        """What all ranks have claimed: a receiver that takes whatever comes takes what its sender has claimed."""
        if claim.root is not None and self._channel:
            claim = self._contributions[Rank(claim.root)].claim
            for each in self._senders.values():
                each.rounds = claim.rounds
        return claim

    def _complete_rounds(self, claim: Claim) -> list[Effect]:
        effects: list[Effect] = []
        while self.state is OperationState.RUNNING and not self._lacking:
            chunks = [sender.chunks.popleft() for sender in self._senders.values()]
            self._lacking = sum(not sender.chunks for sender in self._senders.values())
            last = self.rounds_done == claim.rounds - 1
            effects += self._results(claim, chunks, last=last)
            self.rounds_done += 1
            if last:
                self.state = OperationState.FINISHED
        return effects

    def _results(self, claim: Claim, chunks: Sequence[Buffer], *, last: bool) -> list[Effect]:
        kind, number, sessions = claim.kind, self.rounds_done, self._sessions
        if kind in (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER, CollectiveKind.ALL_TO_ALL):
            return [result for rank in sessions for result in self._gathered(claim, rank, chunks, last=last)]
        if kind in (CollectiveKind.REDUCE_SCATTER, CollectiveKind.SCATTER):
            whole = reduced(claim, chunks) if claim.op is not None else chunks[self._position(claim.root)]
            parts = _shard_parts(claim, number, memoryview(whole), len(sessions))
            return [
                Result(session, self._generation, self.sequence, number, position, part, last)
                for position, (session, part) in enumerate(zip(sessions.values(), parts, strict=True))
            ]
        payload: Buffer = b""
        if claim.op is not None:
            payload = reduced(claim, chunks)
        elif claim.root is not None:
            payload = chunks[self._position(claim.root)]
        # Whoever gets nothing gets an empty result for each round all the same: it is a clock.
        return [
            Result(
                session, self._generation, self.sequence, number, 0,
                payload if claim.result_bytes(rank, len(sessions)) else b"", last, self._channel,
                None if number else self._told(rank, claim),
            )
            for rank, session in sessions.items()
        ]  # fmt: skip

    def _gathered(self, claim: Claim, rank: Rank, chunks: Sequence[Buffer], *, last: bool) -> list[Effect]:
        """One rank's results of a round in which it gets something of every position."""
        session, number = self._sessions[rank], self.rounds_done
        if claim.kind is CollectiveKind.GATHER and rank != claim.root:
            return [Result(session, self._generation, self.sequence, number, 0, b"", last)]
        if claim.kind is CollectiveKind.ALL_TO_ALL:
            own = self._position(rank)
            chunks = [_shard_parts(claim, number, memoryview(chunk), len(chunks))[own] for chunk in chunks]
        final = len(chunks) - 1
        return [
            Result(session, self._generation, self.sequence, number, position, chunk, last and position == final)
            for position, chunk in enumerate(chunks)
        ]

    def _position(self, rank: int | None) -> int:
        return list(self._sessions).index(Rank(rank if rank is not None else -1))

    def _told(self, rank: Rank, claim: Claim) -> Claim | None:
        """What a receiver that takes whatever comes has to be told."""
        return claim if self._contributions[rank].claim.kind is CollectiveKind.RECEIVE else None


def reduced(claim: Claim, chunks: Sequence[Buffer]) -> memoryview:
    """The chunks of one round as one; a mean is over as many as there are."""
    assert claim.op is not None, "Claim.check() has refused this"
    # Not a bytearray: that would write zeros first.
    out = np.empty(len(chunks[0]), np.uint8).data
    accumulate(claim.op, chunks, claim.dtype, len(chunks), out)
    return out


def _shard_parts(claim: Claim, round_number: int, total: memoryview, members: int) -> list[memoryview]:
    """What each position gets of one round's reduced chunk."""
    array_bytes = claim.nbytes
    chunk = chunk_bounds(round_number, claim.chunk_bytes, array_bytes)
    meetings = [overlap(chunk, shard_bounds(position, members, array_bytes)) for position in range(members)]
    return [total[start - chunk[0] : stop - chunk[0]] for start, stop in meetings]
