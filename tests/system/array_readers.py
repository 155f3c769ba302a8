"""Reads arrays in shared memory whose publishers and other readers are killed, and looks whether they stay whole."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np

import clients
from tests.system.nursery import HELD_MAX, TOPIC, is_torn


class ArrayReader:
    """Takes every array of the topic on a thread of its own, and looks at each again after some others. A text ends it.

    Attributes:
        numbers: by which the arrays were filled, in order.
        shared: how many of them were shared.
        lined: how many came while there was a line.
        torn: messages that were not as a whole what had been published.
    """

    def __init__(self, bus: clients.Client, queue_messages: int) -> None:
        self._bus = bus
        self.subscription = bus.subscribe(TOPIC, queue_messages=queue_messages)
        self.numbers: list[int] = []
        self.shared = self.lined = 0
        self.torn: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        held: deque[np.ndarray] = deque()
        for message in self.subscription:
            if isinstance(message.value, str):
                return
            self.lined += self._bus._core.lines.count > 0
            self.shared += not message.value.flags.writeable
            held.append(message.value)
            self.numbers.append(int(held[-1][0]))
            if is_torn(held[-1]) or is_torn(held[0]):
                self.torn.append(repr(message))
            if len(held) > HELD_MAX:
                held.popleft()

    def join(self, timeout_s: float) -> None:
        """Returns when it has read the text."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()
