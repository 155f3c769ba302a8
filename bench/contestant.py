"""What a messaging system has to offer to be measured: a broker process, and a connection to publish and subscribe.

A contestant is used in many processes: the parent asks for its broker's command line, each worker for a Bus. So it has
no state of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[np.float32]
Payload = bytes | bytearray | memoryview


class Publisher(ABC):
    """Publishes to one topic."""

    @abstractmethod
    def send(self, payload: bytes) -> None:
        """Publishes one message that leaves at once."""

    @abstractmethod
    def send_many(self, payloads: Sequence[bytes]) -> None:
        """Publishes each payload as a message of its own, in the fastest way that an application has by default."""

    @abstractmethod
    def send_tensor(self, tensor: Tensor) -> None:
        """Publishes one array; when this returns, the caller may write to it."""

    @abstractmethod
    def flush(self) -> None:
        """Returns when everything published so far has left this process."""


class Subscriber(ABC):
    """Receives the messages of one topic, in order."""

    @abstractmethod
    def receive(self) -> Payload:
        """Waits for the next message; the payload is valid until the next call."""

    @abstractmethod
    def receive_many(self) -> Iterator[Payload]:
        """Yields message after message, without end, in the fastest way that an application has."""

    @abstractmethod
    def receive_tensor(self) -> Tensor:
        """Waits for the next array; it is valid until the next call."""


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
    def close(self) -> None:
        """Ends the connection after all that was published has left."""


class Contestant(ABC):
    """A messaging system.

    Attributes:
        name: what it is called in tables and on the command line.
        transports: which it can use, of `tcp` and `unix`.
    """

    name: str
    transports: tuple[str, ...] = ("tcp", "unix")

    @abstractmethod
    def broker_command(self, address: str) -> list[str]:
        """The command line of its broker.

        The process prints `listening on ADDRESS` on its standard output once it accepts connections.

        Args:
            address: `tcp://127.0.0.1:0`, where the broker is to choose the port, or `unix:///path`.
        """

    @abstractmethod
    def connect(self, address: str) -> Bus:
        """Connects to the broker at the address that it has printed."""
