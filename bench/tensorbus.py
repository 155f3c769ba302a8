"""tensorbus as a contestant: the daemon with default settings, the synchronous client with default settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, cast

import numpy as np

import clients
from bench.contestant import (
    Array,
    Bus,
    Collective,
    Contestant,
    Handler,
    Payload,
    Publisher,
    Requester,
    Responder,
    Subscriber,
    Tensor,
    WorkQueue,
    numpy_dtype,
)
from bench.counting import Countdown
from bench.tasks import Task

QUEUE_BYTES: Final = 4 << 20
"""What a variant that drops holds for a subscription of `handle`."""
JOBS_AHEAD: Final = 64
"""Jobs that a worker has at once: some on their way while it works on one."""
GROUP: Final = "workers"


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

    def lend(self, size_bytes: int) -> Tensor:
        return cast(Tensor, self._client.empty(size_bytes // 4, "float32"))

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


class TensorbusResponder(Responder):
    """Replies on the client's own thread."""

    def __init__(self, client: clients.Client, topic: str) -> None:
        self._served = Countdown()
        client.respond(topic, self._reply)

    def _reply(self, message: clients.Message) -> object:
        self._served.add()
        return message.value

    def serve(self, count: int) -> None:
        self._served.wait(count)


class TensorbusWorkQueue(WorkQueue):
    """A queue group of a topic with acknowledgement."""

    def __init__(self, client: clients.Client, name: str) -> None:
        self._client = client
        self._name = name
        self._subscription: clients.Subscription | None = None
        self._job: clients.Message | None = None
        client.declare(name, acknowledge=True)

    def put_many(self, payloads: Sequence[bytes]) -> None:
        publish, name = self._client.publish, self._name
        for payload in payloads:
            publish(name, payload)
        self._client.flush(timeout_s=30.0)

    def take(self, timeout_s: float) -> Payload | None:
        if self._subscription is None:
            self._subscription = self._client.subscribe(self._name, queue_group=GROUP, queue_messages=JOBS_AHEAD)
        try:
            self._job = self._subscription.next(timeout_s=timeout_s)
        except clients.TimeoutError:
            return None
        value = self._job.value
        assert isinstance(value, bytes)
        return value

    def acknowledge(self) -> None:
        assert self._job is not None
        self._job.ack()


class TensorbusCollective(Collective):
    """A rank of a group that begins with all ranks."""

    def __init__(self, client: clients.Client, task: Task) -> None:
        self._group = client.group(f"bench-{task.run}", world_size=task.world_size, rank=task.rank)

    def barrier(self) -> None:
        self._group.barrier()

    def all_reduce(self, array: Array) -> Callable[[], object]:
        return partial(self._group.all_reduce, array)


class SharedCollective(TensorbusCollective):
    """As TensorbusCollective, with arrays in memory that the ranks share, which are reduced out of place."""

    def empty(self, count: int, dtype: str) -> Array:
        self._array, self._result = (self._group.empty(count, numpy_dtype(dtype)) for _ in range(2))
        return self._array

    def result(self, array: Array) -> Array:
        return self._result

    def all_reduce(self, array: Array) -> Callable[[], object]:
        return partial(self._group.all_reduce, array, out=self._result)


class TensorbusBus(Bus):
    """One synchronous client.

    Attributes:
        client: for what only tensorbus has.
    """

    def __init__(self, address: str, overflow: str) -> None:
        self._overflow = overflow
        # A benchmark whose broker is gone is to end, not to wait for it.
        self.client = clients.connect(address, reconnect_timeout_s=0.0)

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return TensorbusPublisher(self.client, topic, lane)

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        return TensorbusSubscriber(self.client.subscribe(topic))

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        def handler(message: clients.Message) -> None:
            function(message.value)  # type: ignore[arg-type]

        if self._overflow:
            self.client.subscribe(topic, overflow=self._overflow, queue_bytes=QUEUE_BYTES, handler=handler)
        else:
            self.client.subscribe(topic, handler=handler)

    def responder(self, topic: str, size_bytes: int) -> Responder:
        return TensorbusResponder(self.client, topic)

    def requester(self, topic: str, size_bytes: int) -> Requester:
        def request(payload: bytes) -> Payload:
            return self.client.request(topic, payload).value  # type: ignore[return-value]

        return request

    def work_queue(self, name: str) -> WorkQueue:
        return TensorbusWorkQueue(self.client, name)

    def collective(self, task: Task) -> Collective:
        return TensorbusCollective(self.client, task)

    def close(self) -> None:
        self.client.close(timeout_s=30.0)


class Tensorbus(Contestant):
    """tensorbus itself; a variant has an overflow policy for the subscriptions of `handle`."""

    transports = ("tcp", "tls", "unix", "ucx")

    def __init__(self, overflow: str = "") -> None:
        self.name = f"tensorbus/{overflow}" if overflow else "tensorbus"
        self._overflow = overflow

    def broker_command(self, address: str, directory: Path) -> list[str]:
        if address.startswith("tls:"):
            address += f"?certificates={certificates(directory)}"
        return [sys.executable, "-m", "broker", "serve", "--listen", address, "--admin", "off"]

    def connect(self, address: str, *, threads: bool = False) -> TensorbusBus:
        return TensorbusBus(address, self._overflow)


class SharedBus(TensorbusBus):
    """One run with arrays that the ranks share."""

    def collective(self, task: Task) -> Collective:
        return SharedCollective(self.client, task)


class TensorbusShared(Tensorbus):
    """tensorbus, whose ranks ask it for the memory of their arrays."""

    transports = ("unix",)

    def __init__(self) -> None:
        super().__init__("shared")

    def connect(self, address: str, *, threads: bool = False) -> SharedBus:
        return SharedBus(address, "")


class TensorbusOverZeromq(Tensorbus):
    """tensorbus with ZeroMQ between it and its clients."""

    transports = ("tcp", "unix")

    def __init__(self) -> None:
        super().__init__()
        self.name = "tensorbus-zmq"

    def broker_command(self, address: str, directory: Path) -> list[str]:
        scheme, _, place = address.partition("://")
        return super().broker_command(f"{'zmq+ipc' if scheme == 'unix' else 'zmq+tcp'}://{place}", directory)


def certificates(directory: Path) -> Path:
    """A folder with a certificate that both ends of a connection show, and its authority."""
    from broker.security.certificate_authority import BROKER, LOCAL_HOSTS, CertificateAuthority

    return CertificateAuthority.create(directory).issue(BROKER, ("admin",), hosts=LOCAL_HOSTS)[0]
