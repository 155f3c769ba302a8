"""Collective groups on the wire: frames to events of `broker.collectives`, and effects back to frames.

All frames of groups travel in the default lane, so that a session sees them in the order of the effects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import count

import msgspec

from broker.collectives.claims import Claim
from broker.collectives.effects import (
    Behind,
    Changed,
    Dissolved,
    Effect,
    Failed,
    Finished,
    GivenUp,
    Joined,
    Lagging,
    Mismatch,
    RefusalKind,
    Refused,
    Result,
    TookPart,
    Wake,
)
from broker.collectives.group import Group
from broker.collectives.late import LateTotals
from broker.collectives.recorder import Recorded
from broker.collectives.snapshots import GroupSnapshot
from broker.errors import InvalidValue, PermissionDenied, ProtocolError
from broker.ids import GroupNumber, SessionId
from broker.limits import FAILURES_OF_GONE_GROUPS, GROUPS_MAX, NAME_BYTES_MAX, STANDS_STILL_NS
from broker.protocol import bodies
from broker.protocol.bodies import CollectiveFailure, Failure, Join, Membership, decode_body, encode_body
from broker.protocol.codes import Code, failure_of
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.security.roles import Verb
from broker.state.authority import Authority
from broker.state.boards import BoardMaker, Boards
from broker.state.link_watches import LinkWatches
from broker.state.links import Links
from broker.state.observing import Observing
from broker.state.records import SessionRecord
from broker.state.reports import Reports
from broker.topics.names import check_topic


class Groups:
    """All groups of the broker.

    Attributes:
        reports: what was said of each group without being asked.
        observing: how long their operations took.
        gone_failures: the last failures of groups that are gone, oldest first.
        wake: is told when `end_due` has to be called, for a deadline that cannot wait for the next regular tick.
    """

    def __init__(
        self,
        flush: Callable[[SessionRecord], None],
        announce: Callable[[str, object], None],
        maker: BoardMaker | None = None,
        authority: Authority | None = None,
        numbers: Iterator[int] | None = None,
        observing: Observing | None = None,
    ) -> None:
        """Args:
        flush: called with a session that has something to send.
        announce: publishes an event.
        maker: of boards.
        authority: says who may join; None lets everybody.
        numbers: of groups, that no other group of the broker has.
        observing: of the groups of all tenants together.
        """
        self.by_number: dict[GroupNumber, Group] = {}
        self.gone_failures: deque[Recorded] = deque(maxlen=FAILURES_OF_GONE_GROUPS)
        self._by_name: dict[str, Group] = {}
        self._sessions: dict[SessionId, SessionRecord] = {}
        self._references: dict[tuple[GroupNumber, SessionId], int] = {}
        self._flush = flush
        self._announce = announce
        self._boards = Boards(maker)
        self._authority = authority
        self.reports = Reports(announce)
        self.observing = Observing() if observing is None else observing
        self._numbers = count(1) if numbers is None else numbers
        self.wake: Callable[[int], None] = lambda at_ns: None
        self._late_totals = LateTotals()
        self._links = Links(self._send, self._accuse)
        self._watches = LinkWatches(self._links)
        self.handlers: dict[int, Callable[[SessionRecord, Frame, int], None]] = {
            Kind.JOIN: self.join,
            Kind.LEAVE: self.leave,
            Kind.CONTRIBUTE: self.contribute,
            Kind.BOARD: self.board_refused,
            Kind.LINKS: self.links_told,
            Kind.COMMITTED: self.committed,
            Kind.OPERATIONS: self.operations,
            Kind.REGROUP: self.regroup,
            Kind.GIVE_UP: self.give_up,
            Kind.FINISHED: self.finished,
        }

    @property
    def late_totals(self) -> LateTotals:
        """What has become of late contributions, also in groups that are gone."""
        totals = LateTotals()
        totals.add(self._late_totals)
        for group in self.by_number.values():
            totals.add(group.late_totals)
        return totals

    def join(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """JOIN: a session wants to be a member."""
        wish = decode_body(frame.body, Join)
        if not wish.group or len(wish.group.encode()) > NAME_BYTES_MAX:
            problem = Failure(Code.INVALID, f"a group's name has 1 to {NAME_BYTES_MAX} bytes")
            self._refuse(session, frame.target, problem)
            return
        try:
            # What happens in it is published there, for who reads all groups too.
            check_topic(_topic_of(wish.group), reserved=True)
            if self._authority is not None:
                self._authority.authorize(session, Verb.JOIN, wish.group)
        except (InvalidValue, PermissionDenied) as error:
            self._refuse(session, frame.target, failure_of(error))
            return
        self._boards.now_ns = now_ns
        group = self._by_name.get(wish.group)
        if group is None:
            group_or_problem = self._create(wish, now_ns)
            if isinstance(group_or_problem, str):
                self._refuse(session, frame.target, Failure(Code.INVALID, group_or_problem))
                return
            group = group_or_problem
        key = group.number, session.id
        waiting = self._references.get(key)
        self._references[key] = frame.target
        self._sessions[session.id] = session
        session.groups.add(group.name)
        if waiting is None and session.id not in group.sessions:
            self._boards.wished(group, session, wish.board)
            self._links.wished(group, session.id, wish.links)
        self._carry_out(group, group.join(session.id, wish.rank, wish.world_size, wish.timeout_ns, now_ns))
        if waiting is not None:
            # The session has a place by its first JOIN, or waits for one; this second one was refused.
            self._references[key] = waiting

    def _create(self, wish: Join, now_ns: int) -> Group | str:
        if len(self.by_number) >= GROUPS_MAX:
            return f"groups_max: over the limit of {GROUPS_MAX}"
        try:
            group = Group(wish.group, GroupNumber(next(self._numbers)), wish.world_size, now_ns)
        except InvalidValue as error:
            return str(error)
        self.by_number[group.number] = group
        self._by_name[group.name] = group
        return group

    def leave(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """LEAVE: a member goes in order, or takes a JOIN back, whatever has come of that by now."""
        group = self._member_of(session, frame) if frame.number else self._joined_by(session, frame.sequence)
        session.session.put(Frame(Kind.DONE, target=frame.target))
        self._flush(session)
        if group is None:
            return
        session.groups.discard(group.name)
        self._references.pop((group.number, session.id), None)
        self._left(group, session.id)
        self._carry_out(group, group.leave(session.id))

    def _joined_by(self, session: SessionRecord, reference: int) -> Group | None:
        """The group in which a JOIN has a place, or waits for one; None when it was refused."""
        groups = (self._by_name[name] for name in session.groups)
        return next((group for group in groups if self._references.get((group.number, session.id)) == reference), None)

    def board_refused(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """BOARD: a member cannot use its generation's board; there will be another generation, which has none."""
        group = self._member_of(session, frame)
        self._boards.refused(group, session)
        if frame.target == group.generation and session.id in group.sessions:
            self._carry_out(group, group.renew())

    def regroup(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """REGROUP: a member cannot go on in this generation; there will be another one of the same members."""
        group = self._member_of(session, frame)
        if frame.target == group.generation and session.id in group.sessions:
            self._carry_out(group, group.renew())

    def finished(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """FINISHED: the members have done what the group is for, or go on after all."""
        group = self._member_of(session, frame)
        effects = group.finish(session.id, frame.sequence)
        session.session.put(Frame(Kind.DONE, target=frame.target))
        self._flush(session)
        self._carry_out(group, effects)

    def links_told(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """LINKS: a member has its links to the others, or has not."""
        self._links.told(self._member_of(session, frame), session.id, frame)

    def committed(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """COMMITTED: what a member has finished over its links."""
        self._links.committed(self._member_of(session, frame), session.id, frame)

    def operations(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """OPERATIONS: what a member is at, over its links."""
        self._watches.told(self._member_of(session, frame), session.id, frame, now_ns)

    def contribute(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """CONTRIBUTE: a chunk of a member's array."""
        group = self._member_of(session, frame)
        claim = None
        if frame.body:
            try:
                claim = msgspec.msgpack.decode(frame.body, type=Claim)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
                raise ProtocolError(f"malformed claim: {error}") from error
        effects = group.contribute(
            session.id, frame.target, frame.sequence, frame.stream, claim, frame.payload, now_ns, frame.time_ns
        )
        self._carry_out(group, effects)

    def give_up(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """GIVE_UP: a member's program cancels an operation."""
        group = self._member_of(session, frame)
        self._carry_out(group, group.give_up(session.id, frame.target, frame.sequence, frame.time_ns, now_ns))

    def _member_of(self, session: SessionRecord, frame: Frame) -> Group:
        group = self.by_number.get(GroupNumber(frame.number))
        if group is None or group.name not in session.groups:
            raise ProtocolError(
                f"{Kind(frame.kind).name} for group number {frame.number}, which this session has not joined"
            )
        return group

    def disconnect(self, session: SessionRecord) -> None:
        """A session is over: its groups lose a member."""
        for name in list(session.groups):
            group = self._by_name[name]
            self._left(group, session.id)
            self._carry_out(group, group.lost(session.id))
            self._references.pop((group.number, session.id), None)
        self._sessions.pop(session.id, None)

    def tick(self, now_ns: int) -> None:
        """Time passes: deadlines."""
        for group in list(self.by_number.values()):
            self._carry_out(group, group.tick(now_ns))
            self.look(group, now_ns)
            self.reports.look(group, partial(self.snapshot, group, now_ns), now_ns)
        for group in self._links.tick(list(self.by_number.values()), now_ns):
            self._carry_out(group, group.renew())

    def look(self, group: Group, now_ns: int) -> None:
        """Observes what has ended in a group since the last time."""
        self._boards.look(group, now_ns)
        self._watches.look(group, now_ns)
        self.observing.look(group)

    def problem(self, group: Group) -> str:
        """Why the members of a group reduce by no quicker way; nothing when they share a board."""
        unshared = self._boards.problem(group)
        unlinked = self._links.problem(group) if unshared else ""
        found = [f"no board: {unshared}" if unshared else "", f"no links: {unlinked}" if unlinked else ""]
        return "; ".join(filter(None, found))

    def snapshot(self, group: Group, now_ns: int) -> GroupSnapshot:
        """The state of a group at this moment, for people."""
        return self._watches.shown(group, self._boards.snapshot(group, now_ns), now_ns)

    def standing_still(self, now_ns: int) -> list[SessionRecord]:
        """The members of groups in which an operation has not moved for STANDS_STILL_NS, as of the last tick."""
        return [
            self._sessions[session]
            for group in self.by_number.values()
            if self._still_ns(group, now_ns) >= STANDS_STILL_NS
            for session in group.sessions
        ]

    def _still_ns(self, group: Group, now_ns: int) -> int:
        watches = self._boards, self._watches
        return max(group.still_ns(now_ns), *(each.still_ns(group, now_ns) for each in watches))

    def end_due(self, now_ns: int) -> None:
        """As tick, but only for groups in which a deadline is over."""
        for group in list(self.by_number.values()):
            deadline_ns = group.next_deadline_ns
            if deadline_ns is not None and deadline_ns <= now_ns:
                self._carry_out(group, group.tick(now_ns))

    def _left(self, group: Group, session: SessionId) -> None:
        """A session is not a member any more."""
        self._boards.left(group, session)
        self._links.left(group, session)

    def _send(self, session: SessionId, frame: Frame) -> None:
        record = self._sessions.get(session)
        if record is not None:
            record.session.put(frame)
            self._flush(record)

    def _accuse(self, session: SessionId, fault: str) -> None:
        record = self._sessions.get(session)
        if record is not None:
            record.session.fail(ProtocolError(fault))
            self._flush(record)

    def _carry_out(self, group: Group, effects: Iterable[Effect]) -> None:
        told_generation = 0
        effects = list(effects)
        self._boards.follow(group, effects)
        self._links.follow(group, has_board=self._boards.has(group.number))
        self._watches.follow(group)
        for effect in effects:
            if isinstance(effect, Changed) and effect.generation > told_generation:
                told_generation = effect.generation
                for rank in effect.lost_ranks:
                    self._tell(group, "lost", rank)
            if isinstance(effect, Result):
                self._result(group, effect)
            elif isinstance(effect, Wake):
                self.wake(effect.at_ns)
            elif isinstance(effect, Lagging):
                self._tell(group, "late", effect.rank)
            elif isinstance(effect, Dissolved):
                self._tell(group, "dissolved", -1)
                self._boards.dissolved(group.number)
                self.reports.forget(group.number)
                self._watches.dissolved(group)
                self.observing.dissolved(group)
                self._late_totals.add(group.late_totals)
                self._links.dissolved(group.number)
                self.by_number.pop(group.number, None)
                self._by_name.pop(group.name, None)
                if group.recorder.last_failure is not None:
                    self.gone_failures.append(group.recorder.last_failure)
            else:
                session = self._sessions.get(effect.session)
                if session is not None:
                    self._notice(group, session, effect)
                    self._flush(session)

    def _result(self, group: Group, effect: Result) -> None:
        session = self._sessions.get(effect.session)
        if session is None:
            return
        session.session.put(
            Frame(
                Kind.RESULT, Flag.LAST if effect.last else 0, number=group.number, target=effect.generation,
                stream=effect.round, count=effect.position, sequence=effect.sequence, time_ns=effect.channel,
                body=b"" if effect.claim is None else msgspec.msgpack.encode(effect.claim), payload=effect.payload,
            )
        )  # fmt: skip
        self._flush(session)

    def _notice(
        self, group: Group, session: SessionRecord, effect: Joined | Refused | Failed | Changed | Finished | TookPart
    ) -> None:
        number = group.number
        if isinstance(effect, Joined):
            reference = self._references[number, session.id]
            told = self._give(group, session, Membership(effect.generation, list(effect.ranks), effect.rank))
            session.session.put(Frame(Kind.JOINED, number=number, target=reference, body=encode_body(told)))
            self._tell(group, "joined", effect.rank)
        elif isinstance(effect, Refused):
            reference = self._references.pop((number, session.id), 0)
            if effect.kind is not RefusalKind.ALREADY_MEMBER:
                session.groups.discard(group.name)
                self._left(group, session.id)
            if effect.kind is RefusalKind.TIMEOUT:
                failure = CollectiveFailure(missing_ranks=list(effect.missing_ranks), timeout_s=effect.timeout_s)
                session.session.put(Frame(Kind.FAILED, target=reference, body=encode_body(failure)))
            elif effect.kind is RefusalKind.FINISHED:
                failure = CollectiveFailure(finished=True)
                session.session.put(Frame(Kind.FAILED, target=reference, body=encode_body(failure)))
            else:
                self._refuse(session, reference, Failure(Code.COLLECTIVE, effect.text))
        elif isinstance(effect, Failed):
            session.session.put(
                Frame(
                    Kind.FAILED, number=number, target=effect.generation, sequence=effect.sequence,
                    time_ns=effect.channel, body=encode_body(_told(effect)),
                )
            )  # fmt: skip
        elif isinstance(effect, Finished):
            session.session.put(Frame(Kind.FINISHED, number=number))
        elif isinstance(effect, TookPart):
            took_part = bodies.TookPart(list(effect.ranks), list(effect.carried))
            session.session.put(
                Frame(
                    Kind.TOOK_PART, number=number, target=effect.generation, count=effect.behind,
                    sequence=effect.sequence, body=encode_body(took_part),
                )
            )  # fmt: skip
        else:
            told = Membership(effect.generation, list(effect.ranks), lost_ranks=list(effect.lost_ranks))
            body = encode_body(self._give(group, session, told))
            session.session.put(Frame(Kind.CHANGED, number=number, target=effect.generation, body=body))

    def _give(self, group: Group, session: SessionRecord, told: Membership) -> Membership:
        return self._links.give(group, self._boards.give(group, session, told))

    def _tell(self, group: Group, event: str, rank: int) -> None:
        told: dict[str, object] = {
            "event": event,
            "group": group.name,
            "rank": rank,
            "generation": group.generation,
            "ranks": list(group.ranks),
        }
        if event == "late":
            told |= {"late": asdict(group.late_totals)}
        self._announce(_topic_of(group.name), told)

    def _refuse(self, session: SessionRecord, reference: int, failure: Failure) -> None:
        session.session.put(Frame(Kind.ERROR, lane=Lane.CONTROL, target=reference, body=encode_body(failure)))
        self._flush(session)


def _topic_of(group: str) -> str:
    """Where the events of a group are published."""
    return f"$sys/groups/{group}"


def _told(effect: Failed) -> CollectiveFailure:
    """Why an operation has failed, as it travels."""
    failure = effect.failure
    if isinstance(failure, Mismatch):
        return CollectiveFailure(claims=dict(failure.claims))
    if isinstance(failure, Behind):
        return CollectiveFailure(missed=failure.missed)
    if isinstance(failure, GivenUp):
        return CollectiveFailure(gave_up=failure.rank)
    return CollectiveFailure(missing_ranks=list(failure.ranks), timeout_s=failure.timeout_s)
