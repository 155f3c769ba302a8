"""The HTTP interface for people and monitoring: it shows, and changes nothing.

    /healthz            200 while the event loop runs
    /readyz             200 while sessions are accepted, 503 before that and while the broker drains
    /metrics            for Prometheus (broker/metrics.py)
    /api/v1/server      the broker as a whole       \\
    /api/v1/sessions    {"sessions": [...]}          | JSON; the keys are the fields of the types
    /api/v1/topics      {"topics": [...]}            | in shapes.py, groups.py; ?filter= for topics
    /api/v1/groups      {"groups": [...]}           /
    /api/v1/events      what the dashboard shows, as server-sent events (broker/admin/events.py)
    /api/v1/tap         ?topic=: a message of one topic now and then, likewise (broker/admin/tap.py)
    /                   the dashboard: one page, which asks nobody else for anything (broker/dashboard)

Errors are JSON too: {"error": "what happened"}. The default address is this host's own, where everybody may look;
broker/admin/guard.py says who may elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from broker.admin import views
from broker.admin.events import Events
from broker.admin.groups import group_views
from broker.admin.guard import GUARD, Guard, visitor
from broker.admin.hosts import names_of, only
from broker.admin.listener import HttpListener
from broker.admin.tap import Taps
from broker.dashboard import HEADERS, read_files
from broker.errors import InvalidValue, ListenError
from broker.metrics import Metrics
from broker.server import Server
from broker.topics.names import ALL_LEVELS
from broker.transport.addresses import Address
from broker.transport.sockets import in_plain_words
from broker.transport.tcp import listening_socket, look_up_own

SHUTDOWN_TIMEOUT_S: Final = 1.0
"""How long the end waits for answers that are under way."""

_VIEWS: Final = ("/api/v1/server", "/api/v1/sessions", "/api/v1/topics", "/api/v1/groups")
_LINKS: Final = ("/healthz", "/readyz", "/metrics", *_VIEWS, "/api/v1/events", "/api/v1/tap")


class Admin:
    """The HTTP interface of one server, on the server's event loop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._metrics = Metrics(server)
        self._events = Events(server)
        self._taps = Taps(server)
        self._files = read_files()
        self._runner: web.AppRunner | None = None
        self._listener: HttpListener | None = None
        self._names: frozenset[str] = frozenset()

    async def start(self, address: str) -> str:
        """Listens; from here on requests are answered.

        Args:
            address: host:port, an IPv6 host in brackets; port 0 takes any free one.

        Returns:
            The root of the interface with the real port, as in http://127.0.0.1:4871.

        Raises:
            ListenError: the address cannot be listened on, or strangers could look at it there. Nothing is left
                listening.
        """
        host, _, port = address.rpartition(":")
        bare = host.removeprefix("[").removesuffix("]")
        guard = Guard(self._server, Address("tcp", host=bare, port=int(port)))
        self._names = names_of(address)
        runner = web.AppRunner(
            self._application(guard), access_log=None, handle_signals=False, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )
        await runner.setup()
        try:
            sock = listening_socket(*look_up_own(Address("tcp", host=bare, port=int(port))))
            assert runner.server is not None
            self._listener = HttpListener(sock, runner.server, guard.context)
        except OSError as error:
            await runner.cleanup()
            advice = "--admin HOST:PORT chooses another address, --admin off does without"
            raise ListenError(f"{guard.scheme}://{address}", f"{in_plain_words(error)} ({advice})") from error
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        return f"{guard.scheme}://{host}:{self._listener.port}"

    async def stop(self) -> None:
        """Stops listening and ends what is under way; a second call does nothing."""
        runner, self._runner = self._runner, None
        if self._listener is not None:
            self._listener.close()
        if runner is not None:
            await runner.cleanup()

    def _application(self, guard: Guard) -> web.Application:
        names = self._names | frozenset(name.lower() for name in self._server.config.admin_names)
        application = web.Application(middlewares=[self._note, _errors_as_json, only(names), guard.check])
        application[GUARD] = guard
        application.on_shutdown.append(self._end_streams)
        handlers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
            **dict.fromkeys(self._files, self._file),
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._scrape,
            "/api/v1/server": self._show_server,
            "/api/v1/sessions": self._show_sessions,
            "/api/v1/topics": self._show_topics,
            "/api/v1/groups": self._show_groups,
            "/api/v1/events": self._events.stream,
            "/api/v1/tap": self._taps.stream,
        }
        for path, handler in handlers.items():
            application.router.add_get(path, handler, allow_head=False)
        return application

    @web.middleware
    async def _note(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Whoever has asked for something is a connection that may stay."""
        if self._listener is not None:
            self._listener.asked(request)
        return await handler(request)

    async def _end_streams(self, application: web.Application) -> None:
        self._events.stop()
        self._taps.stop()

    async def _file(self, request: web.Request) -> web.Response:
        file = self._files[request.path]
        return web.Response(text=file.text, content_type=file.content_type, charset="utf-8", headers=HEADERS)

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self._server.state.draining:
            return web.Response(status=503, text="draining")
        if not self._server.listeners:
            return web.Response(status=503, text="not listening")
        return web.Response(text="ready")

    async def _scrape(self, request: web.Request) -> web.Response:
        text, content_type = self._metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": content_type})

    async def _show_server(self, request: web.Request) -> web.Response:
        return _json(views.server_view(self._server, time.monotonic_ns()))

    async def _show_sessions(self, request: web.Request) -> web.Response:
        return _json({"sessions": views.session_views(self._server, time.monotonic_ns())})

    async def _show_topics(self, request: web.Request) -> web.Response:
        try:
            return _json({"topics": views.topic_views(self._server, request.query.get("filter", ALL_LEVELS))})
        except InvalidValue as error:
            return _json({"error": str(error)}, status=400)

    async def _show_groups(self, request: web.Request) -> web.Response:
        return _json({"groups": group_views(self._server, time.monotonic_ns(), visitor(request).may_read)})

    def __repr__(self) -> str:
        return f"<Admin {self._listener!r}>"


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        text = f"{request.method} {request.path}: nothing can be changed here, only GET is answered"
        response = _json({"error": text}, error.status)
        response.headers["Allow"] = "GET"
        return response
    except web.HTTPNotFound as error:
        return _json({"error": f"{request.path}: no such path; there are /, {', '.join(_LINKS)}"}, error.status)
