"""What the members of groups tell of their operations over links (docs/wire.md section 15), to tell people who is late.

A generation is watched from the moment in which its members are linked. When it has ended, its members may still tell
of its last operations for LINK_REPORT_LAST_S.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from broker.collectives.group import Group
from broker.collectives.link_watching import LinkWatch, Standing, Word
from broker.collectives.snapshots import GroupSnapshot
from broker.ids import GroupNumber, Rank, SessionId
from broker.limits_links import LINK_REPORT_LAST_S
from broker.protocol.bodies import decode_body
from broker.protocol.frames import Frame
from broker.protocol.operations import TOLD_MAX, Operations
from broker.state.links import Links

_ENDED_MAX = 8
"""Generations of a group that have ended and are still told of."""


@dataclass(slots=True)
class _Watched:
    """A generation.

    Attributes:
        ranks: of its members.
        until_ns: when its members have told everything; 0 while it goes on.
    """

    watch: LinkWatch
    ranks: Mapping[SessionId, Rank]
    until_ns: int = 0


class LinkWatches:
    """What is told of each group that has links."""

    def __init__(self, links: Links) -> None:
        """`links` knows which groups those are."""
        self.now_ns = 0
        """The time of the last tick, or later."""
        self._links = links
        self._present: dict[GroupNumber, _Watched] = {}
        self._ended: dict[GroupNumber, list[_Watched]] = {}

    def told(self, group: Group, session: SessionId, frame: Frame, now_ns: int) -> None:
        """OPERATIONS: a member says what is new.

        Raises:
            ProtocolError: the body is malformed.
        """
        body = decode_body(frame.body, Operations)
        self._begin(group, now_ns)
        for watched in (self._present.get(group.number), *self._ended.get(group.number, ())):
            if watched is not None and watched.watch.generation == frame.target and session in watched.ranks:
                standing = Standing(body.phase, body.waits_for, body.received_bytes)
                watched.watch.told(watched.ranks[session], frame.time_ns, _words(body), standing, now_ns)

    def follow(self, group: Group) -> None:
        """Something has happened in a group: if that has ended its generation, the rest of it is waited for."""
        watched = self._present.get(group.number)
        if watched is None or watched.watch.generation == group.generation:
            return
        del self._present[group.number]
        watched.until_ns = self.now_ns + int(LINK_REPORT_LAST_S * 1e9)
        ended = self._ended.setdefault(group.number, [])
        ended.append(watched)
        if len(ended) > _ENDED_MAX:
            ended.pop(0).watch.end(group.recorder, self.now_ns)

    def look(self, group: Group, now_ns: int) -> None:
        """Time has passed: what is over is recorded."""
        self.now_ns = now_ns
        self._begin(group, now_ns)
        watched = self._present.get(group.number)
        if watched is not None:
            watched.watch.look(group.recorder, now_ns)
        ended = self._ended.get(group.number, [])
        while ended and now_ns >= ended[0].until_ns:
            ended.pop(0).watch.end(group.recorder, now_ns)

    def still_ns(self, group: Group, now_ns: int) -> int:
        """For how long an operation over a group's links has not moved, as far as members have told."""
        watched = self._present.get(group.number)
        return 0 if watched is None else watched.watch.still_ns(now_ns)

    def shown(self, group: Group, snapshot: GroupSnapshot, now_ns: int) -> GroupSnapshot:
        """The state of a group, with what is in progress over its links."""
        self.look(group, now_ns)
        watched = self._present.get(group.number)
        if watched is None:
            return snapshot
        operations = (*snapshot.operations, *watched.watch.operations())
        return replace(snapshot, schedule=watched.watch.schedule, operations=operations)

    def dissolved(self, group: Group) -> None:
        """A group is no more: what was said of its operations is all that ever will be."""
        present = self._present.pop(group.number, None)
        for watched in [*self._ended.pop(group.number, []), *([] if present is None else [present])]:
            watched.watch.end(group.recorder, self.now_ns)

    def _begin(self, group: Group, now_ns: int) -> None:
        """A generation whose members are linked is watched."""
        linked = None if group.number in self._present else self._links.linked(group.number)
        if linked is not None and linked.generation == group.generation:
            watch = LinkWatch(
                group.name, linked.generation, group.ranks, group.world_size, linked.schedule, now_ns, linked.hosts
            )  # fmt: skip
            self._present[group.number] = _Watched(watch, linked.ranks)


def _words(body: Operations) -> list[Word]:
    claims = body.claims
    return [
        Word(
            told.sequence, told.began_ago_ns, told.ended_ago_ns, told.outcome,
            claims[told.claim] if 0 <= told.claim < len(claims) else b"", told.positions, told.timeout_ns,
        )
        for told in body.told[:TOLD_MAX]
    ]  # fmt: skip
