"""tensorbus as a contestant: the daemon with default settings, the synchronous client with default settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np

import clients
from bench.contestant import Bus, Contestant, Payload, Publisher, Subscriber, Tensor


class TensorbusPublisher(Publisher):
    """Publishes in one lane; batches and urgency are left to the client."""

    def __init__(self, client: clients.Client, topic: str, lane: str) -> None:
        self._client = client
        self._topic = topic
        self._lane = lane

    def send(self, payload: bytes) -> None:
        self._client.publish(self._topic, payload, lane=self._lane)

    def send_many(self, payloads: Sequence[bytes]) -> None:
        publish, topic = self._client.publish, self._topic
        for payload in payloads:
            publish(topic, payload)

    def send_tensor(self, tensor: Tensor) -> None:
        self._client.publish(self._topic, tensor, lane=self._lane)

    def flush(self) -> None:
        self._client.flush(timeout_s=30.0)


class TensorbusSubscriber(Subscriber):
    """Takes messages on the thread that calls."""

    def __init__(self, subscription: clients.Subscription) -> None:
        self._subscription = subscription

    def receive(self) -> Payload:
        value = self._subscription.next().value
        assert isinstance(value, bytes)
        return value

    def receive_many(self) -> Iterator[Payload]:
        for message in self._subscription:
            yield message.value  # type: ignore[misc]

    def receive_tensor(self) -> Tensor:
        value = self._subscription.next().value
        assert isinstance(value, np.ndarray)
        return value


class TensorbusBus(Bus):
    """One synchronous client.

    Attributes:
        client: for what only tensorbus has.
    """

    def __init__(self, address: str) -> None:
        # A benchmark whose broker is gone is to end, not to wait for it.
        self.client = clients.connect(address, reconnect_timeout_s=0.0)

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return TensorbusPublisher(self.client, topic, lane)

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        return TensorbusSubscriber(self.client.subscribe(topic))

    def close(self) -> None:
        self.client.close(timeout_s=30.0)


class Tensorbus(Contestant):
    """tensorbus itself."""

    name = "tensorbus"

    def broker_command(self, address: str) -> list[str]:
        return [sys.executable, "-m", "broker", "serve", "--listen", address, "--admin", "off"]

    def connect(self, address: str) -> TensorbusBus:
        return TensorbusBus(address)
