"""Connections to the HTTP interface: so many at once, and whoever comes asks for something soon.

Each takes a descriptor, which sessions need as well, and the library that speaks HTTP has no bound of its own. So when
there are too many, the oldest that has yet to ask goes, as with sessions; if all have asked, the new one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from typing import Final

from aiohttp import web

from broker.limits import HTTP_ASK_S, HTTP_CONNECTIONS_MAX, HTTP_RESERVED
from broker.server_scarcity import connection_descriptors_max

log = logging.getLogger(__name__)

_ACCEPTS_MAX: Final = 16
_PAUSE_S: Final = 0.1
"""When there is no descriptor at all."""


class HttpListener:
    """Accepts connections at one address, on the running event loop; `close` ends those that have yet to ask."""

    def __init__(self, sock: socket.socket, server: web.Server, context: ssl.SSLContext | None) -> None:
        """Args:
        sock: listens; the listener's from now on.
        server: speaks HTTP.
        context: for TLS; None where it is spoken in the clear.
        """
        self._socket = sock
        self._server = server
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[asyncio.Task[None], None] = {}
        """Connections that have yet to ask, the oldest first."""
        self._asked: dict[object, asyncio.Future[None]] = {}
        """By what speaks with them, what is done when they ask."""
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._accept)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    def asked(self, request: web.BaseRequest) -> None:
        """A request has come, as a whole but for its body."""
        future = self._asked.get(request.protocol)
        if future is not None and not future.done():
            future.set_result(None)

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_MAX):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("http.accept_paused cause=%s", error)
                self._loop.remove_reader(self._socket.fileno())
                self._loop.call_later(_PAUSE_S, self._accept_again)
                return
            if not self._has_room(connection):
                connection.close()
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._waiting[task] = None
            task.add_done_callback(self._forget)

    def _accept_again(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket.fileno(), self._accept)

    def _has_room(self, connection: socket.socket) -> bool:
        """Whether there is room for one more, if need be when the oldest goes that has yet to ask."""
        descriptors_max = connection_descriptors_max()
        most = min(HTTP_CONNECTIONS_MAX, descriptors_max // 8)
        if connection.fileno() >= descriptors_max:
            most = min(most, HTTP_RESERVED)
        waiting = [task for task in self._waiting if not task.cancelling()]
        if len(waiting) + self._serving < most:
            return True
        oldest = next(iter(waiting), None)
        if oldest is not None:
            oldest.cancel()
        return oldest is not None

    @property
    def _serving(self) -> int:
        """Connections that have asked."""
        return sum(each not in self._asked for each in self._server.connections)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._waiting.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.error("http.fault", exc_info=task.exception())

    async def _open(self, connection: socket.socket) -> None:
        """Lets a connection in, and ends it unless it asks in time."""
        handler, future = self._server(), self._loop.create_future()
        self._asked[handler] = future
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(HTTP_ASK_S):
                transport, _ = await self._loop.connect_accepted_socket(lambda: handler, connection, ssl=self._context)
                await future
                transport = None
        except (OSError, TimeoutError) as error:
            log.debug("http.ended_unasked cause=%r", error)
        finally:
            del self._asked[handler]
            if transport is not None:
                transport.abort()
            future.cancel()

    def close(self) -> None:
        """Nobody is accepted any more; a second call does nothing."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()
        for task in list(self._waiting):
            task.cancel()

    def __repr__(self) -> str:
        return f"<HttpListener waiting={len(self._waiting)} serving={self._serving}>"
