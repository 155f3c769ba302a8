"""Zenoh through a router in a process of its own, with eclipse-zenoh, and the same with its shared memory.

The router is a session of the Python package in mode `router`: native threads, which no Python runs beside. Messages
come to zenoh-python's default, indirect callback. Nothing is dropped: publishers wait when what is before them is full.

In Python, Zenoh's shared memory is written by a copy of bytes and read by one: it lends no memory to arrays.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.contestant import Bus, Contestant, Handler, Payload, Publisher, Requester, Responder, Subscriber, Tensor
from bench.counting import Countdown
from bench.peers import launch

if TYPE_CHECKING:
    import zenoh

PRIORITIES: Final = {"control": "REAL_TIME", "default": "DATA", "bulk": "DATA_LOW"}
BARRIER: Final = "bench/barrier"
"""Nobody answers questions about it; that the router says so shows that it has done all that came before."""
POLL_S: Final = 0.001
SHARED_BYTES_MIN: Final = 64 << 20
SHARED_ARRAYS: Final = 3
"""What a publisher's shared memory holds."""
SMALL_BYTES: Final = 3072
"""Zenoh's own message_size_threshold, below which shared memory does not pay."""


def endpoint(address: str) -> str:
    """An address in Zenoh's words."""
    return address.replace("tcp://", "tcp/").replace("unix://", "unixsock-stream/")


def session(mode: str, key: str, address: str, *, shared: bool) -> zenoh.Session:
    """Opens a session that neither looks for others nor is found by them."""
    import zenoh

    config = zenoh.Config()
    config.insert_json5("mode", json.dumps(mode))
    config.insert_json5(f"{key}/endpoints", json.dumps([endpoint(address)]))
    config.insert_json5("scouting/multicast/enabled", "false")
    config.insert_json5("transport/shared_memory/enabled", json.dumps(shared))
    return zenoh.open(config)


def route(address: str, *, shared: bool) -> None:
    """Routes until the process is ended."""
    free = launch.free_address(address)
    with session("router", "listen", free, shared=shared):
        print(f"listening on {free}", flush=True)
        signal.pause()


class ZenohPublisher(Publisher):
    """A publisher that does not batch for what leaves at once, and one that does for the rest."""

    def __init__(self, bus: ZenohBus, topic: str, lane: str) -> None:
        self._bus = bus
        self._topic = topic
        self._lane = lane
        self._puts: dict[bool, Callable[[object], None]] = {}
        self._provider: Any = None

    def _put(self, *, express: bool) -> Callable[[object], None]:
        found = self._puts.get(express)
        if found is None:
            import zenoh

            publisher = self._bus.session.declare_publisher(
                self._topic,
                congestion_control=zenoh.CongestionControl.BLOCK,
                priority=getattr(zenoh.Priority, PRIORITIES[self._lane]),
                express=express,
            )
            # What is published before the router has told of a subscriber goes nowhere.
            while not publisher.matching_status.matching:
                time.sleep(POLL_S)
            self._bus.publishers.append(publisher)
            found = self._puts[express] = publisher.put
        return found

    def send(self, payload: bytes) -> None:
        if self._bus.shared and len(payload) >= SMALL_BYTES:
            self._put_shared(payload)
        else:
            self._put(express=True)(payload)

    def send_many(self, payloads: Sequence[bytes]) -> None:
        put = self._put(express=False)
        for payload in payloads:
            put(payload)

    def send_tensor(self, tensor: Tensor) -> None:
        # zenoh-python takes bytes only.
        if self._bus.shared:
            self._put_shared(tensor.tobytes())
        else:
            self._put(express=True)(tensor.tobytes())

    def _put_shared(self, payload: bytes) -> None:
        from zenoh import shm

        if self._provider is None:
            self._provider = shm.ShmProvider.default_backend(max(SHARED_BYTES_MIN, SHARED_ARRAYS * len(payload)))
            self._bus.providers.append(self._provider)
        # Waits for memory that readers give back.
        lent = self._provider.alloc(len(payload), shm.BlockOn(shm.GarbageCollect()))
        lent[:] = payload
        self._put(express=True)(lent)

    def flush(self) -> None:
        self._bus.barrier(self._lane)


class ZenohSubscriber(Subscriber):
    """Takes what the callback has put, or has the callback take it."""

    def __init__(self, bus: ZenohBus, topic: str) -> None:
        self._payloads: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._take: Callable[[Payload], Any] = self._payloads.put
        bus.subscribe(topic, lambda payload: self._take(payload))

    def receive(self) -> Payload:
        return self._payloads.get()

    def each(self, take: Callable[[Payload], bool]) -> None:
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def call(payload: Payload) -> None:
            try:
                if take(payload):
                    done.put(None)
            except BaseException as error:
                done.put(error)

        self._take = call
        error = done.get()
        if error is not None:
            raise error

    def receive_many(self) -> Iterator[Payload]:
        get = self._payloads.get
        while True:
            yield get()

    def receive_tensor(self) -> Tensor:
        return np.frombuffer(self._payloads.get(), np.float32)


class ZenohResponder(Responder):
    """A queryable with zenoh-python's default callback."""

    def __init__(self, bus: ZenohBus, topic: str) -> None:
        self._topic = topic
        self._served = Countdown()
        bus.session.declare_queryable(topic, self._reply)
        bus.barrier()

    def _reply(self, query: zenoh.Query) -> None:
        with query:
            query.reply(self._topic, query.payload, express=True)
        self._served.add()

    def serve(self, count: int) -> None:
        self._served.wait(count)


class ZenohBus(Bus):
    """One session.

    Attributes:
        session: zenoh's.
        shared: whether long messages go through shared memory.
        publishers: zenoh's, that have been used.
        providers: of shared memory, whose end would be that of what is on its way.
    """

    def __init__(self, address: str, *, shared: bool) -> None:
        self.shared = shared
        self.publishers: list[zenoh.Publisher] = []
        self.providers: list[zenoh.shm.ShmProvider] = []
        self.session = session("client", "connect", address, shared=shared)

    def barrier(self, lane: str = "default") -> None:
        """Returns when the router has done all that this session has asked of it in a lane."""
        import zenoh

        priority = getattr(zenoh.Priority, PRIORITIES[lane])
        for _ in self.session.get(BARRIER, priority=priority, congestion_control=zenoh.CongestionControl.BLOCK):
            pass

    def subscribe(self, topic: str, function: Handler) -> None:
        """Subscribes; the router knows of it when this returns."""
        self.session.declare_subscriber(topic, lambda sample: function(sample.payload.to_bytes()))
        self.barrier()

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return ZenohPublisher(self, topic, lane)

    def publish(self, topic: str, payload: bytes) -> None:
        import zenoh

        self.session.put(topic, payload, congestion_control=zenoh.CongestionControl.BLOCK)

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        return ZenohSubscriber(self, topic)

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        self.subscribe(topic, function)

    def hold(self, topics: Sequence[str]) -> None:
        from zenoh.handlers import RingChannel

        # Each default callback would have a thread.
        self._channels = [self.session.declare_subscriber(topic, RingChannel(1)) for topic in topics]
        self.barrier()

    def responder(self, topic: str, size_bytes: int) -> Responder:
        return ZenohResponder(self, topic)

    def requester(self, topic: str, size_bytes: int) -> Requester:
        querier = self.session.declare_querier(topic, express=True)

        def request(payload: bytes) -> Payload:
            while True:
                for reply in querier.get(payload=payload):
                    found: bytes = reply.ok.payload.to_bytes()
                    return found

        return request

    def close(self) -> None:
        self.barrier()
        # Shared memory ends with this process, so what is in it has to have been read: by subscribers that are gone.
        while self.shared and any(publisher.matching_status.matching for publisher in self.publishers):
            time.sleep(POLL_S)
        self.session.close()


class Zenoh(Contestant):
    """A router of Zenoh; the variant `shm` passes long messages in shared memory."""

    is_peer = True

    def __init__(self, *, shared: bool = False) -> None:
        self.name = "zenoh/shm" if shared else "zenoh"
        self._shared = shared

    def missing(self) -> str:
        return launch.missing({}, {"zenoh": "eclipse-zenoh"})

    def versions(self) -> dict[str, str]:
        return launch.versions({}, ["eclipse-zenoh"])

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-m", "bench.peers.zenoh", address, "shared" if self._shared else "private"]

    def connect(self, address: str, *, threads: bool = False) -> ZenohBus:
        return ZenohBus(address, shared=self._shared)


if __name__ == "__main__":
    route(sys.argv[1], shared=sys.argv[2] == "shared")
