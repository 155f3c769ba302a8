"""iceoryx2: publish and subscribe in shared memory without a broker, in blocking mode.

Whoever waits does so in a listener of an event, which the sender notifies; nothing polls. Nothing is dropped: a
publisher waits while the queue of a subscriber is full that has begun to read from it. iceoryx2 0.10 passes over a full
queue whose subscriber has not, so a publisher begins with empty messages, until all subscribers have taken one. The
process in the broker's place only names the run's services.

What a port's memory has to hold depends on the length of its messages, which a publisher knows with the first one.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.contestant import Bus, Contestant, Handler, Payload, Publisher, Requester, Responder, Subscriber, Tensor
from bench.peers import launch

ADDRESS: Final = "iceoryx2://"
QUEUE_BYTES: Final = 4 << 20
QUEUE_MESSAGES_MIN, QUEUE_MESSAGES_MAX = 2, 1024
"""What a subscriber's queue holds."""
SMALL_BYTES: Final = 1024
"""Up to here a message is taken out of shared memory as bytes; a longer one is read where it lies."""
PORTS_OF_SMALL, PORTS, NODES = 128, 8, 256
ALIGNMENT_BYTES: Final = 64
BURST: Final = 64
"""Messages between two notifications of a publisher that does not pause; well below a queue."""


def view(pointer: int, size_bytes: int) -> memoryview:
    """Memory at an address; nothing keeps it alive."""
    return memoryview((ctypes.c_uint8 * size_bytes).from_address(pointer)).cast("B")


def queue_messages(size_bytes: int) -> int:
    """What a subscriber's queue holds of messages of a size."""
    return min(QUEUE_MESSAGES_MAX, max(QUEUE_MESSAGES_MIN, QUEUE_BYTES // size_bytes))


class IceoryxPublisher(Publisher):
    """A publisher and a notifier, made for the length of the first message."""

    def __init__(self, bus: IceoryxBus, topic: str) -> None:
        self._bus = bus
        self._topic = topic
        self._port: Any = None
        self._lent: Any = None

    def _loan(self, size_bytes: int) -> Any:
        if self._port is None:
            import iceoryx2

            service = self._bus.messages(self._topic, size_bytes)
            port = (
                service.publisher_builder()
                .initial_max_slice_len(size_bytes)
                .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
                .create()
            )
            self._notify = self._bus.notifier(self._topic)
            for _ in range(queue_messages(size_bytes)):
                port.loan_slice_uninit(0).assume_init().send()
            self._notify()
            while port.loan_slice_uninit(0).assume_init().send() < service.dynamic_config.number_of_subscribers:
                self._notify()
            self._port = port
        return self._port.loan_slice_uninit(size_bytes)

    def _copy(self, source: Any, size_bytes: int) -> None:
        sample = self._loan(size_bytes)
        ctypes.memmove(sample.payload_ptr, source, size_bytes)
        sample.assume_init().send()

    def send(self, payload: bytes) -> None:
        self._copy(payload, len(payload))
        self._notify()

    def send_many(self, payloads: Sequence[bytes]) -> None:
        for start in range(0, len(payloads), BURST):
            for payload in payloads[start : start + BURST]:
                self._copy(payload, len(payload))
            self._notify()

    def send_tensor(self, tensor: Tensor) -> None:
        self._copy(tensor.ctypes.data, tensor.nbytes)
        self._notify()

    def lend(self, size_bytes: int) -> Tensor:
        self._lent = self._loan(size_bytes)
        return np.frombuffer(view(self._lent.payload_ptr, size_bytes), np.float32)

    def send_lent(self, tensor: Tensor) -> None:
        self._lent.assume_init().send()
        self._notify()

    def flush(self) -> None:
        """What was sent is with the subscribers."""


class IceoryxSubscriber(Subscriber):
    """A subscriber and the listener in which it waits."""

    def __init__(self, bus: IceoryxBus, topic: str, size_bytes: int) -> None:
        self._wait = bus.listener(topic)
        self._take = bus.messages(topic, size_bytes).subscriber_builder().create().receive
        self._size_bytes = size_bytes
        self._sample: Any = None

    def _next(self) -> Any:
        # The memory of the one before goes back.
        self._sample = None
        while (sample := self._take()) is None or not sample.header.number_of_elements:
            if sample is None:
                self._wait()
        self._sample = sample
        return sample.payload_ptr

    def receive(self) -> Payload:
        pointer = self._next()
        if self._size_bytes <= SMALL_BYTES:
            return ctypes.string_at(pointer, self._size_bytes)
        return view(pointer, self._size_bytes)

    def receive_many(self) -> Iterator[Payload]:
        while True:
            yield self.receive()

    def receive_tensor(self) -> Tensor:
        return np.frombuffer(view(self._next(), self._size_bytes), np.float32)


class IceoryxResponder(Responder):
    """A server of a request-response service, and the two events that wake it and those who ask."""

    def __init__(self, bus: IceoryxBus, topic: str, size_bytes: int) -> None:
        self._wait, self._notify = bus.listener(f"{topic}/requests"), bus.notifier(f"{topic}/responses")
        self._port = bus.requests(topic).server_builder().initial_max_slice_len(size_bytes).create()
        self._size_bytes = size_bytes

    def serve(self, count: int) -> None:
        for _ in range(count):
            while (request := self._port.receive()) is None:
                self._wait()
            response = request.loan_slice_uninit(self._size_bytes)
            ctypes.memmove(response.payload_ptr, request.payload_ptr, self._size_bytes)
            response.assume_init().send()
            self._notify()


class IceoryxBus(Bus):
    """One node; its services' names begin with that of the run."""

    def __init__(self, address: str) -> None:
        import iceoryx2

        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        self._run = address.removeprefix(ADDRESS)
        self._node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
        self._publishers: list[IceoryxPublisher] = []

    def _builder(self, topic: str) -> Any:
        import iceoryx2

        return self._node.service_builder(iceoryx2.ServiceName.new(f"{self._run}/{topic}"))

    def messages(self, topic: str, size_bytes: int) -> Any:
        """The service of a topic, which whoever comes first creates."""
        import iceoryx2

        ports = PORTS_OF_SMALL if size_bytes <= SMALL_BYTES else PORTS
        return (
            self._builder(topic)
            .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .history_size(0)
            .subscriber_max_buffer_size(queue_messages(size_bytes))
            .subscriber_max_borrowed_samples(2)
            .max_publishers(PORTS)
            .max_subscribers(ports)
            .max_nodes(NODES)
            .payload_alignment(iceoryx2.Alignment.new(ALIGNMENT_BYTES))
            .open_or_create()
        )

    def requests(self, topic: str) -> Any:
        """The request-response service of a topic."""
        import iceoryx2

        payload = iceoryx2.Slice[ctypes.c_uint8]
        return self._builder(topic).request_response(payload, payload).max_nodes(NODES).open_or_create()

    def _event(self, topic: str) -> Any:
        event = self._builder(topic).event().max_listeners(PORTS_OF_SMALL).max_notifiers(PORTS_OF_SMALL)
        return event.max_nodes(NODES).open_or_create()

    def notifier(self, topic: str) -> Callable[[], object]:
        """Wakes all that wait for a topic."""
        notify: Callable[[], object] = self._event(topic).notifier_builder().create().notify
        return notify

    def listener(self, topic: str) -> Callable[[], object]:
        """Waits for a topic."""
        wait: Callable[[], object] = self._event(topic).listener_builder().create().blocking_wait
        return wait

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        self._publishers.append(publisher := IceoryxPublisher(self, topic))
        return publisher

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        return IceoryxSubscriber(self, topic, size_bytes)

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        subscriber = IceoryxSubscriber(self, topic, size_bytes)

        def read() -> None:
            while True:
                function(subscriber.receive())

        threading.Thread(target=read, daemon=True).start()

    def responder(self, topic: str, size_bytes: int) -> Responder:
        return IceoryxResponder(self, topic, size_bytes)

    def requester(self, topic: str, size_bytes: int) -> Requester:
        wait, notify = self.listener(f"{topic}/responses"), self.notifier(f"{topic}/requests")
        port = self.requests(topic).client_builder().initial_max_slice_len(size_bytes).create()

        def request(payload: bytes) -> Payload:
            sample = port.loan_slice_uninit(size_bytes)
            ctypes.memmove(sample.payload_ptr, payload, size_bytes)
            pending = sample.assume_init().send()
            notify()
            while (response := pending.receive()) is None:
                wait()
            return ctypes.string_at(response.payload_ptr, size_bytes)

        return request

    def close(self) -> None:
        """The ports end with the process, and with them what they have sent to those who had not begun to read it."""


class Iceoryx2(Contestant):
    """iceoryx2 between the processes of one host; it stands beside what uses Unix sockets."""

    name = "iceoryx2"
    transports = ("unix",)
    is_peer = True

    def missing(self) -> str:
        return launch.missing({}, {"iceoryx2": "iceoryx2"})

    def versions(self) -> dict[str, str]:
        return launch.versions({}, ["iceoryx2"])

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-m", "bench.peers.iceoryx2"]

    def connect(self, address: str, *, threads: bool = False) -> IceoryxBus:
        return IceoryxBus(address)


if __name__ == "__main__":
    print(f"listening on {ADDRESS}{uuid.uuid4()}", flush=True)
    signal.pause()
