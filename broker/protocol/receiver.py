"""Who hears what the peer of a session says."""

from __future__ import annotations

from collections.abc import Callable

from broker.protocol.bodies import Hello, Welcome
from broker.protocol.frames import Frame

Received = Frame | Hello | Welcome


class Receiver:
    """Gets each thing that is complete, in the order in which it came. A class, as broker/wires.py says."""

    __slots__ = ()

    def receive(self, received: Received, now_ns: int) -> None:
        """Something is complete; `now_ns` is the monotonic time. A ProtocolError from here fails the session."""
        raise NotImplementedError


class CallingReceiver(Receiver):
    """A receiver that is a function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[[Received, int], None]) -> None:
        self._function = function

    def receive(self, received: Received, now_ns: int) -> None:
        self._function(received, now_ns)


Deliver = Receiver | Callable[[Received, int], None]
