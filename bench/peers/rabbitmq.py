"""RabbitMQ with pika: AMQP 0-9-1, queues in memory that end with their connection, nothing confirmed or acknowledged.

pika's SelectConnection, whose loop runs in the calling thread and only while something is waited for: so many messages
are written together, which pika's BlockingConnection writes one by one. With threads, one thread runs the loop.

The server needs Erlang's name service, epmd, and would start one that stays; here it gets one of its own, which ends
with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.children import bind
from bench.contestant import Bus, Contestant, Handler, Payload, Publisher, Requester, Responder, Subscriber, Tensor
from bench.peers import launch
from bench.peers.queued import QueuedSubscriber

SERVER: Final = "rabbitmq-server"
PROGRAM: Final = "/usr/lib/rabbitmq/bin/rabbitmq-server"
"""Debian's program of that name on PATH changes the user and stays in front of the server; this one becomes it."""
LIBRARIES: Final = Path("/usr/lib/rabbitmq/lib")
FOLDER: Final = "rabbitmq_server-"
PAYLOAD_BYTES_MAX: Final = 512 << 20
"""The most that the server lets max_message_size be."""
EXCHANGE: Final = "amq.topic"
REPLIES: Final = "amq.rabbitmq.reply-to"
"""The server's direct way back to a requester."""
NAMES_LIMIT_S: Final = 600.0
POLL_S: Final = 0.001


class RabbitmqPublisher(Publisher):
    """Publishes to an exchange of topics."""

    def __init__(self, bus: RabbitmqBus, topic: str) -> None:
        self._bus = bus
        self._topic = topic

    def send(self, payload: bytes) -> None:
        self._bus.do(partial(self._publish, (payload,)))

    def send_many(self, payloads: Sequence[bytes]) -> None:
        self._bus.do(partial(self._publish, payloads))
        self._bus.drain()

    def _publish(self, payloads: Sequence[bytes]) -> None:
        publish, topic = self._bus.channel.basic_publish, self._topic
        for payload in payloads:
            publish(EXCHANGE, topic, payload)

    def send_tensor(self, tensor: Tensor) -> None:
        self.send_many((tensor.tobytes(),))

    def flush(self) -> None:
        self._bus.drain()


class RabbitmqSubscriber(Subscriber):
    """Runs the loop while it waits."""

    def __init__(self, bus: RabbitmqBus, topic: str) -> None:
        self._step = bus.step
        self._payloads: deque[bytes] = deque()
        bus.subscribe(topic, self._payloads.append)

    def receive(self) -> Payload:
        while not self._payloads:
            self._step()
        return self._payloads.popleft()

    def receive_many(self) -> Iterator[Payload]:
        payloads, step = self._payloads, self._step
        while True:
            while payloads:
                yield payloads.popleft()
            step()

    def receive_tensor(self) -> Tensor:
        return np.frombuffer(self.receive(), np.float32)


class RabbitmqResponder(Responder):
    """A queue of requests, whose replies go back the direct way."""

    def __init__(self, bus: RabbitmqBus, topic: str) -> None:
        self._bus = bus
        self._served = 0
        bus.wait(partial(bus.channel.queue_declare, topic, auto_delete=True))
        bus.consume(topic, self._reply)

    def _reply(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_publish("", properties.reply_to, body)
        self._served += 1

    def serve(self, count: int) -> None:
        while self._served < count:
            self._bus.step()
        self._bus.drain()


class RabbitmqBus(Bus):
    """One connection and one channel.

    Attributes:
        channel: pika's.
    """

    def __init__(self, address: str, *, threads: bool) -> None:
        import pika

        host, port = launch.host_and_port(address)
        parameters = pika.ConnectionParameters(host, port, heartbeat=0)
        self._threads = False
        self._failure: object = None
        self._closed = threading.Event()
        self._connection: Any = pika.SelectConnection(
            parameters, on_open_error_callback=self._failed, on_close_callback=self._failed
        )
        self._loop = self._connection.ioloop
        self._loop.activate_poller()
        while not self._connection.is_open:
            self.step()
        self.channel: Any = None
        self._queue = ""
        self._handlers: dict[str, Callable[[bytes], Any]] = {}
        self.channel = self.wait(lambda callback: self._connection.channel(on_open_callback=callback))
        self._will_have_thread = threads

    def _failed(self, connection: object, error: object) -> None:
        self._failure = error
        self._closed.set()

    def step(self) -> None:
        """Waits for something to happen and does what it asks for."""
        self._loop.poll()
        self._loop.process_timeouts()
        if self._failure is not None:
            raise ConnectionError(f"rabbitmq: {self._failure!r}")

    def wait(self, ask: Callable[..., object]) -> Any:
        """Asks the server for something and waits for the answer."""
        answers: list[Any] = []
        ask(callback=answers.append)
        while not answers:
            self.step()
        return answers[0]

    def do(self, function: Callable[[], None]) -> None:
        """Calls a function on the thread of the loop; without threads, the socket has taken what it published."""
        if self._threads:
            self._loop.add_callback_threadsafe(function)
        else:
            function()
            self.drain()

    def drain(self) -> None:
        """Returns when the socket has taken all that was published."""
        if self._threads:
            taken = threading.Event()
            self._loop.add_callback_threadsafe(partial(self._tell, taken))
            taken.wait()
        while not self._threads and self._waiting_bytes():
            self.step()

    def _waiting_bytes(self) -> int:
        # pika has no public question for this; its BlockingConnection asks the same.
        size_bytes: int = self._connection._get_write_buffer_size()
        return size_bytes

    def _tell(self, taken: threading.Event) -> None:
        if self._waiting_bytes():
            self._loop.call_later(POLL_S, partial(self._tell, taken))
        else:
            taken.set()

    def consume(self, queue: str, function: Callable[..., Any]) -> None:
        """Has a function called with the messages of a queue."""
        self.wait(partial(self.channel.basic_consume, queue, function, auto_ack=True))

    def subscribe(self, topic: str, function: Callable[[bytes], Any]) -> None:
        """Subscribes; the server knows of it when this returns."""
        self._handlers[topic] = function
        new = not self._queue
        if new:
            self._queue = self.wait(partial(self.channel.queue_declare, "", exclusive=True)).method.queue
        self.wait(partial(self.channel.queue_bind, self._queue, EXCHANGE, topic))
        if new:
            self.consume(self._queue, self._arrived)

    def _arrived(self, channel: object, method: Any, properties: object, body: bytes) -> None:
        self._handlers[method.routing_key](body)

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return RabbitmqPublisher(self, topic)

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        if not self._will_have_thread:
            return RabbitmqSubscriber(self, topic)
        subscriber = QueuedSubscriber()
        self.subscribe(topic, subscriber.put)
        return subscriber

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        self.subscribe(topic, function)
        self._threads = True
        self._loop.deactivate_poller()
        threading.Thread(target=self._loop.start, daemon=True).start()

    def hold(self, topics: Sequence[str]) -> None:
        bound: list[object] = []
        self.subscribe(topics[0], lambda payload: None)
        for topic in topics[1:]:
            self.channel.queue_bind(self._queue, EXCHANGE, topic, callback=bound.append)
        while len(bound) < len(topics) - 1:
            self.step()

    def responder(self, topic: str, size_bytes: int) -> Responder:
        return RabbitmqResponder(self, topic)

    def requester(self, topic: str, size_bytes: int) -> Requester:
        import pika

        replies: deque[bytes] = deque()
        self.consume(REPLIES, lambda channel, method, properties, body: replies.append(body))
        properties = pika.BasicProperties(reply_to=REPLIES)

        def request(payload: bytes) -> Payload:
            self.channel.basic_publish("", topic, payload, properties)
            while not replies:
                self.step()
            return replies.popleft()

        return request

    def close(self) -> None:
        # A server forgets what it has not read yet of a connection that ends without a word.
        if self._threads:
            self._loop.add_callback_threadsafe(self._connection.close)
            self._closed.wait()
            return
        self._connection.close()
        while not self._closed.is_set():
            self._loop.poll()
            self._loop.process_timeouts()


class Rabbitmq(Contestant):
    """rabbitmq-server with everything in memory; it has no Unix sockets."""

    name = "rabbitmq"
    transports = ("tcp",)
    is_peer = True
    message_bytes_max = PAYLOAD_BYTES_MAX

    def missing(self) -> str:
        return launch.missing({SERVER: SERVER}, {"pika": "pika"})

    def versions(self) -> dict[str, str]:
        # Asked, it would start Erlang to answer; its folder has the version in its name.
        folder = next((path.name for path in LIBRARIES.glob(f"{FOLDER}*")), "installed")
        return {SERVER: folder.removeprefix(FOLDER), **launch.versions({}, ["pika"])}

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-m", "bench.peers.rabbitmq", launch.free_address(address), str(directory)]

    def connect(self, address: str, *, threads: bool = False) -> RabbitmqBus:
        return RabbitmqBus(address, threads=threads)


def settings(address: str, directory: Path) -> dict[str, str]:
    """The environment in which a server is by itself."""
    host, port = launch.host_and_port(address)
    _, names_port = launch.host_and_port(launch.free_address("tcp://127.0.0.1:0"))
    _, nodes_port = launch.host_and_port(launch.free_address("tcp://127.0.0.1:0"))
    (directory / "plugins").write_text("[].\n")
    (directory / "rabbitmq.conf").write_text(
        f"max_message_size = {PAYLOAD_BYTES_MAX}\nvm_memory_high_watermark.relative = 0.8\n"
        "log.console.level = error\nheartbeat = 0\n"
    )
    return {
        "HOME": str(directory),
        "ERL_EPMD_ADDRESS": host,
        "ERL_EPMD_PORT": str(names_port),
        "RABBITMQ_ALLOW_INPUT": "1",
        "RABBITMQ_CONF_ENV_FILE": os.devnull,
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq"),
        "RABBITMQ_DIST_PORT": str(nodes_port),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_LOG_BASE": str(directory),
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_NODE_IP_ADDRESS": host,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODENAME": f"bench-{os.getpid()}@localhost",
        # Its input is a pipe that nobody writes to, and no shell shall read it.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput",
    }


def serve(address: str, directory: Path) -> None:
    """Starts the name service and becomes the server."""
    os.environ.update(settings(address, directory))
    server = os.getpid()
    subprocess.Popen(["epmd"], stdout=subprocess.DEVNULL, preexec_fn=lambda: bind(server, NAMES_LIMIT_S))
    launch.become(address, [PROGRAM if os.path.exists(PROGRAM) else launch.program(SERVER) or SERVER])


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]))
