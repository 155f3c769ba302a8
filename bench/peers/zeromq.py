"""ZeroMQ through a proxy of XSUB and XPUB in a process of its own, with pyzmq.

There is no limit to what waits, unless asked for. Publishers use XPUB sockets rather than PUB, because these get to
read which subscriptions have reached them: a message that is published before would be gone.
"""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.contestant import Bus, Contestant, Handler, Payload, Publisher, Subscriber, Tensor
from bench.peers import launch
from bench.peers.queued import QueuedSubscriber

SUBSCRIBE: Final = b"\x01"
"""How a subscription that an XPUB socket reads begins; the topic follows."""
MODULE: Final = "bench.peers.zeromq"


def proxy(publishers: str, subscribers: str, pending_messages_max: int) -> None:
    """Passes messages on until the process is ended."""
    import zmq

    context = zmq.Context()
    incoming, outgoing = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    for sock, address in ((incoming, publishers), (outgoing, subscribers)):
        sock.set_hwm(pending_messages_max)
        sock.bind(address.replace("tcp://127.0.0.1:0", "tcp://127.0.0.1:*"))
    ends = (end.getsockopt_string(zmq.LAST_ENDPOINT) for end in (incoming, outgoing))
    print(f"listening on {','.join(ends)}", flush=True)
    zmq.proxy(incoming, outgoing)


class ZeromqPublisher(Publisher):
    """Publishes on a bus's socket."""

    def __init__(self, bus: ZeromqBus, topic: str) -> None:
        self._bus = bus
        self._topic = topic.encode()

    def _send(self, payload: Any, **options: Any) -> Any:
        with self._bus.publishing:
            return self._bus.outgoing(self._topic).send_multipart([self._topic, payload], **options)

    def send(self, payload: bytes) -> None:
        self._send(payload)

    def send_many(self, payloads: Sequence[bytes]) -> None:
        with self._bus.publishing:
            send, topic = self._bus.outgoing(self._topic).send_multipart, self._topic
            for payload in payloads:
                send([topic, payload])

    def send_tensor(self, tensor: Tensor) -> None:
        # Sent out of the array's own memory; it has left when the tracker says so.
        self._send(tensor.data, copy=False, track=True).wait()

    def flush(self) -> None:
        """Closing the socket waits until everything has left."""


class ZeromqSubscriber(Subscriber):
    """A socket of its own."""

    def __init__(self, sock: Any) -> None:
        self._receive = sock.recv_multipart
        self._frame: Any = None

    def receive(self) -> Payload:
        payload: bytes = self._receive()[1]
        return payload

    def receive_many(self) -> Iterator[Payload]:
        receive = self._receive
        while True:
            yield receive()[1]

    def receive_tensor(self) -> Tensor:
        # The frame holds the memory.
        self._frame = self._receive(copy=False)[1]
        return np.frombuffer(self._frame.buffer, np.float32)


class ZeromqBus(Bus):
    """One XPUB socket for what is published, and a SUB socket for each subscriber, or for all when threads share it.

    Attributes:
        publishing: held while the socket for what is published is used: sockets are not safe for threads.
    """

    def __init__(self, address: str, *, threads: bool) -> None:
        import zmq

        self.publishing = threading.Lock()
        self._zmq = zmq
        # Buses of threads share their process's.
        self._context = zmq.Context.instance() if threads else zmq.Context()
        self._publishers_end, self._subscribers_end = address.split(",")
        self._outgoing: Any = None
        self._reached: set[bytes] = set()
        self._shared = self._incoming() if threads else None
        self._handlers: dict[bytes, Handler] = {}

    def _connect(self, kind: int, end: str) -> Any:
        sock = self._context.socket(kind)
        sock.set_hwm(0)
        sock.connect(end)
        return sock

    def _incoming(self) -> Any:
        return self._connect(self._zmq.SUB, self._subscribers_end)

    def outgoing(self, topic: bytes) -> Any:
        """The socket for what is published, once subscriptions to the topic have reached it. The lock is held."""
        if self._outgoing is None:
            self._outgoing = self._connect(self._zmq.XPUB, self._publishers_end)
        while topic not in self._reached:
            self._reached.add(self._outgoing.recv().removeprefix(SUBSCRIBE))
        return self._outgoing

    def _subscribe(self, sock: Any, *topics: str) -> None:
        """Subscribes; the proxy knows of it when this returns, because it has passed on a later subscription."""
        probe = f"probe/{uuid.uuid4()}"
        for wanted in (*topics, probe):
            sock.subscribe(wanted)
        with self._connect(self._zmq.XPUB, self._publishers_end) as watcher:
            while watcher.recv() != SUBSCRIBE + probe.encode():
                pass
        sock.unsubscribe(probe)

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        return ZeromqPublisher(self, topic)

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        if self._shared is None:
            sock = self._incoming()
            self._subscribe(sock, topic)
            return ZeromqSubscriber(sock)
        subscriber = QueuedSubscriber()
        self._handlers[topic.encode()] = subscriber.put
        self._subscribe(self._shared, topic)
        return subscriber

    def hold(self, topics: Sequence[str]) -> None:
        self._holding = self._incoming()
        self._subscribe(self._holding, *topics)

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        self._handlers[topic.encode()] = function
        self._subscribe(self._shared, topic)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._shared is not None
        while True:
            topic, frame = self._shared.recv_multipart(copy=False)
            # The memory lives as long as the view of it.
            self._handlers[topic.bytes](frame.buffer)

    def close(self) -> None:
        if self._shared is None:
            self._context.destroy(linger=30_000)


class Zeromq(Contestant):
    """A proxy on libzmq.

    The variant `bounded` holds fewer messages for a subscriber that does not keep up.
    """

    is_peer = True

    def __init__(self, pending_messages_max: int | None = None) -> None:
        self.name = "zeromq/bounded" if pending_messages_max else "zeromq"
        self._pending_messages_max = pending_messages_max or 0

    def missing(self) -> str:
        return launch.missing({}, {"zmq": "pyzmq"})

    def versions(self) -> dict[str, str]:
        import zmq

        return {"libzmq": zmq.zmq_version(), **launch.versions({}, ["pyzmq"])}

    def broker_command(self, address: str, directory: Path) -> list[str]:
        ends = [address, address] if address.startswith("tcp://") else [f"ipc://{directory}/{end}" for end in "ps"]
        return [sys.executable, "-m", MODULE, *ends, str(self._pending_messages_max)]

    def connect(self, address: str, *, threads: bool = False) -> ZeromqBus:
        return ZeromqBus(address, threads=threads)


if __name__ == "__main__":
    proxy(sys.argv[1], sys.argv[2], int(sys.argv[3]))
