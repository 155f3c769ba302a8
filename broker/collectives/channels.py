"""Operations between two ranks of a generation: a send of one and the receive that it meets.

A channel leads from one rank to another, under a tag; its sends are numbered from 1, and so are its receives, each by
the rank that calls. Send n and receive n are one operation of two members (operation.py): the sender is the root, the
receiver's empty chunks say how far it has got. Order and bounded memory follow from that, and the deadline and the
claims are as in every other operation. Nothing is kept of a channel on which nothing is in progress.
"""

from __future__ import annotations

from collections.abc import Mapping

from broker import limits
from broker.buffers import Buffer
from broker.collectives.claims import POINT_KINDS, Claim, CollectiveKind, channel_ends
from broker.collectives.effects import Effect, Failed, Failure
from broker.collectives.operation import Operation
from broker.errors import ProtocolError
from broker.ids import Generation, Rank, SessionId


class Channels:
    """What is in progress between two ranks each, in one generation of a group."""

    def __init__(self, generation: Generation, sessions: Mapping[Rank, SessionId]) -> None:
        """`sessions` are all members of the generation."""
        self._generation = generation
        self._sessions = sessions
        self._operations: dict[tuple[int, int], Operation] = {}
        self._failures: dict[tuple[int, int], Failure] = {}

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Those in progress."""
        return tuple(self._operations.values())

    def contribute(
        self,
        rank: Rank,
        channel: int,
        sequence: int,
        round_number: int,
        claim: Claim | None,
        payload: Buffer,
        now_ns: int,
    ) -> list[Effect]:
        """A chunk has come from one of the two ranks; the claim has been checked.

        Raises:
            ProtocolError: the rank does not keep to the rules.
        """
        key = channel, sequence
        operation = self._operations.get(key)
        if claim is None:
            if operation is None or rank not in operation.arrived_ns:
                # It has failed while this chunk was under way.
                return []
            effects = operation.contribute(rank, round_number, payload)
        else:
            self._check(rank, channel, claim)
            failure = self._failures.pop(key, None)
            if failure is not None:
                return [Failed(self._sessions[rank], self._generation, sequence, failure, channel)]
            if operation is None:
                ends = channel_ends(channel)
                members = {end: self._sessions[end] for end in sorted(ends)}
                operation = Operation(self._generation, sequence, members, channel)
            elif rank in operation.arrived_ns:
                raise ProtocolError(f"rank {rank} started operation {sequence} of a channel twice")
            effects = operation.arrive(rank, claim, payload, now_ns)
            self._operations[key] = operation
        self._retire(key, operation)
        return effects

    def expire(self, now_ns: int) -> list[Effect]:
        """Time has passed."""
        effects: list[Effect] = []
        for key, operation in [*self._operations.items()]:
            effects += operation.expire(now_ns)
            self._retire(key, operation)
        return effects

    def give_up(self, rank: Rank, channel: int, sequence: int) -> list[Effect]:
        """A rank cancels an operation that it has begun."""
        key = channel, sequence
        operation = self._operations.get(key)
        if operation is None or rank not in operation.arrived_ns:
            return []
        effects = operation.give_up(rank)
        self._retire(key, operation)
        return effects

    def _check(self, rank: Rank, channel: int, claim: Claim) -> None:
        sender, receiver = channel_ends(channel)
        if rank not in (sender, receiver) or sender == receiver or not {sender, receiver} <= set(self._sessions):
            raise ProtocolError(f"rank {rank} uses a channel from rank {sender} to rank {receiver}")
        if (
            claim.kind not in POINT_KINDS
            or claim.root != sender
            or (claim.kind is CollectiveKind.RECEIVE) > (rank == receiver)
        ):
            raise ProtocolError(f"rank {rank} claims {claim.describe()} on a channel from rank {sender}")
        role = rank == sender
        begun = sum(
            rank in operation.arrived_ns and (rank == channel_ends(other)[0]) == role
            for (other, _), operation in self._operations.items()
        )
        if begun >= limits.OPERATIONS_AHEAD:
            what = "sends" if role else "receives"
            raise ProtocolError(f"rank {rank} has {begun} {what} in progress, the most that it may have")

    def _retire(self, key: tuple[int, int], operation: Operation) -> None:
        if not operation.ended:
            return
        self._operations.pop(key, None)
        if operation.failure is not None and len(operation.arrived_ns) < 2:
            self._failures[key] = operation.failure
            if len(self._failures) > limits.FAILED_OPERATIONS_MAX:
                del self._failures[next(iter(self._failures))]
