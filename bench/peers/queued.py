"""A subscriber whose messages another thread has received."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Final

import numpy as np

from bench.contestant import Payload, Subscriber, Tensor

AHEAD: Final = 4096
"""Messages that wait for the reader; far more than any benchmark lets wait, so that nobody's thread ever blocks."""


class QueuedSubscriber(Subscriber):
    """Takes what a client's own thread puts."""

    def __init__(self) -> None:
        self._messages: queue.Queue[Payload] = queue.Queue(AHEAD)
        self.put = self._messages.put

    def receive(self) -> Payload:
        return self._messages.get()

    def receive_many(self) -> Iterator[Payload]:
        while True:
            yield self._messages.get()

    def receive_tensor(self) -> Tensor:
        return np.frombuffer(self._messages.get(), np.float32)
