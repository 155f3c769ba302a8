"""The links between the members of groups: the broker introduces them to one another, and watches (docs/wire.md
section 15).

A generation whose members can all be linked, and have no board, begins with a meeting. Nothing is carried out before
the broker has decided, and it decides once, so that all members take the same way:

                  all are ready                        the next generation
    MEETING ------------------------> LINKED -----------------------------> ended: each member says what it has
       |                                |                                    finished, and gets the verdict
       | one has failed, or            | a member has lost a link, and nobody is gone
       | the time is over              v
       v                            another generation of the same members
     STAR

What a generation has finished, only its members know. One whose links break in the last moment of an operation may not
know whether the others have finished it. So when a LINKED generation has ended, each member that is left says which
operation was the last that it has finished, and when all have, each is told the highest.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from broker.collectives.group import Group
from broker.errors import InvalidValue
from broker.ids import Generation, GroupNumber, Rank, SessionId
from broker.limits_links import (
    LINK_BREAKS_MAX,
    LINK_GRACE_S,
    LINK_MEETING_S,
    LINK_REPORT_S,
    LINK_REPORTS_OWED_MAX,
    LINKED_RANKS_MAX,
)
from broker.protocol.bodies import Membership, decode_body, encode_body
from broker.protocol.frames import Frame, Kind
from broker.protocol.links import (
    Decision,
    LinkState,
    Peer,
    Reach,
    Trouble,
    check_reach,
    generation_secret,
    host_name,
)
from broker.schedules import AUTO, STAR

log = logging.getLogger(__name__)

_CAUSE_LETTERS_MAX = 200
"""How much of what a member says of its trouble is passed on."""


class _Phase(Enum):
    MEETING = "meeting"
    LINKED = "linked"
    STAR = "star"


@dataclass(slots=True)
class _Part:
    """A generation whose members were introduced.

    Attributes:
        ranks: of its members.
        owing: those that have not said what they have finished.
        committed: the last operation that any of those who have said so has finished.
        deadline_ns: when something is to be decided; 0 when that is yet to be reckoned.
        trouble: a member has lost a link.
    """

    generation: Generation
    ranks: dict[SessionId, Rank]
    schedule: str
    secret: bytes
    owing: set[SessionId]
    phase: _Phase = _Phase.MEETING
    ready: set[SessionId] = field(default_factory=set)
    committed: int = 0
    deadline_ns: int = 0
    trouble: str = ""


class Linked(NamedTuple):
    """A generation whose operations go over links: by which schedule, who its members are, and on which hosts."""

    generation: Generation
    schedule: str
    ranks: Mapping[SessionId, Rank]
    hosts: Sequence[str]


@dataclass(slots=True)
class _GroupLinks:
    """What is known of one group.

    Attributes:
        apart: pairs that could not reach one another.
        breaks: generations in a row of the same members that were lost with a link and have finished nothing.
        ended: generations whose verdict is yet to come.
    """

    reaches: dict[SessionId, Reach] = field(default_factory=dict)
    generation: int = 0
    members: tuple[SessionId, ...] = ()
    part: _Part | None = None
    apart: set[frozenset[SessionId]] = field(default_factory=set)
    breaks: int = 0
    ended: deque[_Part] = field(default_factory=deque)
    unlinked: str = ""


class Links:
    """The links of each group, of those whose members can have some."""

    def __init__(self, send: Callable[[SessionId, Frame], None], accuse: Callable[[SessionId, str], None]) -> None:
        """Args:
        send: sends a frame to a session.
        accuse: ends a session that does not keep to the protocol.
        """
        self._groups: dict[GroupNumber, _GroupLinks] = {}
        self._send = send
        self._accuse = accuse

    def wished(self, group: Group, session: SessionId, reach: Reach | None) -> None:
        """A session wants to be a member, and says how it can be reached."""
        if reach is None:
            return
        try:
            check_reach(reach)
        except InvalidValue as error:
            log.warning("links.refused group=%r session=%d cause=%s", group.name, session, error)
            return
        self._groups.setdefault(group.number, _GroupLinks()).reaches[session] = reach

    def left(self, group: Group, session: SessionId) -> None:
        """A session is not a member any more, and says no more."""
        links = self._groups.get(group.number)
        if links is None:
            return
        links.reaches.pop(session, None)
        links.apart = {pair for pair in links.apart if session not in pair}
        if links.part is not None:
            links.part.owing.discard(session)
        for part in links.ended:
            part.owing.discard(session)
        self._judge(group.number, links)

    def dissolved(self, number: GroupNumber) -> None:
        """A group is no more."""
        self._groups.pop(number, None)

    def follow(self, group: Group, *, has_board: bool) -> None:
        """Something has happened in a group: if that has begun a generation, its members are to be introduced."""
        links = self._groups.get(group.number)
        if links is None or links.generation == group.generation:
            return
        links.generation, members = group.generation, group.sessions
        ended, links.part = links.part, None
        if ended is not None and ended.phase is _Phase.LINKED:
            links.ended.append(ended)
            self._judge(group.number, links)
            self._press(links)
        if links.members != members:
            links.members, links.breaks = members, 0
        links.unlinked = "" if has_board else self._problem(links, members)
        if has_board or links.unlinked or len(members) < 2:
            if links.unlinked:
                log.info("links.none group=%r generation=%d cause=%s", group.name, group.generation, links.unlinked)
            return
        reaches = [links.reaches[session] for session in members]
        schedules = {reach.schedule for reach in reaches} - {AUTO}
        secret = generation_secret((reach.secret for reach in reaches), group.number, group.generation)
        ranks = dict(zip(members, group.ranks, strict=True))
        links.part = _Part(group.generation, ranks, next(iter(schedules), AUTO), secret, set(members))

    def _problem(self, links: _GroupLinks, members: tuple[SessionId, ...]) -> str:
        """Why members cannot be linked, or nothing."""
        if any(session not in links.reaches for session in members):
            return "not all members can be linked"
        if len(members) > LINKED_RANKS_MAX:
            return f"{len(members)} members are over the limit of {LINKED_RANKS_MAX}"
        reaches = [links.reaches[session] for session in members]
        if len({reach.version for reach in reaches}) > 1:
            return "the members have different versions of links"
        schedules = {reach.schedule for reach in reaches} - {AUTO}
        if len(schedules) > 1:
            return f"the members ask for different schedules: {', '.join(sorted(schedules))}"
        if any(pair <= set(members) for pair in links.apart):
            return "two members could not reach one another before"
        if links.breaks >= LINK_BREAKS_MAX:
            return f"links broke {links.breaks} times and nothing was finished"
        return ""

    def give(self, group: Group, told: Membership) -> Membership:
        """What a member is told of a generation, with the others if they are to be linked."""
        links = self._groups.get(group.number)
        if links is None or told.generation != group.generation:
            return told
        part, told.unlinked = links.part, links.unlinked
        if part is not None:
            told.secret = part.secret
            told.peers = [
                Peer(rank, links.reaches[session].addresses, links.reaches[session].host)
                for session, rank in part.ranks.items()
            ]
        return told

    def problem(self, group: Group) -> str:
        """Why the members of a group's generation are not linked; nothing when they are."""
        if self.linked(group.number) is not None:
            return ""
        links = self._groups.get(group.number)
        if links is None:
            return "no member can be linked: on no network to the broker, over tls, or without compiled modules"
        if links.part is not None and links.part.phase is _Phase.MEETING:
            return "they are about to be"
        alone = "it has one member" if len(group.sessions) < 2 else ""
        return (
            links.unlinked or alone or (links.part.trouble if links.part is not None else "") or "linking them failed"
        )

    def linked(self, number: GroupNumber) -> Linked | None:
        """The present generation of a group, if its operations go over links."""
        links = self._groups.get(number)
        part = links.part if links is not None else None
        if links is None or part is None or part.phase is not _Phase.LINKED:
            return None
        reaches = ((rank, links.reaches.get(session)) for session, rank in part.ranks.items())
        hosts = [host_name(rank, "" if reach is None else reach.host) for rank, reach in reaches]
        return Linked(part.generation, part.schedule, part.ranks, hosts)

    # What members say.

    def told(self, group: Group, session: SessionId, frame: Frame) -> None:
        """LINKS: a member has all its links, could not get them, or has lost one."""
        links = self._groups.get(group.number)
        part = links.part if links is not None else None
        if links is None or part is None or part.generation != frame.target or session not in part.ranks:
            return
        if frame.count == LinkState.READY:
            part.ready.add(session)
            if part.phase is _Phase.MEETING and part.ready >= part.ranks.keys():
                self._decide(group, part, _Phase.LINKED, "")
            return
        trouble = decode_body(frame.body, Trouble)
        cause = "".join(letter for letter in trouble.cause if letter.isprintable())[:_CAUSE_LETTERS_MAX]
        if part.phase is _Phase.MEETING:
            self._failed(group, links, part, session, trouble.rank, cause)
            return
        words = "links.broke group=%r generation=%d rank=%d cause=%s"
        log.debug(words, group.name, part.generation, part.ranks[session], cause)
        if part.phase is _Phase.LINKED and not part.trouble:
            part.trouble = f"rank {part.ranks[session]}: {cause}"
            part.deadline_ns = 0

    def _failed(self, group: Group, links: _GroupLinks, part: _Part, session: SessionId, rank: int, cause: str) -> None:
        other = next((each for each, held in part.ranks.items() if held == rank and each != session), None)
        if other is None:
            links.reaches.pop(session, None)
            words = f"rank {part.ranks[session]} cannot be linked: {cause}"
        else:
            links.apart.add(frozenset((session, other)))
            words = f"rank {part.ranks[session]} cannot reach rank {rank}: {cause}"
        self._decide(group, part, _Phase.STAR, words)

    def _decide(self, group: Group, part: _Part, phase: _Phase, cause: str) -> None:
        part.phase, part.deadline_ns = phase, 0
        schedule = part.schedule if phase is _Phase.LINKED else STAR
        level = logging.INFO if phase is _Phase.LINKED else logging.WARNING
        words = "links.decided group=%r generation=%d schedule=%s cause=%s"
        log.log(level, words, group.name, part.generation, schedule, cause)
        report_ms = int(LINK_REPORT_S * 1000) if phase is _Phase.LINKED else 0
        body = encode_body(Decision(schedule, cause, report_ms))
        for session in part.ranks:
            self._send(session, Frame(Kind.LINKS, number=group.number, target=part.generation, body=body))

    def committed(self, group: Group, session: SessionId, frame: Frame) -> None:
        """COMMITTED: a member has ended its part in a generation, and says what it has finished last."""
        links = self._groups.get(group.number)
        if links is None:
            return
        for part in (*links.ended, *((links.part,) if links.part is not None else ())):
            if part.generation == frame.target and session in part.owing:
                part.owing.discard(session)
                part.committed = max(part.committed, frame.sequence)
        self._judge(group.number, links)

    # Time.

    def tick(self, groups: Iterable[Group], now_ns: int) -> list[Group]:
        """Time passes: the groups that have to begin another generation."""
        return [
            group
            for group in groups
            if (links := self._groups.get(group.number)) is not None and self._is_over(group, links, now_ns)
        ]

    def _is_over(self, group: Group, links: _GroupLinks, now_ns: int) -> bool:
        part = links.part
        if part is None or not (part.phase is _Phase.MEETING or part.trouble):
            return False
        if not part.deadline_ns:
            patience_s = LINK_GRACE_S if part.trouble else LINK_MEETING_S
            part.deadline_ns = now_ns + int(patience_s * 1e9)
        if now_ns < part.deadline_ns:
            return False
        if not part.trouble:
            late = sorted(rank for session, rank in part.ranks.items() if session not in part.ready)
            self._decide(group, part, _Phase.STAR, f"ranks {late} were not ready after {LINK_MEETING_S:g} s")
            return False
        log.warning("links.lost group=%r generation=%d cause=%s", group.name, part.generation, part.trouble)
        links.breaks += 1
        return True

    # The verdict.

    def _judge(self, number: GroupNumber, links: _GroupLinks) -> None:
        """Tells the members of ended generations, as far as all of them have said so, what was finished."""
        for part in [part for part in links.ended if not part.owing]:
            links.ended.remove(part)
            if part.committed:
                links.breaks = 0
            for session in part.ranks:
                if session in links.reaches or session in links.members:
                    frame = Frame(Kind.COMMITTED, number=number, target=part.generation, sequence=part.committed)
                    self._send(session, frame)

    def _press(self, links: _GroupLinks) -> None:
        """Who never says what it has finished keeps the others waiting no longer than this."""
        if len(links.ended) > LINK_REPORTS_OWED_MAX:
            for session in links.ended[0].owing:
                self._accuse(session, f"COMMITTED is missing for {LINK_REPORTS_OWED_MAX} generations that have ended")
