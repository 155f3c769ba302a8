"""Drives non-blocking connections from one thread, for the tests of this folder."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence

from broker.buffers import Buffer
from broker.errors import ConnectionClosed
from broker.transport import Address, Connection, Listener, registry

PATIENCE_S = 60.0
"""No wait of these tests takes this long unless something is broken."""

_opening: set[Connection] = set()
"""Dialled connections that may be opening still: one thread is both ends, so whoever waits goes on with that too."""


def connect(address: str | Address, timeout_s: float) -> Connection:
    """Dials."""
    connection = registry.connect(address, timeout_s)
    if connection.opening:
        _opening.add(connection)
    return connection


def is_ready(fileno: int, event: int, timeout_s: float = 0.0) -> bool:
    """Whether a descriptor reports an event (or an error or hang-up, which count as any) within a time."""
    poll = select.poll()
    poll.register(fileno, event)
    return bool(poll.poll(timeout_s * 1000))


def wait_readable(end: Connection | Listener) -> None:
    poll = select.poll()
    poll.register(end.fileno(), select.POLLIN)
    _opening.difference_update([other for other in _opening if other.closed])
    others = {other.fileno(): other for other in _opening if other is not end}
    for fileno in others:
        poll.register(fileno, select.POLLIN)
    while True:
        ready = {fileno for fileno, _ in poll.poll(PATIENCE_S * 1000)}
        assert ready, f"{end} did not become readable"
        for fileno in ready & others.keys():
            others[fileno].receive_into([])
            if not others[fileno].opening:
                poll.unregister(fileno)
                _opening.discard(others.pop(fileno))
        if end.fileno() in ready:
            return


def open_both(dialled: Connection, accepted: Connection) -> None:
    """Lets both ends agree on how to speak, where they have to."""
    while dialled.opening or accepted.opening:
        wait_readable(accepted if accepted.opening else dialled)
        for end in (accepted, dialled):
            end.receive_into([])
    _opening.discard(dialled)


def writable(end: Connection) -> int:
    """The event that says that a connection can send."""
    return select.POLLIN if end.sends_when_readable else select.POLLOUT


def wait_writable(end: Connection) -> None:
    assert is_ready(end.fileno(), writable(end), PATIENCE_S), f"{end} did not become writable"


def accept(listener: Listener) -> Connection:
    """Accepts one; that the listener is ready may be spurious."""
    while True:
        wait_readable(listener)
        connection = listener.accept()
        if connection is not None:
            return connection


def rest_of(buffers: Sequence[Buffer], sent_bytes: int) -> list[Buffer]:
    """What is left of flat buffers after a partial send."""
    left: list[Buffer] = []
    for buffer in buffers:
        skipped = min(sent_bytes, len(buffer))
        sent_bytes -= skipped
        if skipped < len(buffer):
            left.append(memoryview(buffer)[skipped:])
    return left


def send_all(connection: Connection, buffers: Sequence[Buffer]) -> None:
    """Sends everything to a peer that has room for it."""
    left = rest_of(buffers, 0)
    while left := rest_of(left, connection.send(left)):
        wait_writable(connection)


def send_for_ever(connection: Connection) -> None:
    """Sends until it raises: a peer that is gone may say so only after the first bytes have reached it."""
    while True:
        if connection.send([b"x"]):
            # What has room may stay ready: only an error or a hang-up counts.
            is_ready(connection.fileno(), 0, 0.005)
        else:
            wait_writable(connection)


def fill(connection: Connection) -> bytes:
    """Sends until nothing more is accepted; returns what was.

    A peer's kernel may still take some of it a moment later, which makes room again.
    """
    accepted = bytearray()
    block = os.urandom(100_003)
    refused = 0
    while refused < 3:
        sent_bytes = connection.send([block])
        accepted += block[:sent_bytes]
        refused = 0 if sent_bytes else refused + 1
        if refused:
            is_ready(connection.fileno(), writable(connection), 0.05)
    return bytes(accepted)


def receive_exactly(connection: Connection, total_bytes: int) -> bytes:
    """Receives a number of bytes, not one more."""
    received = bytearray(total_bytes)
    room = memoryview(received)
    while room:
        wait_readable(connection)
        room = room[connection.receive_into([room]) :]
    return bytes(received)


def receive_until_closed(connection: Connection) -> tuple[bytes, ConnectionClosed]:
    """Receives all there is until the peer's end, and returns it with the error that told of the end."""
    received = bytearray()
    room = memoryview(bytearray(65_536))
    while True:
        wait_readable(connection)
        try:
            received += room[: connection.receive_into([room])]
        except ConnectionClosed as error:
            return bytes(received), error


def exchange(sender: Connection, receiver: Connection, payload: Buffer, into: memoryview) -> None:
    """Moves a payload of any length with both ends driven by one poll."""
    left, room = memoryview(payload), into
    left = left[sender.send([left]) :]
    poll = select.poll()
    poll.register(sender.fileno(), writable(sender))
    poll.register(receiver.fileno(), select.POLLIN)
    while room:
        ready = {fileno for fileno, _ in poll.poll(PATIENCE_S * 1000)}
        assert ready, f"{len(room)} bytes did not arrive"
        if sender.fileno() in ready and left:
            left = left[sender.send([left]) :]
            if not left:
                poll.unregister(sender.fileno())
        if receiver.fileno() in ready:
            room = room[receiver.receive_into([room]) :]
