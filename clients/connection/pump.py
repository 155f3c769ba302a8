"""The lock of a synchronous client, and who reads its connection.

Nothing is handed from thread to thread on the way out: whoever publishes encodes the frame and sends it. On the way in,
whoever waits reads. The first thread that has to wait takes the pump, which is the right to poll and read the
connection; others wait until the pump has brought what they want. A waiting `next()` is thus woken by the kernel
itself.

    publish ----------------------------------> lock, encode, send
    next, request, wait ... nothing there yet -> pump free:  poll, read, hand out, wake the others
                                                 pump taken: wait for whoever has it

The lock is held while state is touched and never while a thread sleeps or runs the application's functions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Final, TypeVar

from broker.clock import monotonic_ns
from broker.errors import BrokerError, ConnectionClosed, TimeoutError
from broker.protocol.codes import Code
from broker.protocol.line import AVAILABLE
from broker.protocol.session import Phase, Session
from broker.transport.calls import FIRST, READABLE, SECOND, WRITABLE, wait_for_either
from broker.wires import Wire
from clients.connection import environment
from clients.connection.checks import TIMEOUT_S_MAX, time_limit
from clients.connection.core import Core
from clients.connection.link import INTERRUPTED, UNLINKED, Link
from clients.connection.locks import Condition, Lock
from clients.connection.signals import Signal
from clients.connection.wakeup import Wakeup
from clients.reading.looking import Looking

log = logging.getLogger(__name__)

SHORT_READ_BYTES: Final = 4096
READ_S: Final = 0.02
"""How often who publishes large messages reads: before the keeper would."""
READS_MAX: Final = 64
"""Reads in a row before the lock is given up."""
_READABLE, _WRITABLE, _FIRST, _SECOND = READABLE, WRITABLE, FIRST, SECOND
_SHORT_READ_BYTES, _READS_MAX = SHORT_READ_BYTES, READS_MAX

T = TypeVar("T")


def seconds(timeout_s: float) -> float:
    """As `time_limit`, which nearly all times pass without being asked."""
    usual = type(timeout_s) is float and 0.0 <= timeout_s <= TIMEOUT_S_MAX
    return timeout_s if usual else time_limit("timeout_s", timeout_s)


class Pump:
    """One client's lock and link, while it has one; driver.py says how it comes by links."""

    def __init__(self, core: Core, *, returns: bool) -> None:
        """Args:
            core: what the client knows.
            returns: whether a link that is lost may be followed by another one.

        Raises:
            OSError: this process has no descriptor left.
            InvalidValue: the environment says how long to look, and that cannot be.
        """
        self._looking = Looking(environment.look_ns())
        self.core = core
        self._returns = returns
        self._lock_anew()
        self._link: Link | None = None
        self._session: Session | None = None
        self._wire: Wire = UNLINKED
        self._pumping = False
        self._followers = 0
        self._last_wait = time.monotonic()
        self._closing = False
        # Whether the keeper is about to look after batches by itself, so that it need not be woken for each one.
        self._keeper_watches = False
        self._wake = Wakeup()
        self._keeper_wake = Wakeup()
        core.bell = self._wake if AVAILABLE and self._wake.identity else None

    def run(self, operation: Coroutine[object, None, T]) -> T:
        """Runs an operation that is written once for both kinds of client; here every wait in it blocks.

        The operation runs under the lock, which its waits give up.
        """
        with self.lock:
            try:
                operation.send(None)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            except BaseException:
                # What was given up may be what somebody else waits for.
                self.wake_waiters()
                raise
            finally:
                operation.close()
        raise AssertionError("an operation of a synchronous client waited for something else than a signal")

    async def wait(self, signal: Signal, timeout_s: float | None, what: str) -> None:
        """Waits, under the lock, until a signal is ready; see operations.Driver."""
        self.block(signal, timeout_s, what)

    async def pause(self, seconds: float) -> bool:
        """Sleeps under the lock, which is given up meanwhile; see operations.Driver."""
        self.core.before_waiting()
        self.flush()
        self.lock.release()
        try:
            time.sleep(seconds)
        finally:
            self.lock.acquire()
        # What is waited for may have come by the socket as well, from readers without a line.
        self._read_all()
        if self._followers:
            self._condition.notify_all()
        return True

    def block(self, signal: Signal, timeout_s: float | None, what: str) -> None:
        """As `wait`. The lock is held by the caller and is given up meanwhile."""
        self.core.before_waiting()
        self.flush(waits=True)
        if signal.ready or (self._read_lines() and signal.ready):
            return
        deadline = None if timeout_s is None else time.monotonic() + seconds(timeout_s)
        while not signal.ready:
            remaining_s = None if deadline is None else deadline - time.monotonic()
            if remaining_s is not None and remaining_s <= 0:
                # What has arrived meanwhile counts.
                self._read_all()
                if signal.ready:
                    break
                raise TimeoutError(what, timeout_s or 0.0)
            if self._pumping or self._link is None:
                self._followers += 1
                try:
                    self._condition.wait(remaining_s)
                finally:
                    self._followers -= 1
            else:
                self._pump(remaining_s)
        self._last_wait = monotonic_ns() / 1e9

    def flush(self, waits: bool = False) -> None:
        """Sends what waits as far as the link takes it. The lock is held.

        Args:
            waits: the caller is about to poll itself; otherwise somebody else has to send what is left.
        """
        session, outgoing = self._session, self.core.outgoing
        if session is None:
            return
        try:
            if session.flush(self._wire):
                if outgoing.streams.finishing or not outgoing.link_room.ready:
                    outgoing.link_drained()
            elif self._pumping:
                # Whoever polls has to poll for writing as well.
                self._wake.set()
            elif not waits:
                self._keeper_wake.set()
        except ConnectionClosed as error:
            self._lose(error)
        except BaseException:
            self._lose(ConnectionClosed(INTERRUPTED))
            raise

    def batch_opened(self) -> None:
        """A batch has to leave within the batch window even if nothing else happens."""
        if not self._keeper_watches:
            self._keeper_watches = True
            self._keeper_wake.set()
            if self._pumping:
                self._wake.set()

    def call(self, function: Callable[[], None]) -> None:
        """Calls a function of another thread's under the lock, and sends what it has to say."""
        with self.lock:
            function()
            self.flush()
            self.wake_waiters()

    def notify(self) -> None:
        """Makes whoever waits look again."""
        with self.lock:
            self.wake_waiters()

    def wake_waiters(self) -> None:
        """As `notify`; the lock is held."""
        self._condition.notify_all()
        self._wake.set()

    def _pump(self, timeout_s: float | None) -> None:
        """Polls once and reads what is there. The lock is held, and given up while polling."""
        session, lines = self._session, self.core.lines
        assert session is not None
        began_ns = 0
        if lines.count:
            # Who has followers may have publishers too, who would have to wait for the lock.
            if (not self._followers and self._looking.look(lines)) or not lines.sleeps():
                self._read_lines()
                return
            began_ns = monotonic_ns()
        events = _WRITABLE | _READABLE if session.has_unsent() else _READABLE
        self._pumping = True
        self.lock.release()
        try:
            found = wait_for_either(self._descriptor, events, self._wake.descriptor, timeout_s)
        finally:
            self.lock.acquire()
            self._pumping = False
        woken = found & _SECOND
        if woken:
            self._wake.clear()
        took = self._read_lines(wakes=True)
        if began_ns:
            self._looking.slept(monotonic_ns() - began_ns, took)
        if (found & _FIRST or (woken and not took)) and session is self._session:
            if events != _READABLE:
                self.flush()
            # What others wait for may come behind a large message.
            self._read_all(ahead=self._followers > 0)
        if self._followers:
            self._condition.notify_all()

    def _read_lines(self, wakes: bool = False) -> bool:
        """Reads what has come on lines; says whether something had. The lock is held, by whatever thread."""
        lines = self.core.lines
        if lines.count and wakes:
            lines.wakes()
        if not lines.count or not lines.read(monotonic_ns()):
            return False
        if self._session is not None and self._session.has_unsent():
            self.flush()
        if self._followers:
            self._condition.notify_all()
        return True

    def _read_all(self, ahead: bool = True) -> None:
        """Reads until nothing is there, unless another thread is about to. The lock is held."""
        self._read_lines()
        if self._session is not None and not self._pumping:
            self._read(self._session, ahead)

    def publishes(self) -> None:
        """Somebody publishes message after message and need not wait: reads now and then what comes of that, or the
        keeper would, at each moment at which there is something. The lock is held."""
        if monotonic_ns() / 1e9 - self._last_wait > READ_S:
            self.read_arrived()

    def read_arrived(self) -> None:
        """Reads until nothing is there, also while another thread polls. The lock is held."""
        self._last_wait = monotonic_ns() / 1e9
        self._read_lines()
        if self._session is not None:
            self._read(self._session, True)
            if self._pumping or self._followers:
                # What they wait for may be among it.
                self.wake_waiters()

    def _read(self, session: Session, ahead: bool) -> None:
        wire, incoming, assembled = self._wire, self.core.incoming, self.core.incoming.assembled
        try:
            for _ in range(_READS_MAX):
                buffers = session.receive_buffers()
                size = wire.receive_into(buffers)
                if not size:
                    break
                session.received(size, monotonic_ns(), self.core)
                # A short read has emptied the socket; asking again would only cost a system call. Whoever waits for a
                # large message takes it while it is in the processor's cache, and the next one may have its memory.
                short = size < _SHORT_READ_BYTES and size < len(buffers[0])
                if short or session.failure is not None or (incoming.assembled != assembled and not ahead):
                    break
        except ConnectionClosed as error:
            self._lose(error)
            return
        except BaseException:
            self._lose(ConnectionClosed(INTERRUPTED))
            raise
        if session.has_unsent():
            self.flush()
        if session.failure is not None:
            self._check_session(session)

    def _check_session(self, session: Session) -> None:
        """Gives the connection up when its session has failed or is over. The lock is held."""
        failure = session.failure
        if failure is not None and (session.phase is Phase.CLOSED or not self._closing):
            self._lose(ConnectionClosed.by(failure))

    def _adopt(self, link: Link) -> None:
        self._link, self._session, connection = link, link.session, link.connection
        self._wire, self._descriptor = connection.wire, connection.fileno()
        self.core.places.connected(link.local_host, private=connection.private)
        self.core.connected(link.session, link.welcome)
        for received in link.early:
            self.core.receive(received, 0)
        self.flush()

    def _detach(self) -> Link | None:
        """Lets go of the link, and returns it."""
        link, self._link = self._link, None
        self._session, self._wire = None, UNLINKED
        return link

    def _lose(self, error: ConnectionClosed) -> None:
        """The connection is gone. The lock is held."""
        link = self._detach()
        if link is None:
            return
        link.session.lost(error)
        if self._closing or not self._returns or error.code == Code.DENIED:
            self.core.close(error)
        else:
            self.core.disconnected(error)
        # Only now: as long as it is open, nobody writes to the memory that arrays of this session lie in.
        link.connection.close()
        self._condition.notify_all()
        self._wake.set()
        self._keeper_wake.set()
        # Last: Ctrl-C may come while it is written, and everybody has heard of it by then.
        log.warning("connection.closed name=%r broker=%s cause=%s", self.core.name, link.connection.peer_address, error)

    def _shut(self, error: BrokerError) -> None:
        """Ends for good. The lock is held."""
        self._closing = True
        link = self._detach()
        self.core.close(error)
        if link is not None:
            link.connection.close()
        self._condition.notify_all()
        self._wake.set()
        self._keeper_wake.set()

    def _lock_anew(self) -> None:
        self.lock = Lock()
        self._condition = Condition(self.lock)

    def _close_wakes(self) -> None:
        self._wake.close()
        self._keeper_wake.close()
