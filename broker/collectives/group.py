"""A collective group in the broker: who is in it, and the operations that its members have in progress.

Ranks are stable identities from 0 to world_size - 1. The first generation begins when world_size sessions have joined.
Each change of the members begins another one, in which sequences start at 1 again:

    join ... join      the world_size-th: generation 1, everybody gets Joined
    lost or leave      generation + 1 at once; operations in progress are void; every survivor gets one Changed
    join later         with a free rank, as soon as no operation is in progress: generation + 1, Changed and Joined

A contribution that was under way when its generation ended is dropped: its sender is told by the Changed that crosses
it. What the group holds is bounded by `limits`: operations and rounds ahead for each rank, and failures not yet told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker import limits
from broker.buffers import Buffer
from broker.collectives.channels import Channels
from broker.collectives.claims import POINT_KINDS, Claim
from broker.collectives.effects import (
    Behind,
    Changed,
    Dissolved,
    Effect,
    Failed,
    Failure,
    Finished,
    GivenUp,
    Joined,
    Mismatch,
    Missing,
    RefusalKind,
    Refused,
)
from broker.collectives.failures import Failures
from broker.collectives.late import Late, LateTotals
from broker.collectives.operation import Operation
from broker.collectives.quorum import QuorumOperation
from broker.collectives.recorder import Outcome, Progress, Recorded, Recorder
from broker.collectives.snapshots import GroupSnapshot, NewcomerSnapshot, OperationSnapshot
from broker.errors import InvalidValue, ProtocolError
from broker.ids import Generation, GroupNumber, Rank, SessionId
from broker.schedules import STAR

_OUTCOMES = {Mismatch: Outcome.MISMATCH, Missing: Outcome.MISSING, GivenUp: Outcome.INTERRUPTED}


@dataclass(slots=True)
class _Seat:
    """A member's place.

    Attributes:
        since: the first generation of which it is a member.
        next_sequence: the first operation that it has not started.
        quorum: the last one with a quorum that it has.
    """

    session: SessionId
    rank: Rank
    since: Generation
    next_sequence: int = 1
    quorum: QuorumOperation | None = None


@dataclass(frozen=True, slots=True)
class _Newcomer:
    """A session that waits to become a member; a rank of None is chosen when it does."""

    session: SessionId
    rank: Rank | None
    timeout_ns: int
    deadline_ns: int


class Group:
    """The members and operations of one group: events in, effects out.

    Effects are to be carried out in their order; those for one session must reach it in this order.
    """

    def __init__(self, name: str, number: GroupNumber, world_size: int, now_ns: int) -> None:
        """A group without members; the first to join has said how large it is to be.

        Raises:
            InvalidValue: a world_size that no group may have.
        """
        if not 1 <= world_size <= limits.WORLD_SIZE_MAX:
            raise InvalidValue("world_size", world_size, f"must be from 1 to {limits.WORLD_SIZE_MAX}")
        self.name = name
        self.number = number
        self.world_size = world_size
        self.created_ns = now_ns
        self.generation = Generation(0)
        self._finished = Generation(0)
        self._seats: dict[SessionId, _Seat] = {}
        self._sessions: dict[Rank, SessionId] = {}
        self._newcomers: dict[SessionId, _Newcomer] = {}
        self._operations: dict[int, Operation] = {}
        self._failures = Failures()
        self._progress = Progress()
        self.recorder = Recorder(world_size)
        self._late = Late()
        self._channels = Channels(self.generation, {})

    def __repr__(self) -> str:
        return (
            f"<Group {self.name!r} generation={self.generation} ranks={list(self.ranks)}/{self.world_size} "
            f"waiting={len(self._newcomers)} operations={len(self._operations)}>"
        )

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """All members, ascending."""
        return tuple(self._sessions)

    @property
    def sessions(self) -> tuple[SessionId, ...]:
        """Of all members, by ascending rank."""
        return tuple(self._sessions.values())

    @property
    def held_bytes(self) -> int:
        """Payload that waits for other ranks."""
        return self._late.held_bytes + sum(operation.held_bytes for operation in self._in_progress())

    @property
    def late_totals(self) -> LateTotals:
        """What has become of late contributions."""
        return self._late.totals

    @property
    def next_deadline_ns(self) -> int | None:
        """When `tick` has something to do, if nothing else happens before."""
        deadlines = [operation.alarm_ns for operation in self._in_progress()]
        deadlines += [newcomer.deadline_ns for newcomer in self._newcomers.values()]
        return min(deadlines, default=None)

    def join(self, session: SessionId, rank: int | None, world_size: int, timeout_ns: int, now_ns: int) -> list[Effect]:
        """A session wants to be a member.

        It gets Joined or Refused, now or by its time-out; `rank` None takes the lowest one that nobody asks for.
        """
        refused = self._refusal(session, rank, world_size)
        if refused is not None:
            return [refused, *self._dissolve_if_empty()]
        wanted = None if rank is None else Rank(rank)
        self._newcomers[session] = _Newcomer(session, wanted, timeout_ns, now_ns + timeout_ns)
        return self._admit()

    def leave(self, session: SessionId) -> list[Effect]:
        """A member goes, in good order; it gets no effect."""
        return self._remove(session)

    def lost(self, session: SessionId) -> list[Effect]:
        """A session has died; one that is no member changes nothing."""
        return self._remove(session)

    def finish(self, session: SessionId, generation: int) -> list[Effect]:
        """A member has finished, and so has all of its generation, what the group is for; 0 takes that back.

        Until then nobody is let in any more, and whoever has come after that generation is told.
        """
        if session not in self._seats or generation > self.generation:
            return []
        self._finished = Generation(generation)
        if not generation:
            return []
        waiting, self._newcomers = [*self._newcomers], {}
        late = [seat.session for seat in self._seats.values() if seat.since > generation]
        return [*(_finished(each) for each in waiting), *(Finished(each) for each in late)]

    def renew(self) -> list[Effect]:
        """Begins another generation of the same members, because this one cannot go on as it has begun."""
        self._begin_generation()
        effects: list[Effect] = [Changed(session, self.generation, (), self.ranks) for session in self.sessions]
        return [*effects, *self._admit()]

    def contribute(
        self,
        session: SessionId,
        generation: int,
        sequence: int,
        round_number: int,
        claim: Claim | None,
        payload: Buffer,
        now_ns: int,
        channel: int = 0,
    ) -> list[Effect]:
        """A chunk has come. Its payload must not change while the group holds it.

        Args:
            session: who has sent it.
            generation: for which it is meant.
            sequence: of the operation.
            round_number: of the chunk.
            claim: with the first chunk.
            payload: the chunk.
            now_ns: the time.
            channel: of an operation between two ranks.

        Raises:
            ProtocolError: the sender does not keep to the rules; nothing has changed, and its session is to be closed.
        """
        seat = self._seats.get(session)
        if seat is None:
            raise ProtocolError(f"a contribution to group {self.name!r} from a session that is no member")
        if generation > self.generation:
            raise ProtocolError(
                f"a contribution to generation {generation} of group {self.name!r}, which has not begun"
            )
        if generation < self.generation:
            return []
        if round_number:
            if claim is not None:
                raise ProtocolError(f"a claim in round {round_number}; only round 0 has one")
        elif claim is None:
            raise ProtocolError("round 0 of a collective operation without a claim")
        else:
            self._check(seat, claim, channel)
        if channel:
            effects = self._channels.contribute(seat.rank, channel, sequence, round_number, claim, payload, now_ns)
            return effects + self._admit()
        if claim is None:
            return self._go_on(seat, sequence, round_number, payload, now_ns)
        return self._begin(seat, sequence, claim, payload, now_ns)

    def give_up(self, session: SessionId, generation: int, sequence: int, channel: int, now_ns: int) -> list[Effect]:
        """A member's program cancels an operation that it has begun; one that has ended stays as it is."""
        seat = self._seats.get(session)
        if seat is None or generation != self.generation:
            return []
        if channel:
            return self._channels.give_up(seat.rank, channel, sequence) + self._admit()
        operation = self._operations.get(sequence)
        if operation is None or sequence >= seat.next_sequence:
            return []
        effects = operation.give_up(seat.rank)
        effects += self._retire(operation, now_ns)
        return effects + self._admit()

    def _in_progress(self) -> list[Operation]:
        return [*self._operations.values(), *self._channels.operations]

    def _check(self, seat: _Seat, claim: Claim, channel: int) -> None:
        try:
            claim.check(self.world_size)
        except InvalidValue as error:
            raise ProtocolError(f"rank {seat.rank} claims what cannot be: {error}") from error
        if (claim.kind in POINT_KINDS) != bool(channel):
            raise ProtocolError(
                f"rank {seat.rank} claims {claim.describe()} {'on' if channel else 'without'} a channel"
            )

    def tick(self, now_ns: int) -> list[Effect]:
        """Time has passed: operations and joins whose deadline is over fail."""
        effects: list[Effect] = []
        for operation in [*self._operations.values()]:
            effects += operation.expire(now_ns)
            effects += self._retire(operation, now_ns)
        effects += self._channels.expire(now_ns)
        effects += self._admit()
        self._progress.observe({each.sequence: each.moved for each in self._operations.values()}, now_ns)
        late = [newcomer for newcomer in self._newcomers.values() if now_ns >= newcomer.deadline_ns]
        effects += self._refuse_late(late)
        return effects

    def still_ns(self, now_ns: int) -> int:
        """For how long an operation in progress has not moved; one between two ranks, since the last of them came."""
        came = (now_ns - max(operation.arrived_ns.values()) for operation in self._channels.operations)
        return max(self._progress.still_ns(now_ns), max(came, default=0))

    def snapshot(self) -> GroupSnapshot:
        """The state of the group, for people."""
        return GroupSnapshot(
            name=self.name,
            number=self.number,
            created_ns=self.created_ns,
            generation=self.generation,
            world_size=self.world_size,
            ranks=self.ranks,
            missing_ranks=self._missing_ranks(),
            sessions=self.sessions,
            newcomers=tuple(
                NewcomerSnapshot(each.session, each.rank, each.deadline_ns - each.timeout_ns)
                for each in self._newcomers.values()
            ),
            operations=(
                *(
                    OperationSnapshot.of(operation, self._progress.since_ns(sequence))
                    for sequence, operation in sorted(self._operations.items())
                ),
                *(
                    OperationSnapshot.of(operation, max(operation.arrived_ns.values()))
                    for operation in sorted(self._channels.operations, key=lambda operation: operation.sequence)
                ),
            ),
            untold_failures=len(self._failures),
            recorder=self.recorder,
        )

    def _refusal(self, session: SessionId, rank: int | None, world_size: int) -> Refused | None:
        if session in self._seats or session in self._newcomers:
            text = "this session has joined already: use the Group that it got, or leave() that first"
            return Refused(session, RefusalKind.ALREADY_MEMBER, text)
        if self._finished:
            return _finished(session)
        if world_size != self.world_size:
            text = f"world_size {world_size} differs from the {self.world_size} of those who joined before"
            return Refused(session, RefusalKind.WORLD_SIZE, text)
        if rank is not None and not 0 <= rank < self.world_size:
            text = f"rank {rank} is not from 0 to {self.world_size - 1}"
            return Refused(session, RefusalKind.RANK_OUT_OF_RANGE, text)
        if rank is not None and rank in self._claimed_ranks():
            text = f"rank {rank} is held by another session; give each process its own rank, or none"
            return Refused(session, RefusalKind.RANK_TAKEN, text)
        if len(self._seats) + len(self._newcomers) == self.world_size:
            return Refused(session, RefusalKind.FULL, f"all {self.world_size} ranks are taken")
        return None

    def _claimed_ranks(self) -> set[int]:
        """Ranks that somebody has or has asked for by number."""
        asked = {newcomer.rank for newcomer in self._newcomers.values() if newcomer.rank is not None}
        return {*self._sessions, *asked}

    def _placements(self) -> dict[Rank, SessionId]:
        """The rank of each newcomer if all were admitted now."""
        claimed = self._claimed_ranks()
        free = (Rank(rank) for rank in range(self.world_size) if rank not in claimed)
        return {
            next(free) if newcomer.rank is None else newcomer.rank: newcomer.session
            for newcomer in self._newcomers.values()
        }

    def _missing_ranks(self) -> tuple[Rank, ...]:
        """Ranks that nobody has and nobody waits for."""
        present = {*self._sessions, *self._placements()}
        return tuple(Rank(rank) for rank in range(self.world_size) if rank not in present)

    def _admit(self) -> list[Effect]:
        """Make members of all newcomers, if the group can take them now."""
        forming = not self._seats
        if not self._newcomers or self._in_progress() or (forming and len(self._newcomers) < self.world_size):
            return []
        old = [*self._sessions.values()]
        placed = self._placements()
        self._newcomers.clear()
        since = Generation(self.generation + 1)
        self._seats.update({session: _Seat(session, rank, since) for rank, session in placed.items()})
        self._begin_generation()
        effects: list[Effect] = [Changed(session, self.generation, (), self.ranks) for session in old]
        effects += [Joined(session, rank, self.generation, self.ranks) for rank, session in sorted(placed.items())]
        return effects

    def _remove(self, session: SessionId) -> list[Effect]:
        seat = self._seats.pop(session, None)
        if seat is None:
            return [] if self._newcomers.pop(session, None) is None else self._dissolve_if_empty()
        self._begin_generation()
        effects: list[Effect] = [
            Changed(survivor, self.generation, (seat.rank,), self.ranks) for survivor in self._sessions.values()
        ]
        return [*effects, *self._admit(), *self._dissolve_if_empty()]

    def _begin_generation(self) -> None:
        for operation in self._operations.values():
            self._record(operation, 0)
        self.generation = Generation(self.generation + 1)
        self._operations.clear()
        self._failures = Failures()
        self._late.end_generation()
        for seat in self._seats.values():
            seat.next_sequence, seat.quorum = 1, None
        # A new dictionary, because the operations of the old generation keep the old one.
        self._sessions = dict(sorted((seat.rank, seat.session) for seat in self._seats.values()))
        self._channels = Channels(self.generation, self._sessions)

    def _refuse_late(self, late: Iterable[_Newcomer]) -> list[Effect]:
        """Refuse newcomers whose time is over; each is told the ranks that were missing to all of them."""
        if self._seats:
            missing = tuple(sorted({rank for each in self._in_progress() for rank in each.missing_ranks}))
        else:
            missing = self._missing_ranks()
        effects: list[Effect] = []
        for newcomer in late:
            del self._newcomers[newcomer.session]
            timeout_s = newcomer.timeout_ns / 1e9
            text = f"ranks {list(missing)} had not arrived after {timeout_s:g} s"
            effects.append(Refused(newcomer.session, RefusalKind.TIMEOUT, text, missing, timeout_s))
        return effects + self._dissolve_if_empty() if effects else effects

    def _dissolve_if_empty(self) -> list[Effect]:
        return [] if self._seats or self._newcomers else [Dissolved(self.number)]

    def _begin(self, seat: _Seat, sequence: int, claim: Claim, payload: Buffer, now_ns: int) -> list[Effect]:
        if sequence != seat.next_sequence:
            raise ProtocolError(f"rank {seat.rank} started operation {sequence} in place of {seat.next_sequence}")
        if claim.quorum is not None and seat.quorum is not None and seat.quorum.owes(seat.rank):
            raise ProtocolError(f"rank {seat.rank} started operation {sequence} with another quorum one under way")
        operation = self._operations.get(sequence) or self._late.find(sequence)
        if operation is None:
            failure = self._failure(sequence)
            if failure is not None:
                self._started(seat)
                return [Failed(seat.session, self.generation, sequence, failure)]
            operation = self._new_operation(seat, sequence, claim)
        was_over = operation.ended
        effects = operation.arrive(seat.rank, claim, payload, now_ns)
        if not was_over:
            self._operations[sequence] = operation
        if isinstance(operation, QuorumOperation):
            seat.quorum = operation
        self._started(seat)
        effects += self._retire(operation, now_ns)
        return effects + self._admit()

    def _failure(self, sequence: int) -> Failure | None:
        """Why an operation that is neither in progress nor kept has ended; None when it has not begun."""
        if sequence <= self._late.forgotten:
            return self._failures.find(sequence) or Behind(self._late.newest - sequence)
        return self._failures.find(sequence)

    def _new_operation(self, seat: _Seat, sequence: int, claim: Claim) -> Operation:
        # Nobody was further than this rank, so it takes part in every operation in progress.
        if len(self._operations) >= limits.OPERATIONS_AHEAD:
            raise ProtocolError(
                f"rank {seat.rank} started operation {sequence} with {len(self._operations)} in progress: "
                f"a rank may have {limits.OPERATIONS_AHEAD}"
            )
        if claim.quorum is not None:
            return QuorumOperation(self.generation, sequence, self._sessions, self._late, self._laggards)
        return Operation(self.generation, sequence, self._sessions)

    def _laggards(self, sequence: int) -> set[Rank]:
        """Ranks that have not begun the operation before this one."""
        return {seat.rank for seat in self._seats.values() if seat.next_sequence < sequence}

    def _go_on(self, seat: _Seat, sequence: int, round_number: int, payload: Buffer, now_ns: int) -> list[Effect]:
        if not 0 < sequence < seat.next_sequence:
            raise ProtocolError(f"round {round_number} of operation {sequence}, which rank {seat.rank} has not started")
        operation = self._operations.get(sequence) or self._late.find(sequence)
        if operation is None:
            # It has failed while this chunk was under way.
            return []
        effects = operation.contribute(seat.rank, round_number, payload, now_ns)
        effects += self._retire(operation, now_ns)
        return effects + self._admit()

    def _started(self, seat: _Seat) -> None:
        seat.next_sequence += 1
        if self._failures:
            self._failures.forget_before(min(each.next_sequence for each in self._seats.values()))

    def _retire(self, operation: Operation, now_ns: int) -> list[Effect]:
        """Forget an operation that has ended, but not its failure or result while somebody has not heard of it."""
        if not operation.ended:
            return []
        was_running = self._operations.pop(operation.sequence, None) is not None
        if was_running:
            self._record(operation, now_ns)
        if operation.failure is not None:
            if len(operation.arrived_ns) < len(self._seats):
                self._failures.remember(operation.sequence, operation.failure)
        elif isinstance(operation, QuorumOperation):
            if operation.settled:
                self._late.release(operation)
            elif was_running:
                return self._late.keep(operation)
        return []

    def _record(self, operation: Operation, now_ns: int) -> None:
        failure, words = operation.failure, ""
        outcome = Outcome.DONE if operation.ended else Outcome.VOID
        if failure is not None:
            outcome = _OUTCOMES[type(failure)]
            words = str(failure.error(self.name, operation.sequence))
        self.recorder.record(
            Recorded(
                self.generation, operation.sequence, STAR, operation.claim, operation.arrived_ns, now_ns, outcome, words
            )
        )


def _finished(session: SessionId) -> Refused:
    return Refused(session, RefusalKind.FINISHED, "the members have finished")
