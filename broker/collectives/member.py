"""The client's half of the collectives: what one rank sends, and where the results go.

A `Member` numbers the operations of its rank as the broker does, so that both agree on what a frame belongs to. An
operation is pulled (`next_round`) as the link allows and fed (`result`, `failed`, `changed`) as frames arrive:

    start -> next_round ... result ... next_round ... result(last) -> done -> finish

Results are gathered in scratch memory and reach the caller's array in `finish` only: an operation that fails halfway
has changed nothing. The scratch is reserved with the first round, so operations that wait their turn cost no memory.

A change of the generation is raised by the operations that were in progress, and if none of these has been finished by
the next `start`. So who starts operations without waiting for them does not come into the new generation unknowingly,
where they would meet other operations of the other ranks. Several changes that nobody has seen are raised as one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from broker import limits
from broker.buffers import Buffer
from broker.collectives.claims import SHARING_KINDS, Claim, CollectiveKind
from broker.collectives.layout import chunk_bounds, overlap, shard_bounds
from broker.errors import BrokerError, GenerationChangedError, InvalidValue, ProtocolError
from broker.ids import Generation, Rank


class Round(NamedTuple):
    """One contribution to send: a chunk, and in round 0 the claim."""

    number: int
    payload: memoryview
    claim: Claim | None


class Participation(NamedTuple):
    """Who is in the result of an operation with a quorum; see `effects.TookPart`."""

    ranks: tuple[Rank, ...]
    carried: tuple[Rank, ...]
    behind: int


class Member:
    """One rank of a group, as its own process sees it. Not for several threads at once."""

    def __init__(self, group: str, rank: Rank, world_size: int, generation: Generation, ranks: Sequence[Rank]) -> None:
        """What the broker has said when it let this rank in; `ranks` are all members, ascending."""
        self.group = group
        self.rank = rank
        self.world_size = world_size
        self.generation = generation
        self.ranks = tuple(ranks)
        self.next_sequence = 1
        self._pending: dict[int, MemberOperation] = {}
        self._next_to_open = 1
        self._open = 0
        self._open_quorums = 0
        self._unseen_change: GenerationChangedError | None = None
        self._prioritised = 0
        self.whole: Member | None = None
        """Of an end of a channel: the member of the whole group, whose changes it tells of."""
        self.channel = 0
        """Which channel this is an end of; 0 for the whole group."""
        self.allowed: int | None = None
        """On a channel, the last operation that may be opened: how many may be open is shared by all channels."""

    def __repr__(self) -> str:
        return (
            f"<Member {self.group!r} rank={self.rank} generation={self.generation} ranks={list(self.ranks)} "
            f"pending={len(self._pending)}>"
        )

    @property
    def position(self) -> int:
        """The index of this rank among those present: whose shard it gets, where its array stands."""
        return self.ranks.index(self.rank)

    @property
    def pending(self) -> tuple[MemberOperation, ...]:
        """Operations that have not ended, in the order of their start."""
        return tuple(self._pending.values())

    def start(
        self,
        claim: Claim,
        contribution: memoryview | None = None,
        target: memoryview | None = None,
        priority: int = 0,
    ) -> MemberOperation:
        """Begin an operation; nothing is sent before `next_round` is asked.

        Args:
            claim: what to do; every rank must ask for the same.
            contribution: the flat bytes of this rank's array, unchanged until the operation is done. None for a
                barrier and for a rank that gets what the root has.
            target: the flat bytes that `finish` fills: for an all_reduce, and for a rank that receives a broadcast; for
                the others if their result has a place.
            priority: operations that have begun send their chunks in this order, the highest first.

        Raises:
            InvalidValue: the claim or a length cannot be; no sequence has been used up.
            GenerationChangedError: the members have changed since the last call; the next one runs with the new ones.
        """
        self.raise_change()
        claim.check(self.world_size)
        operation = MemberOperation(self, self.next_sequence, claim, contribution, target, priority)
        self._pending[operation.sequence] = operation
        self._prioritised += priority != 0
        self.next_sequence += 1
        return operation

    def take_change(self) -> GenerationChangedError | None:
        """The changes of the members that the caller has not been told; whoever takes it has to raise it."""
        if self.whole is not None:
            return self.whole.take_change()
        change, self._unseen_change = self._unseen_change, None
        return change

    def raise_change(self) -> None:
        """Tells the caller of changes of which it has not been told.

        Raises:
            GenerationChangedError: there is one.
        """
        # In no variable: an error keeps the frame that raises it, which would keep the error, and so both would stay.
        try:
            if self._unseen_change is not None:
                raise self._unseen_change
        finally:
            self._unseen_change = None

    def operation(self, sequence: int) -> MemberOperation:
        """The operation that a frame of the broker is about.

        Raises:
            ProtocolError: it has ended or was never started.
        """
        operation = self._pending.get(sequence)
        if operation is None:
            raise ProtocolError(f"a frame about operation {sequence} of group {self.group!r}, which is not in progress")
        return operation

    def next_round(self) -> tuple[MemberOperation, Round] | None:
        """What to send next; None until results arrive or another operation starts.

        Claims go out in the order of the operations, and before the chunks of operations of a lower priority. Of equal
        ones the oldest that has something goes first. Ask again after each result, failure and start.
        """
        if self._prioritised and self._pending:
            return self._next_prioritised()
        for operation in self._pending.values():
            following = operation.next_round()
            if following is not None:
                return operation, following
            if not operation.opened:
                break
        return None

    def _next_prioritised(self) -> tuple[MemberOperation, Round] | None:
        opened = [operation for operation in self._pending.values() if operation.opened]
        waiting = [operation for operation in self._pending.values() if not operation.opened]
        urgent = max((operation.priority for operation in waiting), default=0)
        # What is in front of the most urgent one has to be opened before it.
        first = [operation for operation in opened if operation.priority > urgent] if waiting else opened
        first.sort(key=lambda operation: -operation.priority)
        rest = sorted((operation for operation in opened if operation not in first), key=lambda each: -each.priority)
        for operation in [*first, *waiting[:1], *rest]:
            following = operation.next_round()
            if following is not None:
                return operation, following
        return None

    def changed(
        self, generation: Generation, lost_ranks: Sequence[Rank], ranks: Sequence[Rank]
    ) -> GenerationChangedError:
        """The broker says that the members have changed: every operation in progress fails.

        Returns:
            What tells of it, and of changes before it that nobody has been told of.
        """
        unseen = self._unseen_change
        lost = {*lost_ranks, *(unseen.lost_ranks if unseen is not None else ())}
        self.generation = generation
        self.ranks = tuple(ranks)
        error = GenerationChangedError(self.group, generation, sorted(lost), self.ranks)
        self._unseen_change = error
        for operation in self.pending:
            operation.changed(generation, lost_ranks, ranks)
        self.next_sequence = self._next_to_open = 1
        return error

    def closed(self, error: BrokerError) -> None:
        """The connection is gone, or the group has been left: every operation in progress fails with this error."""
        for operation in self.pending:
            operation.failed(error)

    def _may_open(self, operation: MemberOperation) -> bool:
        if operation.sequence != self._next_to_open or (operation.claim.quorum is not None and self._open_quorums):
            return False
        if self.allowed is not None:
            return operation.sequence <= self.allowed
        return self._open < limits.OPERATIONS_AHEAD

    def _opened(self, operation: MemberOperation) -> None:
        self._next_to_open += 1
        self._open += 1
        self._open_quorums += operation.claim.quorum is not None

    def _ended(self, operation: MemberOperation) -> None:
        del self._pending[operation.sequence]
        self._prioritised -= operation.priority != 0
        if operation.opened:
            self._open -= 1
            self._open_quorums -= operation.claim.quorum is not None


class MemberOperation:
    """One operation of one rank, until it is `done`: then `error` says how it went and `finish` gives the result."""

    def __init__(
        self,
        member: Member,
        sequence: int,
        claim: Claim,
        contribution: memoryview | None,
        target: memoryview | None,
        priority: int = 0,
    ) -> None:
        """Made by `Member.start`."""
        self.priority = priority
        self.given_up = False
        self.sequence = sequence
        self.claim = claim
        self.done = False
        self.error: BrokerError | None = None
        self.participation: Participation | None = None
        self._member = member
        self._position = member.position
        self._positions = len(member.ranks)
        self._array_bytes = claim.nbytes
        self._rounds = claim.rounds
        self._abstains = claim.quorum is not None and claim.quorum.abstains
        self._result_bytes = claim.result_bytes(member.rank, self._positions)
        self._contribution = self._checked("contribution", contribution, claim.sent_bytes(member.rank))
        needs_target = claim.kind in (CollectiveKind.ALL_REDUCE, CollectiveKind.BROADCAST) or target is not None
        self._target = self._checked("target", target, self._result_bytes if needs_target else 0)
        self._scratch = memoryview(b"")
        self._sent = 0
        self._received = 0
        self._position_expected = 0

    def __repr__(self) -> str:
        state = "pending" if not self.done else "failed" if self.error else "done"
        return (
            f"<MemberOperation {self.sequence} {state} {self.claim.describe()} "
            f"sent={self._sent} received={self._received}/{self._rounds}>"
        )

    @property
    def channel(self) -> int:
        """On which channel it is; 0 for an operation of the whole group."""
        return self._member.channel

    @property
    def opened(self) -> bool:
        """Whether the claim has been handed out by `next_round`, so that the broker knows of this operation."""
        return self._sent > 0

    @property
    def _rounds_allowed(self) -> int:
        """How many rounds may have been sent by now: with a quorum all, because it is gathered before it is reduced."""
        if self.claim.quorum is not None:
            return 1 if self._abstains else self._rounds
        return min(self._rounds, self._received + limits.ROUNDS_AHEAD)

    def _checked(self, what: str, array: memoryview | None, expected: int) -> memoryview:
        """The bytes of an argument, which must be there exactly when the claim has a use for it."""
        if array is None:
            array = memoryview(b"")
        if array.nbytes != expected:
            problem = f"{self.claim.describe()} needs {expected} bytes on rank {self._member.rank}"
            raise InvalidValue(what, f"of {array.nbytes} bytes", problem)
        # A flat memoryview of no bytes cannot be cast.
        return array.cast("B") if expected else memoryview(b"")

    def let_go(self) -> None:
        """The array is the caller's again, who has given this up: what is still to be sent with the claim is a copy."""
        if not self.opened:
            self._contribution = memoryview(self._contribution.tobytes())

    def next_round(self) -> Round | None:
        """The next contribution to send, or None while this operation has to wait (or has nothing more to send)."""
        if self.done or self._sent >= self._rounds_allowed:
            return None
        claim = None
        if not self.opened:
            if not self._member._may_open(self):
                return None
            claim = self.claim
            self._member._opened(self)
            self._scratch = np.empty(self._result_bytes, np.uint8).data
        number = self._sent
        self._sent += 1
        start, stop = chunk_bounds(number, self.claim.chunk_bytes, len(self._contribution))
        return Round(number, self._contribution[start:stop], claim)

    def destination(self, round_number: int, position: int, payload_bytes: int) -> memoryview:
        """Where the payload of the next result is to be written; valid until that result is reported.

        Raises:
            ProtocolError: this result is not the next one, or its payload has another length.
        """
        if (round_number, position) != (self._received, self._next_position):
            raise ProtocolError(
                f"result {round_number}.{position} of operation {self.sequence} came in place of "
                f"{self._received}.{self._next_position}"
            )
        if not self.opened:
            raise ProtocolError(f"a result of operation {self.sequence} before rank {self._member.rank} has begun it")
        start, stop = self._bounds(round_number, position)
        if stop - start != payload_bytes:
            raise ProtocolError(
                f"result {round_number}.{position} of {self.claim.describe()} has {payload_bytes} bytes, "
                f"not {stop - start}"
            )
        return self._scratch[start:stop]

    def agree(self, claim: Claim) -> None:
        """The broker says what a receive that takes whatever comes will get, before its first result.

        Raises:
            ProtocolError: this is no such receive, or not what its sender can have claimed.
        """
        if self.done or self._received:
            return
        if self.claim.kind is not CollectiveKind.RECEIVE or not claim.matches(self.claim):
            raise ProtocolError(f"operation {self.sequence} is told of {claim.describe()}, but it is no such receive")
        claim.check(self._member.world_size)
        self.claim = claim
        self._array_bytes, self._rounds = claim.nbytes, claim.rounds
        self._result_bytes = self._array_bytes
        self._scratch = np.empty(self._result_bytes, np.uint8).data

    def result(self, round_number: int, position: int, payload: Buffer | None, *, last: bool) -> None:
        """A result has arrived; an operation that has ended ignores it, as it does a failure.

        Args:
            round_number: of the result.
            position: of the result.
            payload: its bytes, or None when they have been written to `destination` already.
            last: whether the broker says that nothing more comes.

        Raises:
            ProtocolError: not the result, the length or the end that was to come.
        """
        if self.done:
            return
        if payload is not None:
            self.destination(round_number, position, len(payload))[:] = payload
        self._position_expected += 1
        if self._position_expected == self._results_per_round:
            self._position_expected = 0
            self._received += 1
        if last != (self._received == self._rounds):
            raise ProtocolError(f"operation {self.sequence} has {self._rounds} rounds and ended after {self._received}")
        if last:
            self._end(None)

    def took_part(self, participation: Participation) -> None:
        """Who is in the result that comes next."""
        if not self.done:
            self.participation = participation

    def failed(self, error: BrokerError) -> None:
        """The operation has failed; the caller's array is as it was."""
        self._end(error)

    def changed(self, generation: Generation, lost_ranks: Sequence[Rank], ranks: Sequence[Rank]) -> None:
        """The members have changed, so the operation has failed."""
        self._end(GenerationChangedError(self._member.group, generation, lost_ranks, ranks))

    def finish(self) -> memoryview:
        """Take the result of a `done` operation, filling the target if there is one.

        Returns:
            The flat bytes of the result: the target if there is one, else memory of its own. They are this rank's shard
            for reduce_scatter and scatter, and what all positions gave, one after another, for all_gather, gather and
            all_to_all.

        Raises:
            BrokerError: what the operation failed with; the target has not been touched.
        """
        if isinstance(self.error, GenerationChangedError):
            # There may have been others meanwhile.
            raise self._member.take_change() or self.error
        if self.error is not None:
            raise self.error
        assert self.done, "finish() before the operation is done"
        if not len(self._target):
            return self._scratch
        if self._scratch:
            self._target[:] = self._scratch
            # The scratch is as large as the array: keep it no longer than needed.
            self._scratch = memoryview(b"")
        return self._target

    @property
    def _results_per_round(self) -> int:
        kind = self.claim.kind
        gathers = kind in (CollectiveKind.ALL_GATHER, CollectiveKind.ALL_TO_ALL) or (
            kind is CollectiveKind.GATHER and self._member.rank == self.claim.root
        )
        return self._positions if gathers else 1

    @property
    def _next_position(self) -> int:
        """Whose part comes next: results of a round come in the order of the positions."""
        shard = self.claim.kind in (CollectiveKind.REDUCE_SCATTER, CollectiveKind.SCATTER)
        return self._position if shard else self._position_expected

    def _bounds(self, round_number: int, position: int) -> tuple[int, int]:
        """Where a result lies in the scratch."""
        chunk = chunk_bounds(round_number, self.claim.chunk_bytes, self._array_bytes)
        if not self._result_bytes:
            return 0, 0
        if self.claim.kind in (CollectiveKind.ALL_GATHER, CollectiveKind.GATHER):
            base = position * self._array_bytes
            return base + chunk[0], base + chunk[1]
        if self.claim.kind in SHARING_KINDS:
            shard = shard_bounds(self._position, self._positions, self._array_bytes)
            start, stop = overlap(chunk, shard)
            whose = position if self.claim.kind is CollectiveKind.ALL_TO_ALL else 0
            base = whose * (shard[1] - shard[0]) - shard[0]
            return base + start, base + stop
        return chunk

    def _end(self, error: BrokerError | None) -> None:
        if self.done:
            return
        self.done = True
        self.error = error
        self._contribution = memoryview(b"")
        if error is not None:
            self._scratch = memoryview(b"")
        self._member._ended(self)
