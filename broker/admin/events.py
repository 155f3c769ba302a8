"""What the dashboard is told, again and again, as server-sent events.

An event is a refresh, as of `tensorbus top`, with more of each group: its members, and its last operations with each
rank's arrival. There is one look at the broker for all pages that are open, and none while no page is; it is taken in
pieces, so that messages go on between them, and the longer one takes, the later comes the next:

    |look|    INTERVAL_S    |look|    INTERVAL_S    |look|             as long as a look is short
    |     look     |        its time / SHARE        |     look     |   of very many sessions, topics and groups
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from typing import Final, TypeVar

import msgspec
from aiohttp import web
from msgspec import structs

from broker.admin.groups import group_view, groups_of, shown_to
from broker.admin.guard import Visitor, visitor
from broker.admin.rates import Look, Refresh, SessionRow, refresh
from broker.admin.shapes import FailureView, GroupView
from broker.admin.streams import Streams
from broker.admin.views import server_view, session_view, topic_view, topics_of
from broker.server import Server

T = TypeVar("T")

INTERVAL_S: Final = 0.25
"""A rank that is waited for is to be named within a second."""
SHARE: Final = 0.02
"""Of the broker's time that looks may take."""
PAGES_MAX: Final = 16
"""Dashboards that are open at the same time."""
ITEMS_MAX: Final = 2000
"""Sessions and topics that are looked at, the oldest; of these those in trouble and those with the most traffic are
told."""
ROWS_MAX: Final = 50
GROUPS_MAX: Final = 256
"""Groups that are looked at."""
GROUPS_TOLD: Final = 16
"""Of these, those that have waited longest, and the oldest."""
PIECE: Final = 32
"""Things that are looked at before others have their turn."""


class Event(msgspec.Struct):
    """One event: what `tensorbus top` shows, and the groups whole.

    Attributes:
        now: the refresh; its rows are those in trouble, and those with the most traffic.
        groups: at most 16, with members and the last operations.
        groups_open: how many there are.
        failures: of groups that are gone.
        dropped_messages: lost by subscribers, ever, by overflow policy.
        version: of tensorbus.
        draining: whether the broker is about to end.
    """

    now: Refresh
    groups: list[GroupView]
    groups_open: int
    failures: list[FailureView]
    dropped_messages: dict[str, int]
    version: str
    draining: bool


class Events:
    """Streams of events to the pages that are open; the server's loop may call."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._streams = Streams("pages", PAGES_MAX)
        self._looking: asyncio.Task[None] | None = None
        self._newest = b""
        self._event: Event | None = None
        self._fresh = asyncio.Event()

    def stop(self) -> None:
        """Ends all streams."""
        self._streams.stopping.set()
        self._fresh.set()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answers a request with events until its page is closed, or the broker ends."""
        try:
            return await self._streams.serve(request, lambda response: self._tell(response, visitor(request)))
        finally:
            if not self._streams.open and self._looking is not None:
                self._looking.cancel()
                self._looking, self._newest, self._event = None, b"", None

    async def _tell(self, response: web.StreamResponse, visitor: Visitor) -> None:
        """The newest event, and then each one that comes; a page that reads slowly misses some."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_on())
        looking, told = self._looking, b""
        while not self._streams.stopping.is_set() and not looking.done():
            fresh = self._fresh
            if self._newest is told:
                await fresh.wait()
                continue
            if visitor.problem:
                return
            told, event = self._newest, self._event
            if event is None or visitor.reads_everything:
                await self._streams.send(response, told)
                continue
            groups = [shown_to(visitor.may_read, group) for group in event.groups]
            await self._streams.send(response, msgspec.json.encode(structs.replace(event, groups=groups)))

    async def _look_on(self) -> None:
        before: Look | None = None
        try:
            while not self._streams.stopping.is_set():
                # Processor time: on a busy machine the clock counts what others take.
                look, taken_s = _Looking(self._server, before), 0.0
                started_s = time.thread_time()
                for _ in look.pieces():
                    taken_s += time.thread_time() - started_s
                    await asyncio.sleep(0)
                    started_s = time.thread_time()
                before, self._newest, self._event = look.now, msgspec.json.encode(look.event), look.event
                taken_s += time.thread_time() - started_s
                self._wake()
                await self._streams.pause(max(INTERVAL_S, taken_s / SHARE))
        finally:
            self._wake()

    def _wake(self) -> None:
        fresh, self._fresh = self._fresh, asyncio.Event()
        fresh.set()

    def __repr__(self) -> str:
        return f"<Events {self._streams!r}>"


class _Looking:
    """One look at a broker, in pieces.

    Attributes:
        now: what was seen, once all pieces are done.
        event: what is to be told of it.
    """

    def __init__(self, server: Server, before: Look | None) -> None:
        self._server = server
        self._before = before
        self.now: Look
        self.event: Event

    def pieces(self) -> Iterator[None]:
        """Looks; between two pieces others may do something."""
        server, now_ns = self._server, time.monotonic_ns()
        state = server.state
        shown = server_view(server, now_ns)
        self.now = Look(now_ns / 1e9, shown, {}, [], [], [])
        yield
        for records in _in_pieces(list(islice(state.sessions.values(), ITEMS_MAX))):
            self.now.sessions |= {(0, record.id): session_view(record, time.monotonic_ns()) for record in records}
            yield
        for topics in _in_pieces(list(islice(topics_of(server), ITEMS_MAX))):
            self.now.topics += [topic_view(tenant, topic, explained=False) for tenant, topic in topics]
            yield
        groups: list[GroupView] = []
        all_groups = groups_of(server)
        for some in _in_pieces(all_groups[:GROUPS_MAX]):
            # Some may have ended since the piece before.
            there = [(tenant, group) for tenant, group in some if group.number in tenant.groups.by_number]
            groups += [group_view(server, tenant, group, time.monotonic_ns()) for tenant, group in there]
            yield
        told = refresh(self._before, self.now, rows_max=ITEMS_MAX)
        # Who waits for others has no traffic: the rows in trouble first.
        told.sessions = sorted(told.sessions, key=_is_well)[:ROWS_MAX]
        told.topics = sorted(told.topics, key=lambda topic: not topic.held_back_by)[:ROWS_MAX]
        groups = sorted(groups, key=_moved)[:GROUPS_TOLD]
        self.event = Event(
            told, groups, len(all_groups), shown.failures, shown.dropped_messages, shown.version, state.draining
        )


def _in_pieces(things: list[T]) -> Iterator[list[T]]:
    return (things[start : start + PIECE] for start in range(0, len(things), PIECE))


def _is_well(session: SessionRow) -> bool:
    return not session.blocks and not session.dropped_per_s


def _moved(group: GroupView) -> float:
    """Less, the longer something in a group has not moved."""
    return -max((operation.unmoved_s for operation in group.operations), default=0.0)
