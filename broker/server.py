"""The daemon: sockets in, BrokerState in the middle, sockets out. The only place with an event loop.

Everything runs on one thread. A readable connection is read once, its frames go through the state, and then every
session that has something to send is flushed as far as its link takes it; what a link does not take waits, in the
state's bounded queues, until the link is writable. No connection ever waits for another one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from broker.clock import monotonic_ns
from broker.config import Config
from broker.errors import ConnectionClosed, LimitExceeded, PermissionDenied, ProtocolError
from broker.histograms import Histogram
from broker.ids import SessionId
from broker.limits import CLOSE_TIMEOUT_S, LINGERING_MAX, TURNS_UNMEASURED
from broker.protocol.bodies import Hello
from broker.protocol.codes import Code
from broker.protocol.receiver import Deliver, Received, Receiver
from broker.protocol.session import Phase
from broker.security.permissions import Permissions
from broker.security.quotas import Quotas
from broker.server_admission import Admission
from broker.server_endings import Endings
from broker.server_scarcity import Scarcity
from broker.server_seat import Seat
from broker.server_settings import settings_of
from broker.server_strangers import Strangers
from broker.state.arrivals import Stranger
from broker.state.broker_state import BrokerState
from broker.state.records import SessionRecord
from broker.transport import registry
from broker.transport.base import Connection, Listener
from broker.transport.hangups import Hangups
from broker.transport.sockets import SocketListener

log = logging.getLogger(__name__)

_OPEN, _CLOSED = Phase.OPEN, Phase.CLOSED
_UNMEASURED = TURNS_UNMEASURED
TICK_S: Final = 0.05
READS_AT_ONCE: Final = 2
"""Of one connection before the others have their turn: all of a message of some 100 KiB."""
_READS_AT_ONCE = READS_AT_ONCE
READS_MAX: Final = 64
"""Reads in a row of a connection that has failed; the next tick goes on."""
ACCEPT_PAUSE_S: Final = 0.2
"""After the process has run out of descriptors: when to try again."""


class _Heard(Receiver):
    """Lets the state hear what a session says."""

    __slots__ = ("_record", "_state")

    def __init__(self, state: BrokerState, record: SessionRecord) -> None:
        self._state = state
        self._record = record

    def receive(self, received: Received, now_ns: int) -> None:
        self._state.receive(self._record, received, now_ns)


class _Link:
    """A session and its connection."""

    __slots__ = ("closing_since_ns", "connection", "deliver", "one_signal", "record", "wire", "writing")

    def __init__(self, connection: Connection, record: SessionRecord, deliver: Deliver) -> None:
        self.connection = connection
        self.wire = connection.wire
        self.record = record
        self.deliver = deliver
        self.one_signal = connection.sends_when_readable
        self.writing = False
        self.closing_since_ns = 0


class Server:
    """A broker that listens.

    Attributes:
        state: what it knows.
        listeners: where it listens.
        admission: who is let in.
        turns: how long it takes from when a connection has something to read until that has been passed on.
    """

    def __init__(self, config: Config, seat: Seat | None = None) -> None:
        """Args:
        config: the settings.
        seat: of one of several workers; None where the broker is one.
        """
        self.config = config
        self._seat = seat
        self.admission = Admission(config)
        self.state = BrokerState(settings_of(config, self.admission.audit, seat))
        self._scarcity = Scarcity(self.state, config.memory_max_bytes)
        self._strangers = Strangers(self.state.arrivals, self._scarcity, self._let_in, seat)
        self.listeners: list[Listener] = []
        self.started_ns = time.monotonic_ns()
        self.turns = Histogram()
        self._turn = 0
        self._measures = config.latency_metrics
        self.idle = asyncio.Event()
        """Set while no session is open."""
        self.idle.set()
        self.busy = asyncio.Event()
        """Set once the first session has been open."""
        self._accept_paused = False
        self._going_on = False
        self._links: dict[SessionId, _Link] = {}
        self._endings = Endings(self.state, self._links)
        self._hangups: Hangups[_Link] = Hangups()
        # Sessions that are over, of processes that may still read shared memory: until they close their ends.
        self._reading: Hangups[_Link] = Hangups()
        self._loop = asyncio.get_running_loop()
        self._ticking: asyncio.TimerHandle | None = None
        self.state.wake = self._wake_at

    def start(self, addresses: Sequence[str]) -> None:
        """Listens on all addresses; from here on sessions are served.

        Raises:
            InvalidValue: an address is malformed or of an unknown scheme.
            ListenError: an address cannot be listened on, or strangers could get in there. Nothing is left listening.
        """
        try:
            if self._seat is not None:
                # Whoever has bound the addresses has asked whether they may be.
                self.listeners += self._seat.listeners
            else:
                for address in self.admission.places(addresses):
                    self.listeners.append(registry.listen(address))
            self.admission.listening(self.listeners)
        except BaseException:
            self._stop_listening()
            raise
        self._strangers.start(self.listeners)
        for listener in self.listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
            listener.stays_watched()
        paths = (listener.address.path for listener in self.listeners if listener.address.scheme == "unix")
        self.state.local_path = next(paths, "")
        # Options name files of this host.
        self.state.addresses = [str(replace(listener.address, options=())) for listener in self.listeners]
        # The process of an embedded broker is the application's, and so is its memory.
        if any(listener.address.scheme != "inproc" for listener in self.listeners):
            self._scarcity.watch_memory()
        self._tick()

    def retire(self) -> bool:
        """Stops listening if no session is open and nobody waits to be accepted; says whether it did."""
        if self._links:
            return False
        for listener in list(self.listeners):
            descriptor = listener.fileno()
            if not listener.retire():
                return False
            self._loop.remove_reader(descriptor)
            self.listeners.remove(listener)
        return True

    async def stop(self, reason: str = "the broker is shutting down") -> None:
        """Ends in order: no new sessions, and every open one gets what waits for it and a CLOSE.

        A session that does not read within the drain time-out is cut off. Cancelling leaves sessions open; call again.
        """
        self._stop_listening()
        self._strangers.close()
        self.state.drain(reason)
        self._run()
        try:
            async with asyncio.timeout(self.config.drain_timeout_s):
                await self.idle.wait()
        except TimeoutError:
            log.warning("server.drain_timeout sessions=%d", len(self._links))
        for link in list(self._links.values()):
            self._close(link, abort=True)
        for link in self._reading.owners:
            self._let_go(link)
        if self._ticking is not None:
            self._ticking.cancel()
        self._scarcity.close()
        self.admission.close()

    def reload(self) -> None:
        """Reads certificates, revocations and tokens again, and ends the sessions of those that are revoked."""
        self.admission.reload()
        for link in list(self._links.values()):
            cause = self.admission.withdrawn(link.record.identity)
            if cause:
                link.record.session.fail(ProtocolError(cause, Code.DENIED))
                self._flush(link)
        self._run()

    def _stop_listening(self) -> None:
        for listener in self.listeners:
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self.listeners.clear()

    # Connections.

    def _accept(self, listener: Listener) -> None:
        """Accepts one, and then the others have their turn: when thousands come, they would wait for all of these."""
        connection = None
        try:
            if isinstance(listener, SocketListener) and self._strangers.wait_at(listener):
                came = self._strangers.accept(listener)
            else:
                connection = listener.accept()
                came = connection is not None
        except LimitExceeded as error:
            if not self._accept_paused:
                log.error("server.accept_paused cause=%s", error)
            self._accept_paused = True
            self._loop.remove_reader(listener.fileno())
            self._loop.call_later(ACCEPT_PAUSE_S, self._accept_again, listener)
            return
        except ConnectionClosed as error:
            log.error("server.accept_failed cause=%s", error)
            return
        if came:
            self._accept_paused = False
        if connection is not None:
            self._let_in(listener, connection, None)

    def _let_in(self, listener: Listener, connection: Connection, stranger: Stranger | None) -> None:
        """A session begins, of somebody who has just come or was a stranger until now."""
        now_ns = time.monotonic_ns()
        record = self.state.connect(connection.peer_address, now_ns, connection.passage, stranger=stranger)
        if connection.lends:
            record.session.lend = self.state.pool.counted(connection.lend)
        self._scarcity.accepted(record, connection.fileno(), now_ns)
        link = self._links[record.id] = _Link(connection, record, _Heard(self.state, record))
        link.deliver = partial(self._greeted, link, listener)
        self.idle.clear()
        self.busy.set()
        self._loop.add_reader(connection.fileno(), self._readable, link)
        self._hangups.add(connection.fileno(), link)
        if stranger is None:
            self._run()
        else:
            self._readable(link)  # What they have said is there.

    def _greeted(self, link: _Link, listener: Listener, received: Received, now_ns: int) -> None:
        """The first that a session says: whoever says hello is let in, or not."""
        record = link.record
        link.deliver = _Heard(self.state, record)
        if not isinstance(received, Hello):
            self.state.receive(record, received, now_ns)
            return
        problem = self._seat.problem(received) if self._seat is not None else ""
        if problem:
            record.session.refuse(Code.VERSION, problem)
            return
        try:
            self.admission.admit(listener, link.connection, record, received)
        except PermissionDenied as error:
            record.session.refuse(Code.DENIED, str(error))
            return
        self.state.receive(record, received, now_ns)
        if record.session.phase is _OPEN:
            self.admission.opened(record)

    def _accept_again(self, listener: Listener) -> None:
        if listener in self.listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _readable(self, link: _Link) -> None:
        self._turn += 1
        if not self._measures or self._turn & _UNMEASURED:
            self._read(link)
            return
        began_ns = monotonic_ns()
        self._read(link)
        self.turns.observe(monotonic_ns() - began_ns)

    def _read(self, link: _Link) -> None:
        record = link.record
        session = record.session
        try:
            for _ in range(_READS_AT_ONCE):
                buffers = session.receive_buffers()
                room = len(buffers[0]) if len(buffers) == 1 else len(buffers[0]) + len(buffers[1])
                size = link.wire.receive_into(buffers)
                if size:
                    session.received(size, monotonic_ns(), link.deliver)
                # Where a read has left room there is nothing more. After a full one there is: with what completes a
                # chunk its readers are woken once, and not by its first half already.
                if size < room:
                    break
        except ConnectionClosed as error:
            session.lost(error)
            self._close(link)
            self._run()
            return
        except Exception:
            # A fault of the broker's own ends the session that has shown it, and no other one.
            log.exception("session.fault id=%d name=%r peer=%s", record.id, record.name, record.peer)
            session.fail(ProtocolError("the broker has a fault here, which is in its log", Code.INTERNAL))
        if link.writing and link.one_signal:
            self._flush(link)
        if session.phase is not _OPEN:
            self._flush(link)
        self._run()

    def _run(self) -> None:
        """Carries out the state's instructions."""
        links, state = self._links, self.state
        while state.ready.records:
            for record in state.take_ready():
                link = links.get(record.id)
                if link is not None and not link.writing:
                    self._flush(link)
        if state.has_more() and not self._going_on:
            self._going_on = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        self.state.go_on(time.monotonic_ns())
        self._run()

    def _flush(self, link: _Link) -> None:
        """Sends as much as the link takes."""
        session = link.record.session
        try:
            if not session.flush(link.wire):
                if not link.writing:
                    link.writing = True
                    if not link.one_signal:
                        self._loop.add_writer(link.connection.fileno(), self._writable, link)
                return
        except ConnectionClosed as error:
            self._hear_last_words(link)
            session.lost(error)
        if link.writing:
            link.writing = False
            self._loop.remove_writer(link.connection.fileno())
        if session.phase is _CLOSED:
            self._close(link)

    def _hear_last_words(self, link: _Link) -> None:
        """Its peer takes nothing any more, as it has closed; what it said before that still counts."""
        session = link.record.session
        try:
            for _ in range(READS_MAX):
                size = link.wire.receive_into(session.receive_buffers())
                if not size or session.phase is not _OPEN:
                    return
                session.received(size, monotonic_ns(), link.deliver)
        except ConnectionClosed:
            return
        except Exception:
            log.exception("session.fault id=%d name=%r peer=%s", link.record.id, link.record.name, link.record.peer)

    def _writable(self, link: _Link) -> None:
        self._flush(link)
        self._run()

    def _close(self, link: _Link, abort: bool = False) -> None:
        record = link.record
        if self._links.pop(record.id, None) is None:
            return
        descriptor = link.connection.fileno()
        self._hangups.remove(descriptor)
        self._loop.remove_reader(descriptor)
        self._loop.remove_writer(descriptor)
        reads_on = self.state.still_reads(record)
        if reads_on:
            link.connection.end_sending()
            self._reading.add(descriptor, link)
        elif abort:
            link.connection.abort()
        else:
            link.connection.close()
        now_ns = time.monotonic_ns()
        self._note_end(record, now_ns)
        self.state.disconnect(record.id, now_ns, reads_on=reads_on)
        if reads_on:
            self._look_for_ends()
        if not self._links:
            self.idle.set()

    def _note_end(self, record: SessionRecord, now_ns: int) -> None:
        cause = record.session.failure
        denied = isinstance(cause, (ConnectionClosed, ProtocolError)) and cause.code == Code.DENIED
        if record.name:
            level, words = logging.WARNING if denied else logging.INFO, "session.closed id=%d name=%r peer=%s cause=%s"
            log.log(level, words, record.id, record.name, record.peer, cause)
            self.admission.closed(record)
            return
        if isinstance(cause, ConnectionClosed) and cause.code == Code.MOVED:
            # A client on its way to a session at the nearer address, which has its own lines.
            log.debug("session.moved peer=%s cause=%s", record.peer, cause)
            return
        self._scarcity.never_opened(record, record.session.received_bytes, cause, now_ns, denied=denied)
        if denied and not record.session.received_bytes:
            # Whoever has said hello was refused there; this one did not come so far.
            self.admission.refused(record, "", str(cause))

    def _look_for_ends(self) -> None:
        """Those that have closed their ends read nothing any more, or copies."""
        for link in self._reading.find():
            self._let_go(link)
        while len(self._reading) > LINGERING_MAX:
            self._let_go(self._reading.owners[0])

    def _let_go(self, link: _Link) -> None:
        self._reading.remove(link.connection.fileno())
        link.connection.close()
        if link.record.shares is not None:
            link.record.shares.leases.clear()

    def _read_to_the_end(self, link: _Link) -> None:
        """Reads what is left of a connection that has failed; the loop may not tell of it any more."""
        for _ in range(READS_MAX):
            if link.record.id not in self._links:
                return
            self._readable(link)

    def _is_ending(self, link: _Link) -> None:
        """Its process will not say anything more, and closes its end when the kernel has given its memory back."""
        self._hear_last_words(link)
        link.record.session.lost(ConnectionClosed("its process is ending"))
        self._close(link)

    def _shed(self, record: SessionRecord) -> None:
        """Closes a session at once: it does not read."""
        link = self._links.get(record.id)
        if link is not None:
            self._close(link, abort=True)

    def _wake_at(self, at_ns: int) -> None:
        """A collective has a deadline between two ticks."""
        self._loop.call_later(max(0.0, (at_ns - time.monotonic_ns()) / 1e9), self._end_collectives, at_ns)

    def replace_permissions(self, permissions: Permissions) -> None:
        """From now on sessions may do what these say, also those that are open."""
        self.state.replace_permissions(permissions)
        self._run()

    def replace_quotas(self, quotas: Mapping[str, Quotas]) -> None:
        """From now on tenants have these, also those that are there."""
        self.state.replace_quotas(quotas)
        self._run()

    def _end_collectives(self, at_ns: int) -> None:
        now_ns = time.monotonic_ns()
        if now_ns < at_ns:
            # The loop counts in milliseconds, and may be early.
            self._wake_at(at_ns)
            return
        self.state.end_due(now_ns)
        self._run()

    def _tick(self) -> None:
        try:
            self._look_around(time.monotonic_ns())
        except Exception:
            # A fault of the broker's own costs this tick, and not all that come after it.
            log.exception("server.fault")
        finally:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def _look_around(self, now_ns: int) -> None:
        """What is due now and then, whether somebody says something or not."""
        # Clocks are set, at the start of a machine as a rule, and the monotonic one stands while it is suspended.
        wall_offset_ns = time.time_ns() - now_ns
        for tenant in self.state.tenants.values():
            tenant.wall_offset_ns = wall_offset_ns
        for link in self._hangups.find():
            self._read_to_the_end(link)
        self._look_for_ends()
        if self.admission.changed(now_ns):
            self.reload()
        self._scarcity.tick(now_ns, self._shed)
        self.state.tick(now_ns)
        for link in self._endings.find(now_ns):
            self._is_ending(link)
        self._strangers.go_on()
        self._run()
        for link in list(self._links.values()):
            if link.record.session.phase is Phase.CLOSING:
                link.closing_since_ns = link.closing_since_ns or now_ns
                if now_ns - link.closing_since_ns > CLOSE_TIMEOUT_S * 1e9:
                    self._close(link, abort=True)
        self._run()

    def __repr__(self) -> str:
        return f"<Server listeners={[str(listener.address) for listener in self.listeners]} {self.state!r}>"
