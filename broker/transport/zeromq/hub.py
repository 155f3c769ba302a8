"""The end that listens: one ROUTER socket, and a stream for each peer that has opened one.

ROUTER puts in front of each message who sent it, and takes in front of each message who is to get it. It does not say
that a peer has gone. So a monitor tells which link has ended, and then a message that says nothing new is sent there: a
ROUTER that must deliver (ROUTER_MANDATORY) refuses it once everything that came from there was read.

Whoever is called first when ZeroMQ has something takes in all of it, for all streams. Their descriptors include the
ROUTER's, so that each of them can be waited for alone; a broker with many peers would be woken as often as it has
peers. When it waits for the listener anyway (`Listener.stays_watched`), the listener's alone includes the ROUTER's.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Final

import zmq

from broker.buffers import Buffer
from broker.errors import ConnectionClosed
from broker.limits import LISTEN_BACKLOG
from broker.transport.addresses import Address
from broker.transport.base import Connection, Listener
from broker.transport.readiness import Readiness
from broker.transport.zeromq.bounds import PUMP_MESSAGES_MAX, STRANGERS_MAX
from broker.transport.zeromq.dealer import end_monitor, read_event
from broker.transport.zeromq.messages import HEADER, VERSION, Kind, Malformed, read_header, reset
from broker.transport.zeromq.sockets import end_of, has_input
from broker.transport.zeromq.stream import PeerGone, Stream, put_parts

log = logging.getLogger(__name__)

_OPEN, _DATA = int(Kind.OPEN), int(Kind.DATA)
_NOTHING_NEW: Final = HEADER.pack(Kind.GRANT, 0)
_PROBES_MAX: Final = 64
"""How often a peer is probed whose link has ended, before it counts as gone: another link may have taken its name."""
_MONITOR_EVERY: Final = 16
"""Of so many times that ZeroMQ had messages, the monitor is looked at once; and whenever it had none."""
_STRANGE: Final[dict[int, str]] = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "it does not speak ZeroMQ",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "it does not speak ZeroMQ as it is spoken here, or not with our CURVE keys",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "its keys are not accepted",
    zmq.EVENT_ACCEPT_FAILED: "it cannot be accepted; this process may be out of descriptors (ulimit -n)",
}
MONITORED: Final = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | sum(_STRANGE)
_CLOSING_MS: Final = 2000


class RouterStream(Stream):
    """A connection that was accepted."""

    __slots__ = ("_hub", "identity", "link", "probes")

    def __init__(
        self, hub: Hub, readiness: Readiness, local_address: str, peer_address: str, identity: bytes, link: int
    ) -> None:
        super().__init__(hub.lock, readiness, local_address, peer_address)
        self._hub = hub
        self.identity = identity
        self.link = link
        self.probes = 0

    @property
    def lends(self) -> bool:
        return True

    def _put(self, parts: Sequence[Buffer]) -> None:
        self._hub.put(self.identity, parts)

    def _pump(self) -> None:
        self._hub.pump()

    def _let_go(self, *, linger: bool) -> None:
        self._hub.forget(self)

    def is_gone(self) -> bool:
        """Whether the peer cannot be reached any more. Under the lock."""
        self.probes += 1
        try:
            self._put((_NOTHING_NEW,))
        except PeerGone:
            return True
        return False

    def gone(self) -> None:
        """The peer has gone. Under the lock."""
        self._peer_gone()

    def include(self, descriptor: int) -> None:
        """Wakes its owner also when another descriptor is readable."""
        self._readiness.include(descriptor)

    def exclude(self, descriptor: int) -> None:
        """Does so no more."""
        self._readiness.exclude(descriptor)

    def disown(self) -> None:
        if not self._closed:
            self._closed = True
            self._readiness.close()


class Hub:
    """A ROUTER and its streams. All but `stop_listening` is called under the lock."""

    def __init__(self, socket: zmq.Socket[bytes], address: Address) -> None:
        """Args:
        socket: a ROUTER, bound; the hub owns it from here on.
        address: where it listens.
        """
        self.lock = threading.Lock()
        self.waiting: deque[RouterStream] = deque()
        self.wakes = Readiness()
        """ZeroMQ has something, or there was too much of it for one time."""
        self._accepting: Readiness | None = None
        self._watched = False
        self._socket = socket
        self._address = address
        self._monitor = socket.get_monitor_socket(MONITORED)
        self.wakes.include(socket.fileno())
        self.wakes.include(self._monitor.fileno())
        self._streams: dict[bytes, RouterStream] = {}
        self._by_link: dict[int, RouterStream] = {}
        self._doubtful: set[RouterStream] = set()
        self._told: dict[bytes, None] = {}
        self._pumps = 0
        self._listener_ended = False

    # For streams.

    def put(self, identity: bytes, parts: Sequence[Buffer]) -> None:
        """Sends a message to a peer.

        Raises:
            PeerGone: it has no link any more.
        """
        try:
            self._socket.send(identity, zmq.NOBLOCK | zmq.SNDMORE)
        except zmq.ZMQError as error:
            raise PeerGone from error
        put_parts(self._socket, parts, passes_on=True)

    def forget(self, stream: RouterStream) -> None:
        """A stream was closed."""
        if not self._watched:
            stream.exclude(self.wakes.fileno())
        if self._streams.get(stream.identity) is stream:
            del self._streams[stream.identity]
        if self._by_link.get(stream.link) is stream:
            del self._by_link[stream.link]
        self._doubtful.discard(stream)
        if self._accepting is None and not self._streams:
            self._close()
        else:
            # What was put last may have taken ZeroMQ's note of something for the others.
            self.wakes.set()

    # For the listener.

    def accept_with(self, accepting: Readiness) -> None:
        """Sets this while a stream waits to be accepted."""
        self._accepting = accepting
        accepting.include(self.wakes.fileno())

    def watch(self) -> None:
        """The listener's descriptor is waited for: the streams need not look at the ROUTER's."""
        if not self._watched:
            self._watched = True
            for stream in self._streams.values():
                stream.exclude(self.wakes.fileno())

    def stop_listening(self) -> None:
        """Takes no more streams; ends those that wait, and itself when there are no others."""
        with self.lock:
            accepting, self._accepting = self._accepting, None
            if accepting is None:
                return
            accepting.exclude(self.wakes.fileno())
            if self._watched:
                self._watched = False
                for stream in self._streams.values():
                    stream.include(self.wakes.fileno())
            waiting = list(self.waiting)
            self.waiting.clear()
            last = not self._streams
        for stream in waiting:
            stream.abort()
        if last:
            self._close()

    def _close(self) -> None:
        self.wakes.close()
        # Not before: the links of a listener end with it. ZeroMQ closes the listening socket on its own thread, and
        # until then nobody else can have the address.
        self._socket.unbind(self._socket.get_string(zmq.LAST_ENDPOINT))
        while not self._listener_ended and self._monitor.poll(_CLOSING_MS):
            self._read_monitor()
        end_monitor(self._socket, self._monitor)
        self._socket.close()

    # ZeroMQ in.

    def pump(self) -> None:
        """Takes in what has come, for all streams."""
        socket = self._socket
        self.wakes.set(False)
        taken, burst = 0, 1
        while has_input(socket):
            for _ in range(burst):
                try:
                    identity = socket.recv(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._take(identity)
                taken += 1
            burst = 64
            if taken >= PUMP_MESSAGES_MAX:
                self.wakes.set()
                break
        self._pumps += 1
        if not taken or self._pumps % _MONITOR_EVERY == 0:
            self._read_monitor()
        if self._doubtful:
            self._probe()

    def _take(self, identity: bytes) -> None:
        socket = self._socket
        part = socket.recv(zmq.NOBLOCK, copy=False)
        first, parts = part, [part.buffer]
        while part.more:
            part = socket.recv(zmq.NOBLOCK, copy=False)
            parts.append(part.buffer)
        stream = self._streams.get(identity)
        try:
            kind, position = read_header(parts[0])
            if kind == _OPEN:
                self._opened(identity, position, first)
            elif stream is not None:
                stream.arrived(kind, position, parts)
            elif kind == _DATA:
                self._answer(identity, "there is no connection; it was closed, or never opened")
        except Malformed as error:
            if stream is not None:
                log.warning("zeromq.fault peer=%s cause=%s", stream.peer_address, error)
                stream.break_off(str(error))
            else:
                self._stranger(identity, first, str(error))

    def _opened(self, identity: bytes, version: int, message: zmq.Frame) -> None:
        if version != VERSION:
            raise Malformed(f"it opens with {version.to_bytes(8, 'little')!r}, not {VERSION.to_bytes(8, 'little')!r}")
        before = self._streams.get(identity)
        if before is not None:
            before.break_off("the peer has opened another connection")
        if self._accepting is None or len(self.waiting) >= LISTEN_BACKLOG:
            full = f"{len(self.waiting)} connections wait to be accepted already"
            self._answer(identity, "the broker does not listen any more" if self._accepting is None else full)
            return
        link = _link_of(message)
        if link < 0:
            raise Malformed("it speaks a version of ZMTP before 3")
        # So that what it says of this number afterwards is about this link, and not one before it.
        self._read_monitor()
        try:
            readiness = Readiness()
        except OSError as error:
            log.error("zeromq.refused address=%s cause=%s: raise it with ulimit -n", self._address, error)
            self._answer(identity, "the broker may open no more files")
            return
        peer_address = end_of(link, self._address.scheme, peer=True)
        stream = RouterStream(self, readiness, str(self._address), peer_address, identity, link)
        if not self._watched:
            stream.include(self.wakes.fileno())
        self._streams[identity] = self._by_link[link] = stream
        self.waiting.append(stream)
        self._accepting.set()

    def _answer(self, identity: bytes, reason: str) -> None:
        try:
            self.put(identity, (reset(reason),))
        except PeerGone:
            log.debug("zeromq.unanswered reason=%s", reason)

    def _stranger(self, identity: bytes, message: zmq.Frame, problem: str) -> None:
        if identity not in self._told:
            while len(self._told) >= STRANGERS_MAX:
                del self._told[next(iter(self._told))]
            self._told[identity] = None
            peer = end_of(_link_of(message), self._address.scheme, peer=True)
            log.warning("zeromq.stranger address=%s peer=%s cause=%s", self._address, peer, problem)
            self._answer(identity, f"this is a tensorbus broker: {problem}")

    # Those who went away.

    def _read_monitor(self) -> None:
        while has_input(self._monitor):
            event, value = read_event(self._monitor)
            if event == zmq.EVENT_CLOSED:
                self._listener_ended = True
            elif event == zmq.EVENT_DISCONNECTED:
                stream = self._by_link.pop(value, None)
                if stream is not None:
                    self._doubtful.add(stream)
            else:
                log.warning("zeromq.stranger address=%s cause=%s", self._address, _STRANGE.get(event, str(event)))

    def _probe(self) -> None:
        for stream in list(self._doubtful):
            if stream.is_gone() or stream.probes >= _PROBES_MAX:
                stream.gone()
                self._doubtful.discard(stream)
        if self._doubtful or has_input(self._socket):
            self.wakes.set()

    def __repr__(self) -> str:
        return f"<Hub address={self._address} streams={len(self._streams)} waiting={len(self.waiting)}>"


def _link_of(message: zmq.Frame) -> int:
    """The descriptor of the link by which a message came; -1 when its peer is too old for ZeroMQ to say."""
    try:
        return int(message.get(zmq.SRCFD))
    except zmq.ZMQError:
        return -1


class RouterListener(Listener):
    """Accepts the streams of a hub."""

    __slots__ = ("_address", "_hub", "_readiness")

    def __init__(self, hub: Hub, address: Address) -> None:
        """Args:
        hub: listens; this is its only listener.
        address: the one to dial.
        """
        self._hub = hub
        self._address = address
        self._readiness = Readiness()
        hub.accept_with(self._readiness)

    @property
    def address(self) -> Address:
        return self._address

    def fileno(self) -> int:
        return self._readiness.fileno()

    def stays_watched(self) -> None:
        with self._hub.lock:
            self._hub.watch()

    def accept(self) -> Connection | None:
        if self.fileno() < 0:
            raise ConnectionClosed("the listener was closed on this side")
        hub = self._hub
        with hub.lock:
            if not hub.waiting:
                hub.pump()
            stream = hub.waiting.popleft() if hub.waiting else None
            self._readiness.set(bool(hub.waiting))
            return stream

    def close(self) -> None:
        self._hub.stop_listening()
        self._readiness.close()
