"""The inproc transport: `inproc://name`, a broker inside this very process.

Its bytes go through a kernel socket pair, so an end of it is waited for like any other connection, and the two ends may
belong to different threads and event loops. A process-wide table says who listens at which name.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from typing import Final

from broker.errors import BrokerError, ConnectError, ConnectionClosed, ListenError
from broker.limits import LISTEN_BACKLOG
from broker.transport.addresses import Address
from broker.transport.base import Connection, Listener, Transport
from broker.transport.descriptors import LocalConnection
from broker.transport.embedding import broker_factory
from broker.transport.registry import register
from broker.transport.sockets import connect_error, enlarge_send_buffer, listen_error

_DIALLED: Final = "inproc:client"
"""The address of an end that has no name."""

_listeners: Final[dict[str, InprocListener]] = {}
_table_lock: Final = threading.Lock()
"""Held for the table and for every listener's queue, so that nobody is put in the queue of one that has just closed."""

_factory_lock: Final = threading.Lock()
"""Held while a factory runs: of several threads that dial a name first, one starts its broker."""


class InprocTransport(Transport):
    """Streams within this process."""

    __slots__ = ()

    @property
    def scheme(self) -> str:
        return "inproc"

    def connect(self, address: Address, timeout_s: float) -> Connection:
        listener = _listeners.get(address.name) or _start_broker(address)
        while True:
            try:
                return self._connect(address, listener, timeout_s)
            except ConnectError:
                # A broker that ended just now leaves its name to the next one, which is started on demand as well.
                following = _listeners.get(address.name) if broker_factory() is None else _start_broker(address)
                if following is None or following is listener:
                    raise
                listener = following

    def _connect(self, address: Address, listener: InprocListener, timeout_s: float) -> Connection:
        try:
            near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            raise connect_error(address, error, timeout_s) from error
        enlarge_send_buffer(near)
        enlarge_send_buffer(far)
        connection = LocalConnection(near, _DIALLED, str(address))
        try:
            listener.offer(LocalConnection(far, str(address), _DIALLED))
        except ConnectError:
            connection.close()
            raise
        return connection

    def listen(self, address: Address) -> Listener:
        with _table_lock:
            if address.name in _listeners:
                raise ListenError(str(address), "the name is in use in this process; choose another one")
            try:
                listener = InprocListener(address)
            except OSError as error:
                raise listen_error(address, error) from error
            _listeners[address.name] = listener
        return listener


class InprocListener(Listener):
    """The connections that wait at a name; an eventfd is readable while there is one."""

    __slots__ = ("_address", "_event", "_waiting")

    def __init__(self, address: Address) -> None:
        self._address = address
        self._waiting: deque[Connection] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def address(self) -> Address:
        return self._address

    def fileno(self) -> int:
        return self._event

    def offer(self, connection: Connection) -> None:
        """Lets a connection wait to be accepted; any thread may call. The listener owns it then.

        Raises:
            ConnectError: the listener has closed or too many wait already; the connection was closed.
        """
        with _table_lock:
            if self._event >= 0 and len(self._waiting) < LISTEN_BACKLOG:
                self._waiting.append(connection)
                os.eventfd_write(self._event, 1)
                return
        connection.close()
        closed = self._event < 0
        raise ConnectError(
            str(self._address),
            "its listener has just closed" if closed else f"{LISTEN_BACKLOG} connections wait to be accepted already",
        )

    def accept(self) -> Connection | None:
        with _table_lock:
            if self._event < 0:
                raise ConnectionClosed("the listener was closed on this side")
            if not self._waiting:
                return None
            connection = self._waiting.popleft()
            if not self._waiting:
                os.eventfd_read(self._event)
            return connection

    def retire(self) -> bool:
        # Under the lock that a dialler takes to wait here, so that nobody is cut off.
        with _table_lock:
            if self._waiting:
                return False
            self._close()
        return True

    def close(self) -> None:
        with _table_lock:
            self._close()
        while self._waiting:
            self._waiting.popleft().close()

    def _close(self) -> None:
        if self._event >= 0:
            del _listeners[self._address.name]
            os.close(self._event)
            self._event = -1

    def __repr__(self) -> str:
        state = "CLOSED" if self._event < 0 else "OPEN"
        return f"<Listener {state} address={self._address} fd={self._event} waiting={len(self._waiting)}>"


def _start_broker(address: Address) -> InprocListener:
    with _factory_lock:
        listener = _listeners.get(address.name)
        if listener is not None:
            return listener
        factory = broker_factory()
        if factory is None:
            raise ConnectError(str(address), "nobody listens at that name in this process; start a broker there first")
        try:
            factory(address.name)
        except BrokerError as error:
            raise ConnectError(str(address), f"its broker could not be started: {error}") from error
        listener = _listeners.get(address.name)
    if listener is None:
        raise ConnectError(str(address), "the broker that was started for it does not listen there")
    return listener


register(InprocTransport())
