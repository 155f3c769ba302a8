"""What a messaging system has to offer to be measured: a broker process, and a connection to publish and subscribe.

A contestant is used in many processes: the parent asks for its broker's command line, each worker for a Bus. So it has
no state of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from broker.measuring.pacing import send_paced
from broker.measuring.payloads import Payload, Tensor

if TYPE_CHECKING:
    from bench.tasks import Task

Handler = Callable[[Payload], None]
Array = npt.NDArray[np.generic]


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The dtype of a name, also of `bfloat16`, which numpy has from the package ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Publisher(ABC):
    """Publishes to one topic."""

    _ordinary: Tensor | None = None

    @abstractmethod
    def send(self, payload: bytes) -> None:
        """Publishes one message that leaves at once."""

    def send_paced(self, cycle: Sequence[bytes], count: int, rate_hz: float, delay_s: float) -> list[int]:
        """Sends messages at a steady rate: broker.measuring.pacing.send_paced, in the way that suits the client."""
        return send_paced(self.send, cycle, count, rate_hz, delay_s)

    @abstractmethod
    def send_many(self, payloads: Sequence[bytes]) -> None:
        """Publishes each payload as a message of its own, in the fastest way that an application has by default."""

    @abstractmethod
    def send_tensor(self, tensor: Tensor) -> None:
        """Publishes one array; when this returns, the caller may write to it."""

    def lend(self, size_bytes: int) -> Tensor:
        """An array to be filled and given to `send_lent`, in the transport's memory where the client lends it."""
        if self._ordinary is None or self._ordinary.nbytes != size_bytes:
            self._ordinary = np.empty(size_bytes // 4, np.float32)
        return self._ordinary

    def send_lent(self, tensor: Tensor) -> None:
        """Publishes the array that was lent last; the caller does not write to it any more."""
        self.send_tensor(tensor)

    @abstractmethod
    def flush(self) -> None:
        """Returns when everything published so far has left this process."""


class Subscriber(ABC):
    """Receives the messages of one topic, in order."""

    @abstractmethod
    def receive(self) -> Payload:
        """Waits for the next message; the payload is valid until the next call."""

    def each(self, take: Callable[[Payload], bool]) -> None:
        """Calls a function with each message until it returns True; the payload is valid until it returns."""
        while not take(self.receive()):
            pass

    @abstractmethod
    def receive_many(self) -> Iterator[Payload]:
        """Yields message after message, without end, in the fastest way that an application has."""

    @abstractmethod
    def receive_tensor(self) -> Tensor:
        """Waits for the next array; it is valid until the next call."""


class Responder(ABC):
    """Answers requests with their own payload."""

    @abstractmethod
    def serve(self, count: int) -> None:
        """Answers so many requests."""


Requester = Callable[[bytes], Payload]
"""Asks, and returns the reply's payload."""


class WorkQueue(ABC):
    """One connection's end of a queue whose messages are done at least once."""

    @abstractmethod
    def put_many(self, payloads: Sequence[bytes]) -> None:
        """Puts each payload in as a job of its own; when this returns, the broker has them."""

    @abstractmethod
    def take(self, timeout_s: float) -> Payload | None:
        """The next job, to be acknowledged before the next call; None when there is none in time."""

    @abstractmethod
    def acknowledge(self) -> None:
        """The job that was taken is done. The broker hears of it when the next jobs are fetched, or before."""


class Collective(ABC):
    """One rank of a group, whose other ranks are there when it is made."""

    def empty(self, count: int, dtype: str) -> Array:
        """An array to be reduced, in the memory that suits the system; asked for once."""
        return np.empty(count, numpy_dtype(dtype))

    @abstractmethod
    def barrier(self) -> None:
        """Waits for all ranks."""

    @abstractmethod
    def all_reduce(self, array: Array) -> Callable[[], object]:
        """What sums this array over the ranks, in place, each time that it is called."""


class Bus(ABC):
    """One process's connection to a broker."""

    @abstractmethod
    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        """A publisher.

        Args:
            topic: where to.
            lane: `control` asks for what the system has to let messages pass others, `bulk` to let others pass them.
        """

    @abstractmethod
    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        """A subscriber that the broker knows of when this returns; all messages of the topic have this size."""

    @abstractmethod
    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        """Calls a function with each message of a topic, on the client's own thread, from when this returns.

        It is for a bus that was connected with `threads=True`, and is called once, after all its `subscriber`s were
        made. What waits for a reader that is too slow is bounded, and dropped, as the contestant's name says.
        """

    def publish(self, topic: str, payload: bytes) -> None:
        """Publishes one message to one of very many topics."""
        self.publisher(topic).send(payload)

    def hold(self, topics: Sequence[str]) -> None:
        """Subscribes to topics to which nobody publishes; the broker knows of it when this returns."""
        self._held = [self.subscriber(topic, 0) for topic in topics]

    def responder(self, topic: str, size_bytes: int) -> Responder:
        """An end that answers requests, and that the broker knows of; for contestants that have requests."""
        raise NotImplementedError

    def requester(self, topic: str, size_bytes: int) -> Requester:
        """An end that asks and waits for the reply; for contestants that have requests."""
        raise NotImplementedError

    def work_queue(self, name: str) -> WorkQueue:
        """An end of a work queue, which exists when this returns; for contestants that have them."""
        raise NotImplementedError

    def collective(self, task: Task) -> Collective:
        """A rank of a group, by the rank, world_size, run and size_bytes of a task; for contestants that have them."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Ends the connection after all that was published has left."""


class CollectiveBus(Bus):
    """A process's part in a system that has collectives and no messages."""

    def publisher(self, topic: str, *, lane: str = "default") -> Publisher:
        raise NotImplementedError

    def subscriber(self, topic: str, size_bytes: int) -> Subscriber:
        raise NotImplementedError

    def handle(self, topic: str, size_bytes: int, function: Handler) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """What there was ends with the process."""


class Contestant(ABC):
    """A messaging system.

    Attributes:
        name: what it is called in tables and on the command line. What follows a slash is a variant of the system.
        transports: which it can use, of `tcp`, `tls` and `unix`.
        is_peer: whether it is what somebody would use instead of tensorbus.
        message_bytes_max: the longest message that it passes; None for any.
        publishers_max: how many may publish to one topic; None for any.
        dtypes: which its collectives can sum.
        imports: modules of its client that take a while to import, and start nothing: workers are forked with them.
    """

    name: str
    transports: tuple[str, ...] = ("tcp", "unix")
    is_peer: bool = False
    message_bytes_max: int | None = None
    publishers_max: int | None = None
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    imports: tuple[str, ...] = ()

    @property
    def system(self) -> str:
        """The name without the variant."""
        return self.name.partition("/")[0]

    def missing(self) -> str:
        """What has to be installed before it can take part, and how; empty when nothing."""
        return ""

    def versions(self) -> dict[str, str]:
        """The versions of its broker and its client, by name."""
        return {}

    @abstractmethod
    def broker_command(self, address: str, directory: Path) -> list[str]:
        """The command line of its broker.

        The process prints `listening on ADDRESS` on its standard output once it accepts connections.

        Args:
            address: `tcp://127.0.0.1:0` or `tls://127.0.0.1:0`, where the broker is to choose the port, or
                `unix:///path`.
            directory: for its files; it exists, is empty, and is removed afterwards.
        """

    @abstractmethod
    def connect(self, address: str, *, threads: bool = False) -> Bus:
        """Connects to the broker at the address that it has printed.

        Args:
            address: as printed.
            threads: several threads will use the bus, or `handle` is to be called. Without it, a bus belongs to one
                thread, and waits for messages in the way that makes that thread fastest.
        """

    def launcher(self, ranks: int, address: str) -> list[str]:
        """What stands before a command line to start all ranks of a collective at once; empty for nothing."""
        return []
