"""A broker on a thread of the tests, with its real server and sockets."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self

import uvloop

import clients
from broker.config import ADMIN_OFF, Config
from broker.server import Server
from broker.server_seat import Seat

PATIENCE_S = 60.0
"""No wait for the server takes this long unless something is broken."""


class ServingThread:
    """A server that listens until the context is left.

    Attributes:
        url: where clients connect, the first address.
        server: to look into; only `call` may touch it while it runs.
    """

    def __init__(self, *addresses: str, seat: Seat | None = None, **settings: object) -> None:
        self._config = Config(listen=addresses, admin=ADMIN_OFF, name="test", drain_timeout_s=1.0, **settings)
        self._seat = seat
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="test-broker", daemon=True)
        self.url = ""
        self.server: Server
        self._loop: asyncio.AbstractEventLoop
        self._end: asyncio.Event

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self.server = Server(self._config, self._seat)
        self.server.start(self._config.listen)
        self.url = str(self.server.listeners[0].address)
        self._ready.set()
        await self._end.wait()
        await self.server.stop()

    def call(self, function: object, *arguments: object) -> object:
        """Calls something on the server's thread and returns what it returned."""
        done: list[object] = []
        finished = threading.Event()

        def run() -> None:
            done.append(function(*arguments))
            finished.set()

        self._loop.call_soon_threadsafe(run)
        assert finished.wait(PATIENCE_S)
        return done[0]

    def cut_off(self, name: str) -> None:
        """Ends a client's connection, as a broken network would."""

        def cut() -> None:
            (link,) = [link for link in self.server._links.values() if link.record.name == name]
            self.server._close(link, abort=True)
            self.server._run()

        self.call(cut)

    def wait_until_idle(self) -> None:
        """Waits until the server has closed its side of every session."""
        asyncio.run_coroutine_threadsafe(self.server.idle.wait(), self._loop).result(PATIENCE_S)

    def wait_until_alone(self, bus: clients.Client, sessions: int) -> None:
        """Returns when the server has dealt with the end of all but so many sessions, of which `bus` has one."""
        while self.call(lambda: len(self.server.state.sessions)) > sessions:
            bus.flush(PATIENCE_S)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S), "the broker did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the broker did not stop"
