"""What drives an asynchronous client: the event loop reads and writes its link; a wait is a future."""

from __future__ import annotations

import asyncio
import builtins
import logging
import os
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from broker.collectives import shm
from broker.errors import BrokerError, ConnectError, ConnectionClosed, InvalidValue, PermissionDenied, TimeoutError
from broker.protocol.batches import Batch
from broker.protocol.codes import Code
from broker.protocol.line import AVAILABLE
from broker.protocol.session import Phase, Session
from broker.transport.hangups import Hangups
from clients.collectives.shared_operation import SharedOperation
from clients.connection.core import Core
from clients.connection.dialling import Dialling, Retries, reopened
from clients.connection.link import Link, read
from clients.connection.signals import Signal
from clients.connection.wakeup import Wakeup
from clients.publishing.outgoing_topic import OutgoingTopic

log = logging.getLogger(__name__)

TICK_S: Final = 0.1
READS_MAX: Final = 64
"""Reads in a row outside the loop's own; the loop goes on with the rest."""


def _hang_up(coming: asyncio.Future[Link]) -> None:
    if not coming.cancelled() and coming.exception() is None:
        coming.result().connection.close()


class AsyncDriver:
    """One asynchronous client's link. Everything happens on the loop it was made in."""

    def __init__(self, core: Core, dialling: Dialling) -> None:
        # Before anything else, as it may end here: without a loop there is nothing to close.
        self._link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self.core = core
        self.tasks: set[asyncio.Task[None]] = set()
        self._dialling = dialling
        self._hangups: Hangups[Link] = Hangups()
        self._writing = False
        self._closing = False
        self._ticking: asyncio.TimerHandle | None = None
        self._submitted: list[SharedOperation] = []
        self._bell: Wakeup | None = None

    def __del__(self) -> None:
        # Its loop is closed, and nobody has closed the client: what is not a socket would stay open.
        if self._link is None or self.core.closed is not None:
            return
        for descriptor in (self.core.completions, -1 if self._bell is None else self._bell.descriptor):
            if descriptor >= 0:
                os.close(descriptor)
        text = f"unclosed client {self.core.name!r}: close it, or use `async with`"
        warnings.warn(text, ResourceWarning, stacklevel=2)

    async def connect(self) -> None:
        """Connects.

        Raises:
            ConnectError: no broker can be reached.
            PermissionDenied: the broker does not let this client in.
        """
        link = await self._dial(self._dialling.connect_timeout_s)
        self.core.places.call = self.call
        if shm.AVAILABLE:
            self.core.completions = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._loop.add_reader(self.core.completions, self._completed)
        self._listen()
        self._adopt(link)
        self._tick()

    def _listen(self) -> None:
        """Has a bell for what comes on lines, where there can be one."""
        if not AVAILABLE:
            return
        bell = Wakeup()
        if not bell.identity:
            bell.close()
            return
        self.core.bell = self._bell = bell
        self._loop.add_reader(bell.descriptor, self._rung)

    async def pause(self, seconds: float) -> bool:
        """The loop counts in milliseconds."""
        return False

    def _rung(self) -> None:
        """Something has come on a line."""
        if self._bell is not None:
            self._bell.clear()
        self._read_lines()

    def _read_lines(self) -> None:
        """Reads what has come on lines, until nothing more comes without a bell."""
        lines = self.core.lines
        if lines.count:
            lines.read(time.monotonic_ns())
            while not lines.sleeps():
                lines.read(time.monotonic_ns())
            self.flush()

    async def _dial(self, timeout_s: float) -> Link:
        """Dials on a thread. When it is cancelled, what the thread still opens is closed again."""
        coming = self._loop.run_in_executor(None, self._dialling.dial, timeout_s, self.core.allocate)
        try:
            return await asyncio.shield(coming)
        except asyncio.CancelledError:
            coming.add_done_callback(_hang_up)
            raise

    async def wait(self, signal: Signal, timeout_s: float | None, what: str) -> None:
        """Waits until a signal is ready; cancelling leaves everything as it is.

        Raises:
            TimeoutError: it did not become ready in time; it still may.
            InvalidValue: the loop that runs is another one than the client's.
        """
        self.core.before_waiting()
        self.flush()
        if not signal.ready:
            self._read_lines()
        if signal.ready:
            return
        if asyncio.get_running_loop() is not self._loop:
            raise InvalidValue("event loop", asyncio.get_running_loop(), "is another one than the client was made in")
        future: asyncio.Future[None] = self._loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        signal.callbacks.append(wake)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except builtins.TimeoutError as error:
            if signal.ready:
                return
            raise TimeoutError(what, timeout_s or 0.0) from error
        finally:
            if wake in signal.callbacks:
                signal.callbacks.remove(wake)

    def flush(self) -> None:
        """Sends what waits as far as the link takes it; the rest follows when the link is writable."""
        link = self._link
        if link is None or self._writing:
            return
        try:
            if link.session.flush(link.wire):
                self.core.outgoing.link_drained()
            else:
                self._writing = True
                if not link.connection.sends_when_readable:
                    self._loop.add_writer(link.connection.fileno(), self._writable, link)
        except ConnectionClosed as error:
            self._lose(error)

    def submit(self, operation: SharedOperation) -> None:
        """Has an operation carried out on its board, and its signal set when it is done."""
        self._submitted.append(operation)
        operation.way.submit(operation.task)

    def _completed(self) -> None:
        """Operations on boards are done."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.core.completions)
        # Each is asked once: it may end between two questions, and would then be on neither side.
        submitted, self._submitted = self._submitted, []
        for operation in submitted:
            if operation.task.status == shm.Outcome.PENDING:
                self._submitted.append(operation)
            else:
                operation.signal.set()

    def batch_opened(self) -> None:
        """A batch has to leave within the batch window even if nothing else happens."""
        topic = self.core.outgoing.open_batches[-1]
        if self._loop.is_closed():
            problem = "in which the client was made is closed, and nothing waits to leave any more: connect in this one"
            raise InvalidValue("event loop", self._loop, problem)
        self._loop.call_later(topic.batch_window_ns / 1e9, self._send_batch, topic, topic.batch)

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function on the loop: at once, or soon when this is another thread; never when the loop is closed."""
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            function()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def start(self, task: asyncio.Task[None]) -> None:
        """Keeps a task until it is done, or until the client is closed."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def close(self, reason: str, timeout_s: float) -> None:
        """Closes in order: what is queued still leaves. Every waiter gets ConnectionClosed."""
        if self._closing:
            return
        self._closing = True
        link = self._link
        if link is not None:
            self.core.farewell()
            link.session.close(Code.NORMAL, reason)
            self.core.closing()
            self.flush()
        deadline = time.monotonic() + timeout_s
        try:
            while self._link is not None and self._link.session.phase is Phase.CLOSING and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
        finally:
            self._shut(ConnectionClosed(reason, Code.NORMAL))
        current = asyncio.current_task()
        tasks = [task for task in self.tasks if task is not current]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # The loop's callbacks.

    def _send_batch(self, topic: OutgoingTopic, batch: Batch | None) -> None:
        """The window of a batch is over, unless it has left and the topic has another one by now."""
        if batch is not None and topic.batch is batch:
            self.core.outgoing.send_batch(topic)
            self.flush()

    def _writable(self, link: Link) -> None:
        if link is not self._link:
            return
        self._writing = False
        self._loop.remove_writer(link.connection.fileno())
        self.flush()

    def _readable(self, link: Link) -> int:
        """Reads once; returns the bytes that were there."""
        session = link.session
        try:
            size = read(session, link.wire, self.core)
        except ConnectionClosed as error:
            self._lose(error)
            return 0
        if self._writing and link.connection.sends_when_readable:
            self._writing = False
        self.flush()
        self._read_lines()
        self._check_session(session)
        return size

    def read_arrived(self) -> None:
        """Reads what has come, without waiting."""
        for _ in range(READS_MAX):
            if self._link is None or not self._readable(self._link):
                return

    def _check_session(self, session: Session) -> None:
        """Gives the connection up when its session has failed or is over."""
        failure = session.failure
        if failure is not None and (session.phase is Phase.CLOSED or not self._closing):
            self._lose(ConnectionClosed.by(failure))

    def _tick(self) -> None:
        if self.core.closed is None:
            self._ticking = self._loop.call_later(TICK_S, self._tick)
        if self._hangups.find():
            # The loop may not tell of it any more. What is left is read, and then the failure.
            self.read_arrived()
        now_ns = time.monotonic_ns()
        self.core.tick(now_ns)
        self._read_lines()
        self.flush()
        if self._link is not None:
            self._check_session(self._link.session)

    # The link's life.

    def _adopt(self, link: Link) -> None:
        self._link = link
        self.core.places.connected(link.local_host, private=link.connection.private)
        self.core.connected(link.session, link.welcome)
        for received in link.early:
            self.core.receive(received, 0)
        self._loop.add_reader(link.connection.fileno(), self._readable, link)
        self._hangups.add(link.connection.fileno(), link)
        self.flush()

    def _take_link(self) -> Link | None:
        """The link, which its caller closes, after it has told the core: as long as it is open, nobody writes to the
        memory that arrays of this session lie in."""
        link, self._link = self._link, None
        self._writing = False
        if link is not None:
            self._hangups.remove(link.connection.fileno())
            self._loop.remove_reader(link.connection.fileno())
            self._loop.remove_writer(link.connection.fileno())
        return link

    def _lose(self, error: ConnectionClosed) -> None:
        link = self._take_link()
        if link is None:
            return
        link.session.lost(error)
        if self._closing or self._dialling.reconnect_timeout_s <= 0 or error.code == Code.DENIED:
            self.core.close(error)
        else:
            self.core.disconnected(error)
            self.start(self._loop.create_task(self._reconnect()))
        link.connection.close()
        log.warning("connection.closed name=%r cause=%s", self.core.name, error)

    def _shut(self, error: BrokerError) -> None:
        link = self._take_link()
        self.core.close(error)
        if self.core.completions >= 0:
            # What was under way on boards ends with them, and nobody is told of it any more.
            submitted, self._submitted = self._submitted, []
            for operation in submitted:
                operation.signal.set()
            self._loop.remove_reader(self.core.completions)
            os.close(self.core.completions)
            self.core.completions = -1
        if self._bell is not None:
            self._loop.remove_reader(self._bell.descriptor)
            self._bell.close()
            self._bell = None
        if link is not None:
            link.connection.close()
        if self._ticking is not None:
            self._ticking.cancel()

    async def _reconnect(self) -> None:
        retries = Retries(self._dialling)
        while not self._closing:
            try:
                link = await self._dial(retries.timeout_s)
            except (ConnectError, PermissionDenied) as error:
                end = retries.end(error)
                if end is not None:
                    self._shut(end)
                    return
                await asyncio.sleep(retries.pause_s())
                continue
            self._adopt(link)
            told, on_reconnect = reopened(self.core), self._dialling.on_reconnect
            if told is not None and on_reconnect is not None:
                self._loop.call_soon(on_reconnect, told)
            return
