"""Mosquitto with paho-mqtt, QoS 0.

Without threads, the calling thread reads and writes the socket itself through the client's `loop`; with threads, the
client's own thread does.
"""

from __future__ import annotations

import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.contestant import Bus, Contestant, Handler, Payload, Publisher, Subscriber, Tensor
from bench.peers import launch
from bench.peers.queued import QueuedSubscriber

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

PACKET_BYTES_MAX: Final = 268_435_455
"""MQTT's longest packet without its fixed header (MQTT 3.1.1, section 2.2.3)."""
WAIT_S: Final = 1.0
HELD_TOGETHER: Final = 100
"""Subscriptions in one packet."""


class MosquittoPublisher(Publisher):
    """Publishes on a bus's client."""

    def __init__(self, bus: MosquittoBus, topic: str) -> None:
        self._bus = bus
        self._client = bus.client
        self._topic = topic

    def send(self, payload: bytes) -> None:
        self._client.publish(self._topic, payload)
        self._bus.drain()

    def send_many(self, payloads: Sequence[bytes]) -> None:
        publish, topic = self._client.publish, self._topic
        for payload in payloads:
            publish(topic, payload)
        self._bus.drain()

    def send_tensor(self, tensor: Tensor) -> None:
        published = self._client.publish(self._topic, tensor.tobytes())
        if self._bus.threads:
            published.wait_for_publish()
        else:
            self._bus.drain()

    def flush(self) -> None:
        self._bus.drain()


class MosquittoSubscriber(Subscriber):
    """Runs the client's loop while it waits."""

    def __init__(self, bus: MosquittoBus, topic: str) -> None:
        self._client = bus.client
        self._payloads: deque[bytes] = deque()
        bus.subscribe(topic, self._payloads.append)

    def receive(self) -> Payload:
        while not self._payloads:
            self._client.loop(WAIT_S)
        return self._payloads.popleft()

    def receive_many(self) -> Iterator[Payload]:
        payloads, loop = self._payloads, self._client.loop
        while True:
            while payloads:
                yield payloads.popleft()
            loop(WAIT_S)

    def receive_tensor(self) -> Tensor:
        return np.frombuffer(self.receive(), np.float32)


class MosquittoBus(Bus):
    """One client.

    Attributes:
        client: paho's.
        threads: whether the client has a thread.
    """

    def __init__(self, address: str, *, threads: bool) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.threads = threads
        self._handlers: dict[str, Callable[[bytes], Any]] = {}
        self._acknowledged: set[int] = set()
        unix = address.startswith("unix://")
        client = Client(CallbackAPIVersion.VERSION2, transport="unix" if unix else "tcp", reconnect_on_failure=False)
        self.client: Client = client
        client.max_queued_messages_set(0)
        client.on_message = self._arrived
        client.on_subscribe = lambda _client, _data, mid, *_: self._acknowledged.add(mid)
        if unix:
            client.connect(address.removeprefix("unix://"), 1)
        else:
            client.connect(*launch.host_and_port(address))
            sock = client.socket()
            assert sock is not None
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while not client.is_connected():
            client.loop(WAIT_S)

    def _arrived(self, client: Client, data: object, message: MQTTMessage) -> None:
        self._handlers[message.topic](message.payload)

    def subscribe(self, topic: str, function: Callable[[bytes], Any]) -> None:
        """Subscribes; the server knows of it when this returns."""
        self._handlers[topic] = function
        _, mid = self.client.subscribe(topic, qos=0)
        while mid not in self._acknowledged:
            self.client.loop(WAIT_S)

    def hold(self, topics: Sequence[str]) -> None:
        for start in range(0, len(topics), HELD_TOGETHER):
            _, mid = self.client.subscribe([(topic, 0) for topic in topics[start : start + HELD_TOGETHER]])
            while mid not in self._acknowledged:
                self.client.loop(WAIT_S)

    def drain(self) -> None:
        """Returns when the socket has taken all that was published; with threads, at once."""
        while not self.threads and self.client.want_write():
            self.client.loop(WAIT_S)

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return MosquittoPublisher(self, topic)

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        if not self.threads:
            return MosquittoSubscriber(self, topic)
        subscriber = QueuedSubscriber()
        self.subscribe(topic, subscriber.put)
        return subscriber

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        self.subscribe(topic, function)
        self.client.loop_start()

    def close(self) -> None:
        self.drain()
        self.client.disconnect()


class Mosquitto(Contestant):
    """mosquitto, without persistence or limits.

    The variant `bounded` holds fewer messages for a client that does not keep up.
    """

    is_peer = True
    message_bytes_max = PACKET_BYTES_MAX

    def __init__(self, pending_messages_max: int | None = None) -> None:
        self.name = "mosquitto/bounded" if pending_messages_max else "mosquitto"
        self._pending_messages_max = pending_messages_max or 0

    def missing(self) -> str:
        return launch.missing({"mosquitto": "mosquitto"}, {"paho": "paho-mqtt"})

    def versions(self) -> dict[str, str]:
        return launch.versions({"mosquitto": "-h"}, ["paho-mqtt"])

    def broker_command(self, address: str, directory: Path) -> list[str]:
        free = launch.free_address(address)
        if free.startswith("unix://"):
            listener = f"listener 0 {free.removeprefix('unix://')}"
        else:
            host, port = launch.host_and_port(free)
            listener = f"listener {port} {host}"
        config = directory / "mosquitto.conf"
        # The user would otherwise be changed, and so could not get at the directory.
        config.write_text(
            f"user root\n{listener}\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
            f"max_queued_messages {self._pending_messages_max}\nmax_inflight_messages 0\nlog_type error\n"
        )
        server = launch.program("mosquitto") or "mosquitto"
        return [sys.executable, "-m", "bench.peers.launch", free, server, "-c", str(config)]

    def connect(self, address: str, *, threads: bool = False) -> MosquittoBus:
        return MosquittoBus(address, threads=threads)
