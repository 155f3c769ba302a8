"""A session that keeps what it is given to send."""

from __future__ import annotations

from broker.protocol.bodies import Hello
from broker.protocol.frames import Frame
from broker.protocol.session import Session


class Recording(Session):
    """A client's end without a link.

    Attributes:
        frames: all that was put into it, oldest first.
    """

    def __init__(self) -> None:
        super().__init__(
            hello=Hello("test"), now_ns=0, allocate=lambda frame, size: memoryview(bytearray(size)),
            heartbeat_interval_s=5.0, heartbeat_timeout_s=30.0,
        )  # fmt: skip
        self.frames: list[Frame] = []

    def put(self, frame: Frame) -> None:
        self.frames.append(frame)
