"""A group and its members joined by queues in memory: what the broker and the clients do, without either.

Every message waits in a queue of its session until it is delivered, so a test can deliver in any order that a network
could: sessions are independent, each keeps its order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from random import Random

import numpy as np

from broker import limits
from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.collectives.effects import (
    Changed,
    Dissolved,
    Effect,
    Failed,
    Joined,
    Lagging,
    Refused,
    Result,
    TookPart,
    Wake,
)
from broker.collectives.group import Group
from broker.collectives.member import Member, MemberOperation, Participation, Round
from broker.ids import GroupNumber, SessionId

SECOND_NS = 1_000_000_000
CHUNK_BYTES = 64


def claim(
    kind: CollectiveKind = CollectiveKind.ALL_REDUCE,
    op: ReduceOp | None = ReduceOp.SUM,
    root: int | None = None,
    dtype: str = "float32",
    shape: tuple[int, ...] = (4,),
    timeout_ns: int = SECOND_NS,
    chunk_bytes: int = CHUNK_BYTES,
) -> Claim:
    """An all_reduce of four floats, except where the test says otherwise."""
    return Claim(kind, op, root, dtype, shape, timeout_ns, chunk_bytes)


def flat(array: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, as the client would hand them over."""
    return array.reshape(-1).view(np.uint8).data


@dataclass
class Seat:
    """A session: its half of the group and the messages under way."""

    to_broker: deque[tuple[int, int, Round]] = field(default_factory=deque)
    to_client: deque[Effect] = field(default_factory=deque)
    member: Member | None = None
    refused: Refused | None = None


class Cluster:
    """A group of `world_size`, a clock, and sessions numbered from 1."""

    def __init__(self, world_size: int, seed: int = 0) -> None:
        self.now_ns = SECOND_NS
        self.group = Group("dp", GroupNumber(1), world_size, self.now_ns)
        self.seats: dict[SessionId, Seat] = defaultdict(Seat)
        self.dissolved = 0
        self.notes: list[Lagging | Wake] = []
        self.random = Random(seed)

    def formed(self) -> Cluster:
        """Join world_size sessions; session n + 1 has rank n."""
        for rank in range(self.group.world_size):
            self.join(rank + 1, rank)
        self.settle()
        return self

    def join(self, session: int, rank: int | None = None, timeout_ns: int = SECOND_NS) -> None:
        """Ask for a place."""
        self.seats[SessionId(session)] = Seat()
        self._emit(self.group.join(SessionId(session), rank, self.group.world_size, timeout_ns, self.now_ns))

    def lose(self, session: int) -> None:
        """The session dies with all that was under way."""
        self.seats.pop(SessionId(session))
        self._emit(self.group.lost(SessionId(session)))

    def leave(self, session: int) -> None:
        """The session goes in good order."""
        self._emit(self.group.leave(SessionId(session)))
        self.seats.pop(SessionId(session))

    def member(self, session: int) -> Member:
        """The client's half of a session that has joined."""
        member = self.seats[SessionId(session)].member
        assert member is not None
        return member

    def advance(self, duration_ns: int) -> None:
        """Time passes."""
        self.now_ns += duration_ns
        self._emit(self.group.tick(self.now_ns))

    def settle(self) -> None:
        """Send and deliver everything, in an order that only the seed decides."""
        while self.step():
            pass

    def settle_with_time(self) -> None:
        """Settle, and let every deadline pass."""
        self.settle()
        while (deadline_ns := self.group.next_deadline_ns) is not None:
            self.advance(max(0, deadline_ns - self.now_ns))
            self.settle()

    def step(self) -> bool:
        """One message is sent or delivered; False when there is none."""
        moves = [(move, session) for session in self.seats for move in (self._send, self._contribute, self._receive)]
        self.random.shuffle(moves)
        return any(move(session) for move, session in moves)

    def _send(self, session: SessionId) -> bool:
        seat = self.seats[session]
        following = seat.member.next_round() if seat.member is not None else None
        if seat.member is None or following is None:
            return False
        operation, contribution = following
        # What is on the wire does not change any more.
        sent = contribution._replace(payload=memoryview(bytes(contribution.payload)))
        seat.to_broker.append((seat.member.generation, operation.sequence, sent))
        return True

    def _contribute(self, session: SessionId) -> bool:
        queue = self.seats[session].to_broker
        if not queue:
            return False
        generation, sequence, (number, payload, its_claim) = queue.popleft()
        self._emit(self.group.contribute(session, generation, sequence, number, its_claim, payload, self.now_ns))
        self._check_memory()
        return True

    def _check_memory(self) -> None:
        for operation in self.group.snapshot().operations:
            # With a quorum arrays are gathered whole, which test_quorum.py bounds.
            if "quorum" in operation.claim:
                continue
            bound = self.group.world_size * limits.ROUNDS_AHEAD * CHUNK_BYTES
            assert operation.held_bytes <= bound, operation

    def _emit(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Dissolved):
                self.dissolved += 1
            elif isinstance(effect, (Lagging, Wake)):
                self.notes.append(effect)
            elif effect.session in self.seats:
                self.seats[effect.session].to_client.append(effect)

    def _receive(self, session: SessionId) -> bool:
        seat = self.seats[session]
        if not seat.to_client:
            return False
        effect = seat.to_client.popleft()
        if isinstance(effect, Joined):
            seat.member = Member("dp", effect.rank, self.group.world_size, effect.generation, effect.ranks)
        elif isinstance(effect, Refused):
            seat.refused = effect
        else:
            assert seat.member is not None
            deliver(seat.member, effect, placed=self.random.random() < 0.5)
        return True


def deliver(member: Member, effect: Effect, *, placed: bool = False) -> None:
    """Hand an effect to the member that it is for; `placed` writes the payload to its destination first."""
    if isinstance(effect, Changed):
        member.changed(effect.generation, effect.lost_ranks, effect.ranks)
    elif isinstance(effect, Failed):
        member.operation(effect.sequence).failed(effect.failure.error(member.group, effect.sequence))
    elif isinstance(effect, TookPart):
        took_part = Participation(effect.ranks, effect.carried, effect.behind)
        member.operation(effect.sequence).took_part(took_part)
    elif isinstance(effect, Result):
        assert effect.generation == member.generation
        operation = member.operation(effect.sequence)
        payload = effect.payload
        if placed:
            operation.destination(effect.round, effect.position, len(payload))[:] = payload
        operation.result(effect.round, effect.position, None if placed else payload, last=effect.last)


def start(member: Member, its_claim: Claim, array: np.ndarray | None = None) -> MemberOperation:
    """Start an operation as the client does: in place where there is an array to fill."""
    if its_claim.kind is CollectiveKind.BARRIER:
        return member.start(its_claim)
    assert array is not None
    if its_claim.quorum is not None and its_claim.quorum.abstains:
        return member.start(its_claim, None, flat(array))
    receives = its_claim.sent_bytes(member.rank) == 0
    fills = its_claim.kind is CollectiveKind.ALL_REDUCE or (
        its_claim.kind is CollectiveKind.BROADCAST and its_claim.root != member.rank
    )
    return member.start(its_claim, None if receives else flat(array), flat(array) if fills else None)
