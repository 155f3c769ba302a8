"""NATS with nats-py, on uvloop.

Without threads, the loop runs in the calling thread and only while something is waited for, and loops over messages are
coroutines and callbacks of nats-py, so that no switch of threads and no start of the loop is charged to a message. With
threads, one thread of the process runs the loop.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from bench.contestant import (
    Bus,
    Contestant,
    Handler,
    Payload,
    Publisher,
    Requester,
    Responder,
    Subscriber,
    Tensor,
    WorkQueue,
)
from bench.peers import launch
from bench.peers.queued import QueuedSubscriber

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

PAYLOAD_BYTES_MAX: Final = 64 << 20
"""The most that the server lets max_payload be."""
PIECE_BYTES: Final = 1 << 20
"""The server's max_payload when nothing is configured."""
PENDING_BYTES_MAX: Final = 2 << 30
"""What the server holds for a client that does not keep up, before it cuts it off."""
UNFLUSHED_BYTES_MAX: Final = 16 << 20
"""What is published in large messages before a flush: its round trip is then no part of their time."""
UNFLUSHED_PIECES_MAX: Final = 2
"""The same in pieces: few, because what has left waits in front of a control message, wherever it lies."""
FETCH: Final = 64
"""Jobs that a worker asks for at once."""

T = TypeVar("T")


async def tell(error: Exception) -> None:
    """Leaves a word of what happened on a connection for the report of the step."""
    print(f"nats: {error!r}", file=sys.stderr, flush=True)


@functools.cache
def shared_loop() -> asyncio.AbstractEventLoop:
    """A loop that a thread of its own runs."""
    import uvloop

    loop = uvloop.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


class NatsPublisher(Publisher):
    """Publishes on a bus's connection."""

    def __init__(self, bus: NatsBus, topic: str) -> None:
        self._bus = bus
        self._connection = bus.connection
        self._topic = topic
        self._unflushed_bytes = 0

    async def _send(self, payload: Payload) -> None:
        await self._connection.publish(self._topic, payload)  # type: ignore[arg-type]
        while self._bus.pauses and self._connection.pending_data_size:
            await asyncio.sleep(0)

    async def _send_paced(self, cycle: Sequence[bytes], count: int, rate_hz: float, delay_s: float) -> list[int]:
        """As broker.measuring.pacing.send_paced."""
        clock, length, interval_ns = time.monotonic_ns, len(cycle), 1e9 / rate_hz
        publish, topic = self._connection.publish, self._topic
        began_ns = []
        start_ns = clock() + int(delay_s * 1e9)
        for index in range(count):
            due_ns = start_ns + int(index * interval_ns)
            now_ns = clock()
            if now_ns < due_ns:
                await asyncio.sleep((due_ns - now_ns) / 1e9)
                due_ns = clock()
            await publish(topic, cycle[index % length])
            began_ns.append(due_ns)
        return began_ns

    async def _send_many(self, payloads: Sequence[bytes]) -> None:
        publish, topic = self._connection.publish, self._topic
        for payload in payloads:
            await publish(topic, payload)
        await self._connection.flush()

    async def _send_tensor(self, data: memoryview) -> None:
        for start in range(0, len(data), self._bus.piece_bytes):
            piece = data[start : start + self._bus.piece_bytes]
            await self._connection.publish(self._topic, piece)  # type: ignore[arg-type]
            self._unflushed_bytes += len(piece)
            if self._unflushed_bytes >= self._bus.unflushed_bytes_max:
                self._unflushed_bytes = 0
                await self._connection.flush()

    def send(self, payload: bytes) -> None:
        self._bus.run(self._send(payload))

    def send_paced(self, cycle: Sequence[bytes], count: int, rate_hz: float, delay_s: float) -> list[int]:
        return self._bus.run(self._send_paced(cycle, count, rate_hz, delay_s))

    def send_many(self, payloads: Sequence[bytes]) -> None:
        self._bus.run(self._send_many(payloads))

    def send_tensor(self, tensor: Tensor) -> None:
        self._bus.run(self._send_tensor(tensor.data.cast("B")))

    def flush(self) -> None:
        self._bus.run(self._connection.flush(timeout=30))


class NatsSubscriber(Subscriber):
    """Messages come to a callback of nats-py while this thread runs the loop."""

    def __init__(self, bus: NatsBus, topic: str) -> None:
        self._bus = bus
        self._payloads: deque[bytes] = deque()
        self._take: Callable[[Payload], bool] | None = None
        self._taken_all: asyncio.Future[None] | None = None
        self._waits = False
        bus.subscribe(topic, self._arrived)

    async def _arrived(self, message: Msg) -> None:
        if self._take is None or self._taken_all is None:
            self._payloads.append(message.data)
            if self._waits:
                # Once only: what is left of a second stop would end the loop's next run.
                self._waits = False
                self._bus.loop.stop()
            return
        try:
            if self._take(message.data):
                self._take = None
                self._taken_all.set_result(None)
        except BaseException as error:
            self._take = None
            self._taken_all.set_exception(error)

    def each(self, take: Callable[[Payload], bool]) -> None:
        while self._payloads:
            if take(self._payloads.popleft()):
                return
        self._take, self._taken_all = take, self._bus.loop.create_future()
        self._bus.loop.run_until_complete(self._taken_all)

    def _wait(self) -> None:
        self._waits = True
        self._bus.loop.run_forever()

    def receive(self) -> Payload:
        while not self._payloads:
            self._wait()
        return self._payloads.popleft()

    def receive_many(self) -> Iterator[Payload]:
        payloads = self._payloads
        while True:
            while payloads:
                yield payloads.popleft()
            self._wait()

    def receive_tensor(self) -> Tensor:
        return np.frombuffer(self.receive(), np.float32)


class Joiner:
    """Puts pieces together again, in the order in which they come, to messages of one size."""

    def __init__(self, size_bytes: int, function: Handler) -> None:
        self._size_bytes = size_bytes
        self._function = function
        self._filled_bytes = 0
        self._whole = memoryview(b"")

    def put(self, piece: bytes) -> None:
        """Takes the next piece, and passes the message on that it completes."""
        if not self._filled_bytes:
            # A reader may still look at the last one.
            self._whole = np.empty(self._size_bytes, np.uint8).data
        end = self._filled_bytes + len(piece)
        self._whole[self._filled_bytes : end] = piece
        self._filled_bytes = end % self._size_bytes
        if not self._filled_bytes:
            self._function(self._whole)


class NatsResponder(Responder):
    """Answers in a callback of nats-py."""

    def __init__(self, bus: NatsBus, topic: str) -> None:
        self._bus = bus
        self._left = 0
        self._served_all: asyncio.Future[None] = bus.loop.create_future()
        bus.subscribe(topic, self._reply)

    async def _reply(self, message: Msg) -> None:
        await message.respond(message.data)
        self._left -= 1
        if not self._left:
            self._served_all.set_result(None)

    def serve(self, count: int) -> None:
        self._left = count
        self._bus.loop.run_until_complete(self._served_all)
        self._bus.run(self._bus.connection.flush())


class NatsWorkQueue(WorkQueue):
    """A JetStream stream in memory that keeps each job until it is acknowledged, and a pull consumer."""

    def __init__(self, bus: NatsBus, name: str) -> None:
        self._bus = bus
        self._name = name
        self._stream = bus.connection.jetstream()
        self._subscription: Any = None
        self._jobs: deque[Msg] = deque()
        self._done: list[Msg] = []
        bus.run(self._declare())

    async def _declare(self) -> None:
        from nats.js.api import RetentionPolicy, StorageType, StreamConfig

        config = StreamConfig(
            name="jobs", subjects=[self._name], retention=RetentionPolicy.WORK_QUEUE, storage=StorageType.MEMORY
        )
        await self._stream.add_stream(config)

    async def _put_many(self, payloads: Sequence[bytes]) -> None:
        await asyncio.gather(*[await self._stream.publish_async(self._name, payload) for payload in payloads])

    async def _fetch(self, timeout_s: float) -> None:
        while self._done:
            await self._done.pop().ack()
        if self._subscription is None:
            self._subscription = await self._stream.pull_subscribe(self._name, durable="workers", stream="jobs")
        try:
            self._jobs.extend(await self._subscription.fetch(FETCH, timeout=timeout_s))
        except TimeoutError:
            return

    def put_many(self, payloads: Sequence[bytes]) -> None:
        self._bus.run(self._put_many(payloads))

    def take(self, timeout_s: float) -> Payload | None:
        if not self._jobs:
            self._bus.run(self._fetch(timeout_s))
        if not self._jobs:
            return None
        self._done.append(self._jobs.popleft())
        return self._done[-1].data

    def acknowledge(self) -> None:
        """With the next fetch, in one run of the loop."""


class NatsBus(Bus):
    """One connection.

    Attributes:
        loop: the connection's.
        pauses: whether the loop stands still between calls, so that a call has to see what it sends off.
        piece_bytes: the longest message that the server takes; longer ones travel in pieces.
        unflushed_bytes_max: what is published of large messages before a flush.
        connection: nats-py's client.
    """

    def __init__(self, address: str, piece_bytes: int, *, threads: bool) -> None:
        import nats
        import uvloop

        self.piece_bytes = piece_bytes
        self.unflushed_bytes_max = min(UNFLUSHED_BYTES_MAX, UNFLUSHED_PIECES_MAX * piece_bytes)
        self.pauses = not threads
        self.loop = shared_loop() if threads else uvloop.new_event_loop()
        url = address.replace("tcp:", "nats:")
        self.connection: Client = self.run(nats.connect(url, allow_reconnect=False, error_cb=tell))

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and waits for its result."""
        if not self.pauses:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()
        return self.loop.run_until_complete(coroutine)

    def subscribe(self, topic: str, arrived: Callable[[Msg], Coroutine[Any, Any, None]]) -> None:
        """Subscribes without bounds in the client; the server knows of it when this returns."""
        self.run(self.connection.subscribe(topic, cb=arrived, pending_msgs_limit=0, pending_bytes_limit=0))
        for _ in range(2):
            self.run(self.connection.flush())

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return NatsPublisher(self, topic)

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        if self.pauses:
            return NatsSubscriber(self, topic)
        subscriber = QueuedSubscriber()
        self.handle(topic, size_bytes, subscriber.put)
        return subscriber

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        take = function if size_bytes <= self.piece_bytes else Joiner(size_bytes, function).put

        async def arrived(message: Msg) -> None:
            take(message.data)

        self.subscribe(topic, arrived)

    def hold(self, topics: Sequence[str]) -> None:
        async def subscribe() -> None:
            for topic in topics:
                await self.connection.subscribe(topic, cb=self._ignore)

        self.run(subscribe())
        for _ in range(2):
            self.run(self.connection.flush(timeout=30))

    async def _ignore(self, message: Msg) -> None:
        """Nobody publishes there."""

    def responder(self, topic: str, size_bytes: int) -> Responder:
        return NatsResponder(self, topic)

    def requester(self, topic: str, size_bytes: int) -> Requester:
        def request(payload: bytes) -> Payload:
            return self.run(self.connection.request(topic, payload, timeout=30)).data

        return request

    def work_queue(self, name: str) -> WorkQueue:
        return NatsWorkQueue(self, name)

    def close(self) -> None:
        self.run(self.connection.drain())


class Nats(Contestant):
    """nats-server, with messages as long as it allows; it has no Unix sockets.

    The variant `bounded` holds less for a client that does not keep up. `pieces` has the server's default for the
    longest message, so arrays travel in pieces, which other messages can pass between; it is for `threads=True`.
    """

    transports = ("tcp",)
    is_peer = True
    imports = ("nats", "uvloop")

    def __init__(self, pending_bytes_max: int | None = None, *, pieces: bool = False) -> None:
        self.name = "nats/bounded" if pending_bytes_max else "nats/pieces" if pieces else "nats"
        self._pending_bytes_max = pending_bytes_max or PENDING_BYTES_MAX
        self._payload_bytes_max = min(PIECE_BYTES if pieces else PAYLOAD_BYTES_MAX, self._pending_bytes_max)
        self.message_bytes_max = None if pieces else self._payload_bytes_max

    def missing(self) -> str:
        return launch.missing({"nats-server": "nats-server"}, {"nats": "nats-py"})

    def versions(self) -> dict[str, str]:
        return launch.versions({"nats-server": "--version"}, ["nats-py"])

    def broker_command(self, address: str, directory: Path) -> list[str]:
        free = launch.free_address(address)
        host, port = launch.host_and_port(free)
        config = directory / "nats.conf"
        config.write_text(
            f"host: {host}\nport: {port}\n"
            f"max_payload: {self._payload_bytes_max}\n"
            f"max_pending: {self._pending_bytes_max}\n"
            f'write_deadline: "60s"\njetstream: {{ store_dir: "{directory}/jetstream" }}\n'
        )
        server = launch.program("nats-server") or "nats-server"
        return [sys.executable, "-m", "bench.peers.launch", free, server, "-c", str(config)]

    def connect(self, address: str, *, threads: bool = False) -> NatsBus:
        return NatsBus(address, self._payload_bytes_max, threads=threads)
