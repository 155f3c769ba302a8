"""Bare UCXX through a relay in a process of its own: what passes messages on with UCX and nothing else.

A client tells the relay over a TCP connection what it is and where its worker is found. From then on publishers send
tagged messages to the relay's worker, the tag being the channel, and the relay sends each one to the channel's
subscribers, out of the buffer into which it was received. UCX chooses between eager and rendezvous. All use the
low-level interface in its blocking mode, which is the fastest one that does not burn a core.

The variant `ucxx` handles errors of endpoints, as UCXX does by default; UCX then leaves its shared memory out. The
variant `ucxx/unhandled` does not: it is what UCX can do on one host, in a relay that may end with a peer that dies.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import zlib
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.contestant import Bus, Contestant, Handler, Payload, Publisher, Subscriber, Tensor
from bench.peers import launch

MODULE: Final = "bench.peers.ucxx"
HELLO: Final = struct.Struct("<cIH")
"""P or S, the channel, and the length of the worker's address, which follows."""
LENGTH: Final = struct.Struct("<H")
UNDER_WAY_BYTES: Final = 256 << 20
"""What the relay has received and not passed on, at most: enough to receive one array while it sends another."""
AHEAD_MESSAGES: Final = 64
"""What a publisher has under way."""


class Worker:
    """A worker of UCX of its own."""

    def __init__(self, *, handled: bool) -> None:
        # UCX warns on standard output, where a worker's results go.
        os.environ.setdefault("UCX_LOG_LEVEL", "error")
        from ucxx._lib import libucxx
        from ucxx._lib.arr import Array

        self.library, self.array = libucxx, Array
        context = libucxx.UCXContext({}, (libucxx.Feature.TAG, libucxx.Feature.WAKEUP))
        self.worker = libucxx.UCXWorker(context)
        self.worker.init_blocking_progress_mode()
        self.address: bytes = libucxx.UCXAddress.create_from_worker(self.worker).tobytes()
        self.poll = select.poll()
        self.poll.register(self.worker.epoll_file_descriptor, select.POLLIN)
        self._handled = handled

    def endpoint(self, address: bytes) -> Any:
        """The way to another worker."""
        found = self.library.UCXAddress.create_from_buffer(address)
        return self.library.UCXEndpoint.create_from_worker_address(self.worker, found, self._handled)

    def probe(self) -> Any:
        """The next message that has come; `matched` says whether there is one."""
        return self.worker.tag_probe(self.library.UCXXTag(0), self.library.UCXXTagMask(0), True)

    def receive(self, found: Any, room: Any) -> Any:
        """Begins to receive a message that was probed."""
        return self.worker.tag_recv_with_handle(self.array(room), found)

    def turn(self) -> None:
        """Lets UCX do what there is to do, or waits until there is something."""
        self.worker.progress()

    def sleep(self) -> None:
        """Waits until UCX, or another descriptor of `poll`, has something."""
        if self.worker.arm():
            self.poll.poll()

    def wait(self, request: Any) -> None:
        """Waits until a request is completed."""
        while True:
            self.worker.progress()
            if request.completed:
                request.check_error()
                return
            self.sleep()


def read(sock: socket.socket, count: int) -> bytes:
    """So many bytes."""
    return sock.recv(count, socket.MSG_WAITALL)


class Relay:
    """Passes messages on until the process is ended."""

    def __init__(self, listening: socket.socket, *, handled: bool) -> None:
        self._worker = Worker(handled=handled)
        self._listening = listening
        self._worker.poll.register(listening, select.POLLIN)
        self._clients: list[tuple[socket.socket, Any]] = []
        self._subscribers: defaultdict[int, list[Any]] = defaultdict(list)
        self._arriving: deque[tuple[Any, int, Any]] = deque()
        self._leaving: deque[tuple[list[Any], Any]] = deque()
        self._free: defaultdict[int, list[Any]] = defaultdict(list)
        self._under_way_bytes = 0

    def run(self) -> None:
        """Runs until the process is ended."""
        worker = self._worker
        waiting = select.poll()
        waiting.register(self._listening, select.POLLIN)
        while True:
            worker.turn()
            if not self._move():
                if waiting.poll(0):
                    self._accept()
                else:
                    worker.sleep()

    def _accept(self) -> None:
        client, _ = self._listening.accept()
        role, channel, length = HELLO.unpack(read(client, HELLO.size))
        endpoint = self._worker.endpoint(read(client, length))
        if role == b"S":
            self._subscribers[channel].append(endpoint)
        self._clients.append((client, endpoint))
        client.sendall(LENGTH.pack(len(self._worker.address)) + self._worker.address)

    def _move(self) -> bool:
        """Takes what has come and passes on what is there; says whether there was anything."""
        worker, moved = self._worker, False
        while self._under_way_bytes < UNDER_WAY_BYTES and (found := worker.probe()).matched:
            size, moved = found.length, True
            free = self._free[size]
            room = free.pop() if free else np.empty(size, np.uint8)
            self._under_way_bytes += size
            self._arriving.append((worker.receive(found, room), int(found.sender_tag.value), room))
        while self._arriving and self._arriving[0][0].completed:
            request, channel, room = self._arriving.popleft()
            request.check_error()
            tag, moved = worker.library.UCXXTag(0), True
            array = worker.array(room)
            self._leaving.append(([one.tag_send(array, tag) for one in self._subscribers[channel]], room))
        while self._leaving and all(request.completed for request in self._leaving[0][0]):
            _, room = self._leaving.popleft()
            self._under_way_bytes -= room.nbytes
            self._free[room.nbytes].append(room)
            moved = True
        return moved


class Client:
    """A worker and its way to the relay."""

    def __init__(self, address: str, role: bytes, topic: str, *, handled: bool) -> None:
        self.worker = Worker(handled=handled)
        self.channel = zlib.crc32(topic.encode())
        self._sock = socket.create_connection(launch.host_and_port(address))
        own = self.worker.address
        self._sock.sendall(HELLO.pack(role, self.channel, len(own)) + own)
        (length,) = LENGTH.unpack(read(self._sock, LENGTH.size))
        self.endpoint = self.worker.endpoint(read(self._sock, length))

    def close(self) -> None:
        """Lets the relay see its end."""
        self._sock.close()


class UcxxPublisher(Publisher):
    """Sends to the relay."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._tag = client.worker.library.UCXXTag(client.channel)
        self._under_way: deque[tuple[Any, Any]] = deque()

    def _begin(self, payload: Any) -> Any:
        worker = self._client.worker
        request = self._client.endpoint.tag_send(worker.array(payload), self._tag)
        worker.turn()
        return request

    def send(self, payload: bytes) -> None:
        while len(self._under_way) >= AHEAD_MESSAGES:
            self._client.worker.wait(self._under_way.popleft()[0])
        self._under_way.append((self._begin(payload), payload))

    def send_many(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            self.send(payload)

    def send_tensor(self, tensor: Tensor) -> None:
        self._client.worker.wait(self._begin(tensor))

    def flush(self) -> None:
        while self._under_way:
            self._client.worker.wait(self._under_way.popleft()[0])


class UcxxSubscriber(Subscriber):
    """Receives from the relay, in turn into two buffers of its own."""

    def __init__(self, client: Client, size_bytes: int) -> None:
        self._client = client
        self._rooms = deque(np.empty(max(size_bytes, 1), np.uint8) for _ in range(2))

    def _next(self) -> Any:
        worker = self._client.worker
        worker.turn()
        while not (found := worker.probe()).matched:
            worker.sleep()
            worker.turn()
        self._rooms.rotate()
        room = self._rooms[0][: found.length]
        worker.wait(worker.receive(found, room))
        return room

    def receive(self) -> Payload:
        payload: bytes = self._next().tobytes()
        return payload

    def receive_many(self) -> Iterator[Payload]:
        while True:
            yield self.receive()

    def receive_tensor(self) -> Tensor:
        tensor: Tensor = self._next().view(np.float32)
        return tensor


class UcxxBus(Bus):
    """A worker for each publisher and subscriber."""

    def __init__(self, address: str, *, handled: bool) -> None:
        self._address = address
        self._handled = handled
        self._clients: list[Client] = []

    def _client(self, role: bytes, topic: str) -> Client:
        client = Client(self._address, role, topic, handled=self._handled)
        self._clients.append(client)
        return client

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return UcxxPublisher(self._client(b"P", topic))

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        return UcxxSubscriber(self._client(b"S", topic), size_bytes)

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        raise NotImplementedError

    def close(self) -> None:
        for client in self._clients:
            client.close()


class Ucxx(Contestant):
    """A relay of UCXX; see the module for the variants."""

    transports = ("ucx",)
    is_peer = True

    def __init__(self, *, handled: bool = True) -> None:
        self.name = "ucxx" if handled else "ucxx/unhandled"
        self._handled = handled

    def missing(self) -> str:
        return launch.missing({}, {"ucxx": "ucxx-cu12"})

    def versions(self) -> dict[str, str]:
        return launch.versions({}, ["ucxx-cu12", "libucx-cu12"])

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-m", MODULE, str(int(self._handled))]

    def connect(self, address: str, *, threads: bool = False) -> UcxxBus:
        return UcxxBus(address, handled=self._handled)


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(server, handled=sys.argv[1] == "1")
        print(f"listening on tcp://127.0.0.1:{server.getsockname()[1]}", flush=True)
        relay.run()
