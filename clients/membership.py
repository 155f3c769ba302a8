"""A client's places in collective groups: frames to the operations of `Member`, and their rounds to frames. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from broker.buffers import Buffer
from broker.collectives.claims import Claim
from broker.collectives.member import Member, MemberOperation, Participation
from broker.errors import (
    BrokerError,
    CollectiveAbortedError,
    CollectiveError,
    CollectiveMismatchError,
    ConnectionClosed,
    InvalidValue,
    ProtocolError,
    RankBehindError,
    RankTimeoutError,
)
from broker.ids import Generation, Rank
from broker.protocol.bodies import CollectiveFailure, Membership, TookPart, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane, encode, kind_name
from broker.protocol.session import Session
from clients.boards import Board, Schedule, adopt, discard
from clients.channels import Channels
from clients.signals import Pending, Signal


class Place:
    """This client's membership of one group.

    Attributes:
        number: the broker's number for the group.
        member: what is known of the group.
        closed: why the place is lost, once it is.
        board: of the generation, if it has one.
        schedule: what the application asks for.
        plain: the board, if there is nothing to be told before the next operation.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        number: int,
        world_size: int,
        joined: Membership,
        schedule: Schedule = Schedule.AUTO,
        descriptor: int = -1,
    ) -> None:
        """Args:
        session: with the broker.
        name: of the group.
        number: of the group.
        world_size: for which it was made.
        joined: what the broker has said.
        schedule: what the application asks for.
        descriptor: see Board.
        """
        self.name = name
        self.number = number
        self.member = Member(
            name, Rank(joined.rank), world_size, Generation(joined.generation), [Rank(rank) for rank in joined.ranks]
        )
        self.channels = Channels(self.member)
        self.closed: BrokerError | None = None
        self.signals: dict[int, Signal] = {}
        self.schedule = schedule
        self._descriptor = descriptor
        self._session = session
        self._attached = False
        self._regrouping: list[Signal] = []
        self.board = self._adopt(joined)
        self.plain: Board | None = None

    def _adopt(self, told: Membership) -> Board | None:
        """The board of a generation. If there is one that cannot be used, the broker begins another generation."""
        if not told.board:
            return None
        board = adopt(self._session.passage, told, self.member.rank, self._descriptor)
        if board is None:
            self._session.put(Frame(Kind.BOARD, number=self.number, target=told.generation))
        return board

    def check_schedule(self) -> None:
        """Raises:
        CollectiveError: the application wants a board, and there is none.
        """
        if self.schedule is Schedule.SHM and (self.board is None or self.board.generation != self.member.generation):
            raise CollectiveError(
                self.name,
                "schedule='shm' needs all ranks on the broker's host, connected over a Unix-domain socket, with shared "
                "memory and the compiled modules; use schedule='auto'",
            )

    def start(
        self,
        claim: Claim,
        contribution: memoryview | None,
        target: memoryview | None,
        priority: int = 0,
        member: Member | None = None,
    ) -> tuple[MemberOperation, Signal]:
        """Starts an operation, of all ranks or of one's end of a channel; the signal becomes ready when it is done.

        Raises:
            InvalidValue: the claim cannot be.
            GenerationChangedError: the members have changed since the last call.
            BrokerError: the place is lost.
        """
        if self.closed is not None:
            raise self.closed.again()
        # Here, where a fault is the caller's: once the operation is pending, every rank waits for it.
        msgspec.msgpack.encode(claim)
        operation = (member or self.member).start(claim, contribution, target, priority)
        signal = self.signals[id(operation)] = Signal()
        self.attach()
        return operation, signal

    def regroup(self) -> Signal:
        """Asks for another generation of the same members; the signal is ready when one has begun, or never will.

        Raises:
            BrokerError: the place is lost.
        """
        if self.closed is not None:
            raise self.closed.again()
        self._session.put(Frame(Kind.REGROUP, number=self.number, target=self.member.generation))
        self._regrouping.append(Signal())
        return self._regrouping[-1]

    def _regrouped(self) -> None:
        regrouping, self._regrouping = self._regrouping, []
        for signal in regrouping:
            signal.set()

    def give_up(self, operations: Sequence[MemberOperation]) -> bool:
        """Has operations fail on all ranks, unless they have ended; says whether there was one to ask that for."""
        found = False
        for operation in operations:
            if operation.done or self.closed is not None:
                continue
            found = operation.given_up = True
            if operation.opened:
                self._put_give_up(operation)
        return found

    def _put_give_up(self, operation: MemberOperation) -> None:
        """Behind the claim, which has been pulled, and before all chunks that have not."""
        self._session.put(
            Frame(
                Kind.GIVE_UP, lane=Lane.CONTROL, number=self.number, target=self.member.generation,
                sequence=operation.sequence, time_ns=operation.channel,
            )
        )  # fmt: skip

    def attach(self) -> None:
        """Asks the outbox to pull rounds."""
        if not self._attached:
            self._attached = True
            self._session.attach(self, Lane.DEFAULT)

    def pull(self, buffers: list[Buffer]) -> int:
        """Appends one CONTRIBUTE frame; see Source."""
        next_round = self.member.next_round() or self.channels.next_round()
        if next_round is None:
            self._attached = False
            return 0
        operation, (number, payload, claim) = next_round
        body = msgspec.msgpack.encode(claim) if claim is not None else b""
        frame = Frame(
            Kind.CONTRIBUTE, number=self.number, target=self.member.generation, sequence=operation.sequence,
            stream=number, time_ns=operation.channel, body=body, payload=payload,
        )  # fmt: skip
        if operation.given_up and not number:
            self._put_give_up(operation)
        return encode(frame, buffers)

    def find(self, frame: Frame) -> MemberOperation | None:
        """The operation that a frame belongs to, unless it is over."""
        if frame.target != self.member.generation:
            return None
        member = self.channels.members.get(frame.time_ns) if frame.time_ns else self.member
        for operation in member.pending if member is not None else ():
            if operation.sequence == frame.sequence:
                return operation
        return None

    def result(self, frame: Frame) -> None:
        """RESULT: a chunk of a result."""
        operation = self.find(frame)
        if operation is None:
            return
        placed = isinstance(frame.payload, memoryview)
        if frame.body and not placed:
            agree(operation, frame)
        operation.result(
            frame.stream, frame.count, None if placed else frame.payload, last=bool(frame.flags & Flag.LAST)
        )
        self._over([operation])
        self.attach()

    def took_part(self, frame: Frame) -> None:
        """TOOK_PART: who is in the result that follows."""
        operation = self.find(frame)
        if operation is not None:
            told = decode_body(frame.body, TookPart)
            ranks, carried = (tuple(Rank(rank) for rank in each) for each in (told.ranks, told.carried))
            operation.took_part(Participation(ranks, carried, frame.count))

    def failed(self, frame: Frame) -> None:
        """FAILED: an operation has failed on every rank."""
        operation = self.find(frame)
        if operation is None:
            return
        operation.failed(failure_error(self.name, frame))
        self._over([operation])
        self.attach()

    def membership_changed(self, frame: Frame) -> None:
        """CHANGED: the group has a new generation."""
        body = decode_body(frame.body, Membership)
        pending = self.member.pending
        change = self.member.changed(
            Generation(body.generation), [Rank(rank) for rank in body.lost_ranks], [Rank(rank) for rank in body.ranks]
        )
        board, self.board, self.plain = self.board, self._adopt(body), None
        if board is not None:
            board.end(change)
        self._regrouped()
        points = self.channels.changed(lambda member: member.closed(change))
        self._over((*pending, *points))
        self.attach()

    def close(self, error: BrokerError) -> None:
        """The place is lost, with the connection or by leaving."""
        if self.closed is None:
            self.closed = error
        board, self.board, self.plain = self.board, None, None
        if board is not None:
            board.engine.close()
            board.end(error)
        pending = self.member.pending
        self.member.closed(error)
        points = self.channels.changed(lambda member: member.closed(error))
        self._regrouped()
        self._over((*pending, *points))

    def _over(self, operations: tuple[MemberOperation, ...] | list[MemberOperation]) -> None:
        for operation in operations:
            if operation.done:
                signal = self.signals.pop(id(operation), None)
                if signal is not None:
                    signal.set()


class PendingJoin(Pending):
    """A wish to be a member of a group; the place is taken in the moment in which the answer comes."""

    __slots__ = ("_descriptor", "place", "schedule", "world_size")

    def __init__(self, group: str, world_size: int, schedule: Schedule, descriptor: int) -> None:
        super().__init__(group)
        self.world_size = world_size
        self.schedule = schedule
        self._descriptor = descriptor
        self.place: Place | None = None

    def seat(self, session: Session, places: Places, frame: Frame) -> None:
        """Takes the place that JOINED gives."""
        told = decode_body(frame.body, Membership)
        place = Place(session, self.what, frame.number, self.world_size, told, self.schedule, self._descriptor)
        self.place = places.by_number[frame.number] = place


def turn_down(session: Session, frame: Frame) -> None:
    """JOINED has come, and whoever asked has given up: the group shall not wait for a member that never calls."""
    told = decode_body(frame.body, Membership)
    discard(session.passage, told)
    session.put(Frame(Kind.LEAVE, number=frame.number))


def agree(operation: MemberOperation, frame: Frame) -> None:
    """RESULT with a body: what a receive that takes whatever comes will get."""
    try:
        claim = msgspec.msgpack.decode(frame.body, type=Claim)
        operation.agree(claim)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, InvalidValue) as error:
        raise ProtocolError(f"malformed claim in a RESULT: {error}") from error


def failure_error(group: str, frame: Frame) -> CollectiveError:
    """The error of a FAILED frame."""
    body = decode_body(frame.body, CollectiveFailure)
    if body.gave_up is not None:
        return CollectiveAbortedError(group, frame.sequence, body.gave_up)
    if body.claims is not None:
        return CollectiveMismatchError(group, frame.sequence, body.claims)
    if body.missing_ranks is not None:
        return RankTimeoutError(group, frame.sequence, body.missing_ranks, body.timeout_s)
    if body.missed is not None:
        return RankBehindError(group, frame.sequence, body.missed)
    return CollectiveError(group, body.text)


class Places:
    """All groups of one client."""

    def __init__(self) -> None:
        self.by_number: dict[int, Place] = {}

    def destination(self, frame: Frame, size_bytes: int) -> memoryview | None:
        """Where the payload of a RESULT belongs, or None when its operation is over."""
        place = self.by_number.get(frame.number)
        operation = place.find(frame) if place is not None else None
        if operation is not None and frame.body:
            agree(operation, frame)
        return operation.destination(frame.stream, frame.count, size_bytes) if operation is not None else None

    def receive(self, session: Session, frame: Frame) -> None:
        """RESULT, TOOK_PART, FAILED or CHANGED."""
        place = self.by_number.get(frame.number)
        # Frames can be on their way when a member leaves.
        if place is None:
            if frame.kind == Kind.CHANGED:
                discard(session.passage, decode_body(frame.body, Membership))
            return
        if frame.kind == Kind.RESULT:
            place.result(frame)
        elif frame.kind == Kind.TOOK_PART:
            place.took_part(frame)
        elif frame.kind == Kind.FAILED:
            place.failed(frame)
        elif frame.kind == Kind.CHANGED:
            place.membership_changed(frame)
        else:
            raise ProtocolError(f"a {kind_name(frame.kind)} frame for a group")

    def disconnected(self, error: ConnectionClosed) -> None:
        """The session is over, and with it every membership."""
        for place in self.by_number.values():
            place.close(error)
        self.by_number.clear()
