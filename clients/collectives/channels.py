"""One rank's ends of the channels between two ranks: a Member of two for each, made when it is used first. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from broker import limits
from broker.collectives.claims import TAG_MAX, Claim, CollectiveKind, channel_ends, channel_number
from broker.collectives.member import Member, MemberOperation, Round
from broker.errors import InvalidValue
from broker.ids import Rank
from broker.protocol.tensors import TensorMeta, view_tensor
from clients.collectives.collective import Destination, Prepared, claim_of, nanoseconds
from clients.collectives.flats import array_of, bytes_of, flat_of, writable_array_of
from clients.collectives.staging import WRITTEN, staged
from clients.connection.checks import whole_number


class Channels:
    """The channels of one generation. They go through the broker, whatever the schedule is."""

    def __init__(self, whole: Member) -> None:
        """`whole` is this rank among all."""
        self._whole = whole
        self.members: dict[int, Member] = {}
        self._sends = _Window()
        self._receives = _Window()

    @property
    def pending(self) -> tuple[MemberOperation, ...]:
        """Sends and receives that have not ended."""
        return tuple(operation for member in self.members.values() for operation in member.pending)

    def end(self, channel: int, peer: int) -> Member:
        """This rank's end of a channel, for the next send or receive on it, which is then `begun`.

        Raises:
            GenerationChangedError: the members have changed since the last call.
            InvalidValue: the peer is not there.
        """
        whole = self._whole
        whole.raise_change()
        if peer not in whole.ranks:
            raise InvalidValue("rank", peer, f"is none of those present: {list(whole.ranks)}")
        member = self.members.get(channel)
        if member is None:
            ends = [Rank(rank) for rank in sorted((whole.rank, peer))]
            member = Member(whole.group, whole.rank, whole.world_size, whole.generation, ends)
            member.whole, member.channel, member.allowed = whole, channel, 0
            self.members[channel] = member
        return member

    def begun(self, member: Member, operation: MemberOperation) -> None:
        """An operation has been started on a channel."""
        window = self._sends if channel_ends(member.channel)[0] == member.rank else self._receives
        window.waiting.append((member, operation))

    def next_round(self) -> tuple[MemberOperation, Round] | None:
        """What to send next; see Member."""
        self._sends.allow()
        self._receives.allow()
        for member in self.members.values():
            following = member.next_round()
            if following is not None:
                return following
        return None

    def changed(self, end: Callable[[Member], None]) -> tuple[MemberOperation, ...]:
        """The generation is over, or the place is lost: what has ended with it."""
        pending = self.pending
        for member in self.members.values():
            end(member)
        self.members.clear()
        self._sends, self._receives = _Window(), _Window()
        return pending


class _Window:
    """Which sends, or which receives, the broker may know of: the oldest ones, on whatever channels they are."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Member, MemberOperation]] = deque()
        self._allowed: list[MemberOperation] = []

    def allow(self) -> None:
        """Lets those go on whose turn has come."""
        if not self.waiting:
            return
        self._allowed = [operation for operation in self._allowed if not operation.done]
        while self.waiting and len(self._allowed) < limits.OPERATIONS_AHEAD:
            member, operation = self.waiting.popleft()
            member.allowed = operation.sequence
            self._allowed.append(operation)


def check_point(member: Member, rank: object, tag: object, what: str) -> tuple[int, int]:
    """The other rank and the tag.

    Raises:
        InvalidValue: they cannot be.
    """
    peer, number = whole_number(what, rank), whole_number("tag", tag)
    if not 0 <= peer < member.world_size or peer == member.rank:
        raise InvalidValue(what, peer, f"must be another rank, from 0 to {member.world_size - 1}")
    if not 0 <= number <= TAG_MAX:
        raise InvalidValue("tag", number, f"must be from 0 to {TAG_MAX}")
    return peer, number


@staged()
def send(member: Member, value: object, to_rank: object, tag: object, timeout_s: float) -> tuple[int, int, Prepared]:
    """The channel, the other rank, and the operation of a send."""
    peer, number = check_point(member, to_rank, tag, "to_rank")
    array = array_of(value, "array to send")
    claim = claim_of(CollectiveKind.SEND, array, timeout_s, root=member.rank)
    prepared = Prepared(claim, bytes_of(flat_of(array)), None, lambda _: None)
    return channel_number(member.rank, peer, number), peer, prepared


@staged(lambda *_: WRITTEN)
def receive(
    member: Member, value: object, from_rank: object, tag: object, timeout_s: float
) -> tuple[int, int, Prepared]:
    """As `send`. Without an array, what the operation completes with has to be read by `read_any`."""
    peer, number = check_point(member, from_rank, tag, "from_rank")
    channel = channel_number(peer, member.rank, number)
    if value is None:
        any_claim = Claim(CollectiveKind.RECEIVE, None, peer, "uint8", (0,), nanoseconds(timeout_s))
        return channel, peer, Prepared(any_claim, None, None, lambda result: result)
    array = writable_array_of(value, "array to receive into")
    into = Destination(value, "array to receive into", array.shape, array.dtype)
    claim = claim_of(CollectiveKind.SEND, array, timeout_s, root=peer)
    return channel, peer, Prepared(claim, None, bytes_of(into.flat), into.complete)


def completed(prepared: Prepared, operation: MemberOperation) -> Prepared:
    """A send or a receive that has begun, with what makes the caller's result of it."""
    if prepared.claim.kind is not CollectiveKind.RECEIVE:
        return prepared

    def read(result: memoryview) -> object:
        claim = operation.claim
        return view_tensor(TensorMeta(claim.dtype, claim.shape), np.frombuffer(result, np.uint8))

    return replace(prepared, complete=read)
