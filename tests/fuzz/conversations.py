"""What real clients and a real broker say to each other, of everything that a client can ask for.

A relay stands between the two and keeps the bytes. Over a Unix-domain socket it keeps bytes alone, not the descriptors
beside them: there the clients speak of shared memory, and fall back.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

import clients
from broker.protocol.frames import HEADER, HEADER_BYTES
from broker.protocol.handshake import PREAMBLE, PREAMBLE_BYTES

PATIENCE_S = 30.0


@dataclass
class Conversation:
    """One connection's bytes, of each side."""

    client: bytearray = field(default_factory=bytearray)
    broker: bytearray = field(default_factory=bytearray)


def connect(url: str) -> socket.socket:
    """A connection to a broker at tcp://host:port or unix:///path, without a word said."""
    if url.startswith("unix://"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Not before: with a time-out, Python does not wait where others wait to be accepted.
        sock.connect(url.removeprefix("unix://"))
        sock.settimeout(PATIENCE_S)
        return sock
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


class Relay:
    """Passes on what clients at `url` and a broker say, and keeps it in `conversations`."""

    def __init__(self, broker_url: str, path: Path) -> None:
        """`path`: of the socket at which it listens if the broker does at one."""
        self._broker_url = broker_url
        if broker_url.startswith("unix://"):
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            self._listener.listen()
            self.url = f"unix://{path}"
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.url = "tcp://{}:{}".format(*self._listener.getsockname())
        self.conversations: list[Conversation] = []
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = connect(self._broker_url)
            # The broker ends connections that are silent; nobody else does.
            far.settimeout(None)
            conversation = Conversation()
            self.conversations.append(conversation)
            self._sockets += (near, far)
            for source, target, kept in ((near, far, conversation.client), (far, near, conversation.broker)):
                self._threads.append(threading.Thread(target=_pass_on, args=(source, target, kept)))
                self._threads[-1].start()

    def close(self) -> None:
        """Ends when all connections have."""
        # Closing alone does not wake who waits in accept.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in list(self._threads):
            thread.join(PATIENCE_S)
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _pass_on(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            kept += data
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def record(broker_url: str, folder: Path) -> list[Conversation]:
    """Conversations of all kinds with a broker, which has seen no client yet."""
    with Relay(broker_url, folder / "relay.sock") as relay:
        for talk in (_messages, _large_messages, _jobs, _requests, _declarations, _collectives):
            with clients.connect(relay.url, name="fuzz-a") as bus, clients.connect(relay.url, name="fuzz-b") as other:
                talk(bus, other)
        return relay.conversations


def _messages(bus: clients.Client, other: clients.Client) -> None:
    everything, system = other.subscribe("f/#", queue_messages=4096), other.subscribe("$sys/sessions")
    newest = other.subscribe("f/+", overflow="latest")
    late = other.subscribe("f/+", overflow="drop_oldest", queue_messages=2, max_lag=1)
    bus.publish("f/plain", {"step": 1, "loss": [0.5, None, True, "x" * 40]}, headers={"kind": "first"})
    bus.publish("f/bytes", b"\0\1\2", ack="accepted")
    bus.publish("f/now", 7, lane="control", urgent=True)
    bus.publish("f/later", 8, lane="bulk")
    for number in range(100):
        bus.publish("f/many", number)
    bus.flush(PATIENCE_S)
    for _ in range(104):
        everything.next(PATIENCE_S)
    newest.next(PATIENCE_S)
    late.next(PATIENCE_S)
    with other.subscribe("f/many", replay="all") as again, other.subscribe("f/many", replay=3) as middle:
        again.next(PATIENCE_S)
        middle.next(PATIENCE_S)
    bus.pressure("f/plain", timeout_s=PATIENCE_S)
    for subscription in (everything, system, newest, late):
        subscription.close()


def _large_messages(bus: clients.Client, other: clients.Client) -> None:
    with other.subscribe("f/array") as arrays:
        lent = bus.empty((300, 300), "float32")
        lent[:] = 1.0
        for value in (np.arange(5), np.zeros(400_000, "float64"), lent, {"weight": np.ones((3, 4), "float16")}):
            bus.publish("f/array", value)
            arrays.next(PATIENCE_S)


def _jobs(bus: clients.Client, other: clients.Client) -> None:
    bus.declare("f/jobs", acknowledge=True, lease_s=60.0, max_deliveries=3)
    with other.subscribe("f/jobs", queue_group="workers", queue_messages=4) as jobs:
        for number in range(4):
            bus.publish("f/jobs", number, priority=number)
        jobs.next(PATIENCE_S).ack()
        jobs.next(PATIENCE_S).nack()
        jobs.next(PATIENCE_S).ack()
        other.flush(PATIENCE_S)


def _requests(bus: clients.Client, other: clients.Client) -> None:
    with other.respond("f/double", lambda message: 2 * message.value), other.respond("f/count", _count):
        assert bus.request("f/double", 21, timeout_s=PATIENCE_S).value == 42
        assert len(list(bus.request_many("f/count", 5, timeout_s=PATIENCE_S))) == 5
        with bus.request_many("f/count", 100_000, timeout_s=PATIENCE_S) as replies:
            next(replies)
        bus.flush(PATIENCE_S)
    with suppress(clients.NoResponders):
        bus.request("f/nobody", None, timeout_s=PATIENCE_S)


def _count(message: clients.Message) -> object:
    yield from range(message.value)


def _declarations(bus: clients.Client, other: clients.Client) -> None:
    bus.declare("f/kept/#", retain=True, ring_messages=3, overflow="drop_oldest", lane="bulk")
    bus.declare("f/short", max_message_bytes=10, batch_bytes=0)
    with suppress(clients.LimitExceeded):
        bus.publish("f/short", b"too long for it", ack="accepted")
    bus.publish("f/kept/a", 1, ack="accepted")
    with other.subscribe("f/kept/#", replay="latest") as kept:
        kept.next(PATIENCE_S)
    bus.declare("f/short")


def _collectives(bus: clients.Client, other: clients.Client) -> None:
    def take_part(client: clients.Client, rank: int, schedule: str) -> None:
        with client.group(f"f-{schedule}", world_size=2, rank=rank, schedule=schedule) as group:
            array = np.full(50_000, rank + 1.0, "float32")
            operations: Sequence[Callable[[], object]] = (
                lambda: group.all_reduce(array), lambda: group.broadcast(array, root=0), group.barrier,
                lambda: group.all_gather(np.arange(3)), lambda: group.reduce_scatter(np.arange(8.0)),
            )  # fmt: skip
            for operation in operations:
                # Without the descriptor of its board a member asks for another generation, in which it has none.
                with suppress(clients.GenerationChangedError):
                    operation()
                    continue
                operation()

    _together(lambda: take_part(bus, 0, "star"), lambda: take_part(other, 1, "star"))
    _together(lambda: take_part(bus, 0, "auto"), lambda: take_part(other, 1, "auto"))


def _together(*functions: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * PATIENCE_S)
    if failures:
        raise failures[0]


def split(data: bytes | bytearray) -> tuple[bytes, list[bytes]]:
    """The greeting with which one side begins, and its frames."""
    body_bytes = PREAMBLE.unpack_from(data)[3]
    start = PREAMBLE_BYTES + body_bytes
    greeting, frames = bytes(data[:start]), []
    while start + HEADER_BYTES <= len(data):
        header = HEADER.unpack_from(data, start)
        end = start + HEADER_BYTES + header[8] + header[9]
        frames.append(bytes(data[start:end]))
        start = end
    return greeting, frames


def kinds(conversations: Sequence[Conversation]) -> set[int]:
    """Of all frames that clients have sent."""
    return {frame[0] for conversation in conversations for frame in split(conversation.client)[1]}
