"""A client's places in collective groups: frames to the operations of `Member`, and their rounds to frames. Pure."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

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
    GroupFinishedError,
    InvalidValue,
    LimitExceeded,
    ProtocolError,
    RankBehindError,
    RankTimeoutError,
)
from broker.ids import Generation, Rank
from broker.limits_links import LINK_REPORTS_QUEUED_BYTES_MAX
from broker.protocol.bodies import CollectiveFailure, Membership, TookPart, decode_body, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane, encode
from broker.protocol.links import Decision, LinkState, Trouble
from broker.protocol.operations import Operations
from broker.protocol.session import Session
from broker.schedules import STAR
from clients.collectives.boards import Board, adopt
from clients.collectives.channels import Channels
from clients.collectives.door import Meeting
from clients.collectives.entrance import Entrance
from clients.collectives.links import Links
from clients.collectives.ways import Schedule, Way
from clients.collectives.windows import Windows
from clients.connection.signals import Signal

log = logging.getLogger(__name__)


class Place:
    """This client's membership of one group.

    Attributes:
        number: the broker's number for the group.
        member: what is known of the group.
        closed: why the place is lost, once it is.
        way: how the generation carries operations out, if not through the broker.
        schedule: what the application asks for.
        decided: ready when it is known whether the generation has a way; no operation is begun before. Each
            generation has its own.
        refused: why its first generation, or the first with links, does not go as the application asks. Members that
            leave for this reason change the generation, for those that look later.
        plain: the way, if there is nothing to be told before the next operation.
        device_bytes: how much memory of a device the member may share with the others.
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
        entrance: Entrance | None = None,
    ) -> None:
        """Args:
        session: with the broker.
        name: of the group.
        number: of the group.
        world_size: for which it was made.
        joined: what the broker has said.
        schedule: what the application asks for.
        descriptor: see Board.
        entrance: by which the client is linked with other members.
        """
        self.name = name
        self.number = number
        self.member = Member(
            name, Rank(joined.rank), world_size, Generation(joined.generation), [Rank(rank) for rank in joined.ranks]
        )
        self.channels = Channels(self.member)
        self.closed: BrokerError | None = None
        self.device_bytes = 0
        self.signals: dict[int, Signal] = {}
        self.schedule = schedule
        self._descriptor = descriptor
        self._session = session
        self._entrance = entrance
        self._attached = False
        self._regrouping: list[Signal] = []
        self._meeting: Meeting | None = None
        self._linked: Links | None = None
        self._ended: list[Links] = []
        self._unlinked = ""
        self.decided = Signal()
        self.way: Way | None = self._adopt(joined)
        self.plain: Way | None = None
        self._meet(joined)
        self.refused = self._problem() if self.decided.ready else None

    def _adopt(self, told: Membership) -> Board | None:
        """The board of a generation. If there is one that cannot be used, the broker begins another generation."""
        if not told.board:
            return None
        board = adopt(self._session.passage, told, self.member.rank, self._descriptor)
        if board is None:
            self._session.put(Frame(Kind.BOARD, lane=Lane.CONTROL, number=self.number, target=told.generation))
        return board

    # Links.

    def _meet(self, told: Membership) -> None:
        """Has links made to the others, if the broker introduces them; else it is decided how operations go."""
        self._unlinked = told.unlinked
        before, self.decided = self.decided, Signal(ready=not told.peers or self._entrance is None)
        # Who waits for the last generation is told of this one.
        before.set()
        if not told.peers or self._entrance is None:
            return
        done = partial(self._entrance.call, self._met, told)
        self._meeting = Meeting(self.number, told.generation, self.member.rank, told.peers, told.secret, done)
        self._entrance.meet(self._meeting)

    def _met(self, told: Membership, meeting: Meeting) -> None:
        """A meeting is over: the broker is told how it went."""
        if meeting is not self._meeting:
            meeting.close()
            return
        trouble = Trouble(*meeting.problem) if meeting.problem is not None else None
        if trouble is None:
            try:
                self._linked = Links(meeting.take(), told, self.member.rank, self._descriptor)
            except (InvalidValue, LimitExceeded, OSError) as error:
                trouble = Trouble(-1, str(error))
        meeting.close()
        self._tell_links(told.generation, LinkState.READY if trouble is None else LinkState.FAILED, trouble)

    def _tell_links(self, generation: int, state: int, trouble: Trouble | None) -> None:
        body = b"" if trouble is None else encode_body(trouble)
        # In the lane of LEAVE, which must not overtake it.
        frame = Frame(Kind.LINKS, lane=Lane.CONTROL, number=self.number, target=generation, count=state, body=body)
        self._session.put(frame)

    def links_decided(self, frame: Frame) -> None:
        """LINKS: the broker has decided how a generation's operations go."""
        told = decode_body(frame.body, Decision)
        if frame.target != self.member.generation:
            return
        links, self._linked = self._linked, None
        self._end_meeting()
        if told.schedule != STAR:
            if links is None:
                raise ProtocolError(f"schedule {told.schedule} for links that are not made")
            links.decided(told)
            self.way = links
        else:
            self._unlinked = told.cause
            log.warning("links.none group=%r generation=%d cause=%s", self.name, frame.target, told.cause)
            if links is not None:
                links.close()
            self.refused = self.refused or self._problem()
        self.decided.set()

    def _end_meeting(self) -> None:
        meeting, self._meeting = self._meeting, None
        if meeting is not None and self._entrance is not None:
            self._entrance.cancel(meeting)

    def links_broke(self, links: Links) -> None:
        """An operation has found links broken: the broker is to begin another generation, unless it has."""
        if self.closed is None and links is self.way:
            self._tell_links(links.generation, LinkState.BROKEN, Trouble(-1, "an operation found its links broken"))

    def report(self) -> None:
        """Says what was finished over links that are ended, as soon as that is certain."""
        for links in self._ended if self.closed is None else ():
            last = None if links.reported else links.last_committed
            if last is not None:
                links.reported = True
                self._put_operations(links, links.reporter.last())
                frame = Frame(Kind.COMMITTED, lane=Lane.CONTROL, number=self.number, target=links.generation)
                frame.sequence = last
                self._session.put(frame)

    def tell_operations(self, now_ns: int | None) -> None:
        """Tells the broker what this member is at over its links, if something is new and it is time (None: it is)."""
        crowded = self._session.outbox.control_bytes > LINK_REPORTS_QUEUED_BYTES_MAX
        if isinstance(self.way, Links) and not crowded:
            reporter = self.way.reporter
            self._put_operations(self.way, reporter.last() if now_ns is None else reporter.report(now_ns))

    def _put_operations(self, links: Links, told: tuple[int, Operations] | None) -> None:
        if told is not None:
            frame = Frame(Kind.OPERATIONS, lane=Lane.CONTROL, number=self.number, target=links.generation)
            frame.time_ns, frame.body = told[0], encode_body(told[1])
            self._session.put(frame)

    def judged(self, frame: Frame) -> None:
        """COMMITTED: what any member has finished over links that are ended."""
        for links in [links for links in self._ended if links.generation == frame.target]:
            links.judge(frame.sequence)
            self._ended.remove(links)

    def farewell(self) -> None:
        """This member is about to go in order: it says what it has finished."""
        if isinstance(self.way, Links):
            links, self.way, self.plain = self.way, None, None
            links.end(ConnectionClosed(f"this member is leaving group {self.name!r}"))
            self._ended.append(links)
        self.report()

    # Operations.

    @property
    def windows(self) -> Windows | None:
        """The arrays that the members share, if they have a board."""
        return self.way.windows if isinstance(self.way, Board) else None

    @property
    def device_board(self) -> Board | None:
        """Where the members agree on what they do in the memory of devices, if they can."""
        return self.way if self.device_bytes and isinstance(self.way, Board) else None

    @property
    def used_schedule(self) -> str:
        """How operations go; of links on which each takes the quicker way, the one that long arrays take."""
        return STAR if self.way is None else self.way.used

    def check_schedule(self) -> None:
        """Raises:
        CollectiveError: the application wants a way that there is not.
        """
        problem = self._problem()
        if problem is not None:
            raise problem

    def _problem(self) -> CollectiveError | None:
        if self.way is not None and self.way.generation == self.member.generation:
            return None
        if self.schedule is Schedule.SHM:
            return CollectiveError(
                self.name,
                "schedule='shm' needs all ranks on the broker's host, connected over a Unix-domain socket, with shared "
                "memory and the compiled modules; use schedule='auto'",
            )
        if self.schedule.linked and len(self.member.ranks) > 1:
            return CollectiveError(
                self.name,
                f"schedule='{self.schedule}' needs all ranks to have the compiled modules, to ask for it or for "
                f"'auto', and to reach one another: {self._unlinked or 'they have no links'}; use schedule='auto'",
            )
        return None

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
        self._end_way(change)
        self.way = self._adopt(body)
        self._meet(body)
        self._regrouped()
        points = self.channels.changed(lambda member: member.closed(change))
        self._over((*pending, *points))
        self.attach()

    def finished(self) -> None:
        """FINISHED: the others had finished when this client became a member, so it leaves."""
        self.farewell()
        self._session.put(Frame(Kind.LEAVE, lane=Lane.CONTROL, number=self.number))
        self.close(GroupFinishedError(self.name))

    def close(self, error: BrokerError) -> None:
        """The place is lost, with the connection or by leaving."""
        if self.closed is None:
            self.closed = error
        way = self.way
        self._end_way(error)
        for each in (*self._ended, *((way,) if way is not None else ())):
            each.close()
        self._ended.clear()
        self.decided.set()
        pending = self.member.pending
        self.member.closed(error)
        points = self.channels.changed(lambda member: member.closed(error))
        self._regrouped()
        self._over((*pending, *points))

    def _end_way(self, error: BrokerError) -> None:
        """The generation is over, for a reason."""
        self._end_meeting()
        links, self._linked = self._linked, None
        if links is not None:
            links.close()
        way, self.way, self.plain = self.way, None, None
        if way is not None:
            way.end(error)
        if isinstance(way, Links):
            self._ended.append(way)
            self.report()

    def _over(self, operations: tuple[MemberOperation, ...] | list[MemberOperation]) -> None:
        for operation in operations:
            if operation.done:
                signal = self.signals.pop(id(operation), None)
                if signal is not None:
                    signal.set()


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
    if body.finished:
        return GroupFinishedError(group)
    return CollectiveError(group, body.text)
