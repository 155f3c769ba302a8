"""Redis publish/subscribe and streams with redis-py and its C parser, hiredis."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.contestant import Bus, Contestant, Handler, Payload, Publisher, Subscriber, Tensor, WorkQueue
from bench.peers import launch
from bench.peers.queued import QueuedSubscriber

if TYPE_CHECKING:
    import redis

PAYLOAD_BYTES_MAX: Final = 512 << 20
"""The server's proto-max-bulk-len."""
READ_BYTES: Final = 1 << 20
"""What one read of the client may take in; its default of 64 KiB makes many small reads of a large message."""
GROUP: Final = "workers"
FETCH: Final = 64
"""Jobs that a worker asks for at once."""


class RedisPublisher(Publisher):
    """PUBLISH, whose reply says how many subscribers it went to."""

    def __init__(self, client: redis.Redis, topic: str) -> None:
        self._client = client
        self._topic = topic

    def send(self, payload: bytes) -> None:
        self._client.publish(self._topic, payload)

    def send_many(self, payloads: Sequence[bytes]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for payload in payloads:
            pipeline.publish(self._topic, payload)
        pipeline.execute()

    def send_tensor(self, tensor: Tensor) -> None:
        self._client.publish(self._topic, tensor.data.cast("B"))  # type: ignore[arg-type]

    def flush(self) -> None:
        """What has been replied to has left."""


def payloads_of(pubsub: Any) -> Iterator[Payload]:
    """The payloads of the messages of a connection's only topic."""
    return (message["data"] for message in pubsub.listen() if message["type"] == "message")


def subscribe(pubsub: Any, topic: str) -> None:
    """Subscribes; the server knows of it when this returns."""
    pubsub.subscribe(topic)
    while pubsub.parse_response(block=True)[0] != b"subscribe":
        pass


class RedisSubscriber(Subscriber):
    """A connection of its own."""

    def __init__(self, pubsub: Any, topic: str) -> None:
        subscribe(pubsub, topic)
        self._payloads = payloads_of(pubsub)

    def receive(self) -> Payload:
        return next(self._payloads)

    def receive_many(self) -> Iterator[Payload]:
        return self._payloads

    def receive_tensor(self) -> Tensor:
        return np.frombuffer(next(self._payloads), np.float32)


class RedisWorkQueue(WorkQueue):
    """A stream with a consumer group; in memory, as all of the server."""

    def __init__(self, client: redis.Redis, name: str) -> None:
        self._client = client
        self._name = name
        self._consumer = str(client.client_id())
        self._jobs: deque[tuple[bytes, dict[bytes, bytes]]] = deque()
        self._done: list[bytes] = []
        self._create_group()

    def _create_group(self) -> None:
        import redis

        try:
            # From the stream's start.
            self._client.xgroup_create(self._name, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            # Whoever comes first creates it.
            if "BUSYGROUP" not in str(error):
                raise

    def put_many(self, payloads: Sequence[bytes]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        for payload in payloads:
            pipeline.xadd(self._name, {b"job": payload})
        pipeline.execute()

    def take(self, timeout_s: float) -> Payload | None:
        if not self._jobs:
            pipeline = self._client.pipeline(transaction=False)
            if self._done:
                pipeline.xack(self._name, GROUP, *self._done)
                self._done.clear()
            pipeline.xreadgroup(GROUP, self._consumer, {self._name: ">"}, count=FETCH, block=int(timeout_s * 1000))
            for _, jobs in pipeline.execute()[-1] or ():
                self._jobs.extend(jobs)
        if not self._jobs:
            return None
        job, fields = self._jobs.popleft()
        self._done.append(job)
        return fields[b"job"]

    def acknowledge(self) -> None:
        """With the next fetch, in one round trip."""


class RedisBus(Bus):
    """One client: a connection for what is published, from its pool one more while another thread waits for a reply,
    and one for each subscriber, or for all of them when threads share it."""

    def __init__(self, address: str, *, threads: bool) -> None:
        import redis

        options: dict[str, Any] = {"protocol": 2, "socket_read_size": READ_BYTES}
        if address.startswith("unix://"):
            self.client = redis.Redis(unix_socket_path=address.removeprefix("unix://"), **options)
        else:
            host, port = launch.host_and_port(address)
            self.client = redis.Redis(host=host, port=port, **options)
        self._shared = self.client.pubsub() if threads else None
        self._handlers: dict[bytes, Handler] = {}

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return RedisPublisher(self.client, topic)

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        if self._shared is None:
            return RedisSubscriber(self.client.pubsub(), topic)
        subscriber = QueuedSubscriber()
        self._add(topic, subscriber.put)
        return subscriber

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        self._add(topic, function)
        threading.Thread(target=self._read, daemon=True).start()

    def _add(self, topic: str, function: Handler) -> None:
        self._handlers[topic.encode()] = function
        subscribe(self._shared, topic)

    def _read(self) -> None:
        assert self._shared is not None
        for message in self._shared.listen():
            self._handlers[message["channel"]](message["data"])

    def hold(self, topics: Sequence[str]) -> None:
        self._holding = self.client.pubsub()
        self._holding.subscribe(*topics)
        for _ in topics:
            self._holding.parse_response(block=True)

    def work_queue(self, name: str) -> WorkQueue:
        return RedisWorkQueue(self.client, name)

    def close(self) -> None:
        self.client.close()


class Redis(Contestant):
    """redis-server without persistence.

    The variant `bounded` holds less for a client that does not keep up; the other one holds anything.
    """

    is_peer = True
    imports = ("redis",)
    message_bytes_max = PAYLOAD_BYTES_MAX

    def __init__(self, pending_bytes_max: int | None = None) -> None:
        self.name = "redis/bounded" if pending_bytes_max else "redis"
        self._pending_bytes_max = pending_bytes_max or 0

    def missing(self) -> str:
        return launch.missing({"redis-server": "redis-server"}, {"redis": "redis", "hiredis": "hiredis"})

    def versions(self) -> dict[str, str]:
        return launch.versions({"redis-server": "--version"}, ["redis", "hiredis"])

    def broker_command(self, address: str, directory: Path) -> list[str]:
        free = launch.free_address(address)
        if free.startswith("unix://"):
            listen = ["--port", "0", "--unixsocket", free.removeprefix("unix://")]
        else:
            host, port = launch.host_and_port(free)
            listen = ["--bind", host, "--port", str(port)]
        server = launch.program("redis-server") or "redis-server"
        limit = ["--client-output-buffer-limit", "pubsub", str(self._pending_bytes_max), "0", "0"]
        keep_nothing = ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        return [sys.executable, "-m", "bench.peers.launch", free, server, *listen, *limit, *keep_nothing]

    def connect(self, address: str, *, threads: bool = False) -> RedisBus:
        return RedisBus(address, threads=threads)
