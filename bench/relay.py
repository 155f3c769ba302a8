"""The bare byte relay: the least that a broker in Python can do, and so the yardstick of the benchmarks.

A client says its role and the four bytes of its channel, and then publishers send bytes and subscribers get them.
The relay never looks at the bytes: no frames, no topics, no queues but the sockets'. It only stops reading a channel's
publishers while one of the channel's subscribers does not read, or it would collect a gigabyte.

    role 'P' channel c  ->  bytes ...                 forwarded to every subscriber of the channel
    role 'S' channel c  <-  'k' when registered, then bytes ...

Its clients are blocking sockets. Records have a fixed size that both ends know, so that nothing is parsed there either.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from bench.contestant import Bus, Contestant, Handler, Payload, Publisher, Requester, Responder, Subscriber, Tensor
from broker.transport.tcp import unpace

SOCKET_BUFFER_BYTES = 1 << 20
"""Of Unix sockets, whose default makes writer and reader take turns; TCP's grow by themselves."""
HELLO_BYTES = 5
READ_BYTES = 1 << 18
JOIN_BYTES = 1 << 16
"""Small records are joined to this much before they are sent: the size of a batch of tensorbus."""


class Channel:
    """Publishers and subscribers that are connected to each other."""

    def __init__(self) -> None:
        self.publishers: set[asyncio.Transport] = set()
        self.subscribers: list[asyncio.Transport] = []
        self.full = 0

    def hold(self) -> None:
        """A subscriber does not keep up."""
        self.full += 1
        for publisher in self.publishers:
            publisher.pause_reading()

    def release(self) -> None:
        """A subscriber has caught up or is gone."""
        self.full -= 1
        if not self.full:
            for publisher in self.publishers:
                publisher.resume_reading()


class Peer(asyncio.Protocol):
    """One connection of the relay."""

    def __init__(self, channels: defaultdict[bytes, Channel]) -> None:
        self._channels = channels
        self._channel: Channel | None = None
        self._subscribers: list[asyncio.Transport] = []
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are Transports in all but their base class.
        self._transport = cast(asyncio.Transport, transport)
        enlarge(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        if self._channel is None:
            data = self._introduce(data)
        for subscriber in self._subscribers:
            subscriber.write(data)

    def _introduce(self, data: bytes) -> bytes:
        """Takes the hello, which a client sends in one call and which is too short to arrive in parts."""
        self._channel = channel = self._channels[data[1:HELLO_BYTES]]
        if data[:1] == b"S":
            channel.subscribers.append(self._transport)
            self._transport.write(b"k")
            return b""
        channel.publishers.add(self._transport)
        self._subscribers = channel.subscribers
        return data[HELLO_BYTES:]

    def pause_writing(self) -> None:
        assert self._channel is not None
        self._full = True
        self._channel.hold()

    def resume_writing(self) -> None:
        assert self._channel is not None
        self._full = False
        self._channel.release()

    def connection_lost(self, error: Exception | None) -> None:
        if self._channel is None:
            return
        self._channel.publishers.discard(self._transport)
        if self._transport in self._channel.subscribers:
            self._channel.subscribers.remove(self._transport)
        if self._full:
            self._channel.release()


async def serve(address: str) -> None:
    """Relays until the process is ended."""
    loop = asyncio.get_running_loop()
    channels: defaultdict[bytes, Channel] = defaultdict(Channel)
    scheme, _, rest = address.partition("://")
    if scheme == "unix":
        server = await loop.create_unix_server(lambda: Peer(channels), rest)
    else:
        host, _, port = rest.rpartition(":")
        server = await loop.create_server(lambda: Peer(channels), host, int(port))
        address = f"tcp://{host}:{server.sockets[0].getsockname()[1]}"
    print(f"listening on {address}", flush=True)
    await server.serve_forever()


def enlarge(sock: socket.socket) -> None:
    """Prepares a socket for speed."""
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    else:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # What any broker could do is the yardstick's too.
        unpace(sock)


def dial(address: str, role: bytes, topic: str) -> socket.socket:
    """Connects a publisher or a subscriber."""
    scheme, _, rest = address.partition("://")
    if scheme == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(rest)
    else:
        host, _, port = rest.rpartition(":")
        sock = socket.create_connection((host, int(port)))
    enlarge(sock)
    sock.sendall(role + zlib.crc32(topic.encode()).to_bytes(HELLO_BYTES - 1, "little"))
    if role == b"S":
        sock.recv(1)
    return sock


class RelayPublisher(Publisher):
    """Writes records to a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, payload: bytes) -> None:
        self._sock.sendall(payload)

    def send_many(self, payloads: Sequence[bytes]) -> None:
        # An application has its messages one by one, so they are gathered one by one.
        join_messages = max(1, JOIN_BYTES // len(payloads[0]))
        gathered: list[bytes] = []
        for payload in payloads:
            gathered.append(payload)
            if len(gathered) == join_messages:
                self._sock.sendall(b"".join(gathered))
                gathered.clear()
        self._sock.sendall(b"".join(gathered))

    def send_tensor(self, tensor: Tensor) -> None:
        self._sock.sendall(tensor.data.cast("B"))

    def flush(self) -> None:
        """What sendall has returned from has left."""


class RelaySubscriber(Subscriber):
    """Reads records from a blocking socket."""

    def __init__(self, sock: socket.socket, size_bytes: int) -> None:
        self._sock = sock
        self._size_bytes = size_bytes
        self._record = memoryview(bytearray(size_bytes))
        self._tensor = np.frombuffer(self._record[: size_bytes // 4 * 4], np.float32)

    def receive(self) -> Payload:
        receive_exactly(self._sock, self._record)
        return self._record

    def receive_many(self) -> Iterator[Payload]:
        size, rest, receive = self._size_bytes, b"", self._sock.recv
        while True:
            data = receive(READ_BYTES)
            if not data:
                raise ConnectionError("the relay has closed the connection")
            if rest:
                data = rest + data
            whole = len(data) // size * size
            for start in range(0, whole, size):
                yield data[start : start + size]
            rest = data[whole:]

    def receive_tensor(self) -> Tensor:
        receive_exactly(self._sock, self._record)
        return self._tensor


class RelayResponder(Responder):
    """Sends back what comes."""

    def __init__(self, subscriber: Subscriber, publisher: Publisher) -> None:
        self._subscriber = subscriber
        self._publisher = publisher

    def serve(self, count: int) -> None:
        for _ in range(count):
            self._publisher.send(self._subscriber.receive())  # type: ignore[arg-type]


def receive_exactly(sock: socket.socket, record: memoryview) -> None:
    """Fills a buffer, with one call where the kernel can."""
    received = sock.recv_into(record, 0, socket.MSG_WAITALL)
    while received < len(record):
        size = sock.recv_into(record[received:], 0, socket.MSG_WAITALL)
        if not size:
            raise ConnectionError("the relay has closed the connection")
        received += size


class RelayBus(Bus):
    """Each topic is a channel, named by its checksum, with a socket for each publisher and subscriber."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._sockets: list[socket.socket] = []

    def _dial(self, role: bytes, topic: str) -> socket.socket:
        sock = dial(self._address, role, topic)
        self._sockets.append(sock)
        return sock

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return RelayPublisher(self._dial(b"P", topic))

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        return RelaySubscriber(self._dial(b"S", topic), size_bytes)

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        subscriber = RelaySubscriber(self._dial(b"S", topic), size_bytes)

        def read() -> None:
            while True:
                function(subscriber.receive())

        threading.Thread(target=read, daemon=True).start()

    def responder(self, topic: str, size_bytes: int) -> Responder:
        return RelayResponder(self.subscriber(topic, size_bytes), self.publisher(f"{topic}/reply"))

    def requester(self, topic: str, size_bytes: int) -> Requester:
        replies, requests = self.subscriber(f"{topic}/reply", size_bytes), self.publisher(topic)

        def request(payload: bytes) -> Payload:
            requests.send(payload)
            return replies.receive()

        return request

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


class Relay(Contestant):
    """The bare byte relay on uvloop. It does not know where a record ends, so those of two publishers would mix."""

    name = "relay"
    publishers_max = 1

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-m", "bench.relay", address]

    def connect(self, address: str, *, threads: bool = False) -> Bus:
        return RelayBus(address)


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
