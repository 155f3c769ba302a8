"""What the dashboard is told, once a second, as server-sent events (WHATWG HTML, section 9.2).

An event is a refresh, as of `tensorbus top`, with more of each group: its members, and its last operations with each
rank's arrival. Each page that is open costs the broker that much work; so many may be.
"""

from __future__ import annotations

import asyncio
import time
from itertools import islice
from typing import Final

import msgspec
from aiohttp import web

from broker.admin_groups import GroupView, group_view, groups_of
from broker.admin_views import server_view, session_view, topic_view, topics_of
from broker.cli_top_data import Look, Refresh, Session, Topic, refresh
from broker.cli_top_data import Server as ServerRow
from broker.server import Server

INTERVAL_S: Final = 1.0
PAGES_MAX: Final = 16
"""Dashboards that are open at the same time."""
ITEMS_MAX: Final = 2000
"""Sessions and topics that are looked at, the oldest; of these those with the most traffic are told."""
ROWS_MAX: Final = 50
GROUPS_MAX: Final = 32
_HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Event(msgspec.Struct):
    """One event: what `tensorbus top` shows, the groups whole, and whether the broker is about to end."""

    now: Refresh
    groups: list[GroupView]
    groups_open: int
    draining: bool


class Events:
    """Streams of events to the pages that are open; the server's loop may call."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._open = 0
        self._stopping = asyncio.Event()

    async def stop(self, application: web.Application) -> None:
        """Ends all streams."""
        self._stopping.set()

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Answers a request with events until its page is closed, or the broker ends."""
        if self._open >= PAGES_MAX:
            text = f"{PAGES_MAX} pages are open already: close one"
            return web.json_response({"error": text}, status=503)
        response = web.StreamResponse(headers=_HEADERS)
        self._open += 1
        before: Look | None = None
        try:
            await response.prepare(request)
            while not self._stopping.is_set():
                now = _look(self._server, time.monotonic_ns())
                event = msgspec.json.encode(_event(self._server, before, now))
                before = now
                await response.write(b"data: " + event + b"\n\n")
                await self._wait()
        except ConnectionResetError:
            # The page was closed.
            return response
        finally:
            self._open -= 1
        return response

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(INTERVAL_S):
                await self._stopping.wait()
        except TimeoutError:
            return

    def __repr__(self) -> str:
        return f"<Events open={self._open}>"


def _look(server: Server, now_ns: int) -> Look:
    state = server.state
    return Look(
        now_ns / 1e9,
        msgspec.convert(server_view(server, now_ns), ServerRow, from_attributes=True),
        [
            msgspec.convert(session_view(record, now_ns), Session, from_attributes=True)
            for record in islice(list(state.sessions.values()), ITEMS_MAX)
        ],
        [
            msgspec.convert(topic_view(tenant, topic, explained=False), Topic, from_attributes=True)
            for tenant, topic in islice(topics_of(server), ITEMS_MAX)
        ],
        [],
        [],
    )


def _event(server: Server, before: Look | None, now: Look) -> Event:
    told = refresh(before, now)
    told.sessions, told.topics = told.sessions[:ROWS_MAX], told.topics[:ROWS_MAX]
    groups = groups_of(server)
    now_ns = int(now.at_s * 1e9)
    views = [group_view(server, tenant, group, now_ns) for tenant, group in groups[:GROUPS_MAX]]
    return Event(told, views, len(groups), server.state.draining)
