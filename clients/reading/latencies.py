"""How long messages take from their publishers to this client: counted as they come, and told to the broker.

The time is that of the publisher's clock when it published, to that of this host when the client has read the last
byte. What waits here for the application is not in it. On one host both clocks are the same. Between hosts the
difference of their clocks is in it, and where it makes a time negative, that is counted.

Nothing is measured that was published before its subscription began: what a topic has retained is old and not late;
nor jobs that are delivered again. Whatever comes singly counts. Of a batch a few messages, evenly over it, stand for
all: that costs the same for 4,096 messages as for 8. No clock is read for any of it: the time is that of the read, and
both clocks are compared ten times a second.
"""

from __future__ import annotations

import time
from typing import Final

from broker.devices import untold_copies
from broker.histograms import Histogram
from broker.limits import BATCH_SAMPLES, LATENCY_NS_MAX
from broker.protocol.bodies import encode_body
from broker.protocol.frames import LANES, Frame, Kind, Lane
from broker.protocol.measured import Measured
from broker.protocol.session import Session
from clients.reading.messages import Message

COMPARED_NS: Final = 20_000
"""When two looks at a clock are further apart, something else has run between them."""
COMPARISONS: Final = 20
"""How often clocks are compared until nothing has run between the looks, when nothing is known yet."""
_SAMPLES, _LONGEST_NS = BATCH_SAMPLES, LATENCY_NS_MAX


def wall_offset_ns(known_ns: int = 0) -> int:
    """Wall-clock time less monotonic time.

    Args:
        known_ns: what it was, which is given when the clocks cannot be compared well at this moment; 0 is not known,
            and then the best of some comparisons is given.
    """
    apart_max_ns, found_ns = COMPARED_NS if known_ns else LATENCY_NS_MAX, known_ns
    for _ in range(1 if known_ns else COMPARISONS):
        before_ns, wall_ns, after_ns = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        if after_ns - before_ns <= apart_max_ns:
            apart_max_ns, found_ns = after_ns - before_ns, wall_ns - (before_ns + after_ns) // 2
        if apart_max_ns <= COMPARED_NS:
            break
    return found_ns


class Latencies:
    """What one client has measured and not told yet.

    Attributes:
        wall_ns: the wall clock's time of the last read.
        interval_ns: between two reports; 0 when the broker wants none, and nothing is measured.
    """

    __slots__ = ("_devices", "_early", "_histograms", "_next_ns", "_offset_ns", "interval_ns", "wall_ns")

    def __init__(self) -> None:
        self.wall_ns = 0
        self.interval_ns = 0
        self._offset_ns = 0
        self._next_ns = 0
        self._early = 0
        self._devices = False
        self._histograms = [Histogram() for _ in range(LANES)]

    def connected(self, report_ms: int, *, devices: bool = False) -> None:
        """A session is open.

        Args:
            report_ms: how often its broker wants reports; 0 is never.
            devices: whether it takes messages in the memory of devices, and so knows of what is copied within them.
        """
        self._devices = devices
        self.interval_ns = report_ms * 1_000_000
        self._offset_ns = wall_offset_ns()

    def read_at(self, now_ns: int) -> None:
        """Something has been read, at a time of the monotonic clock; 0 is not known."""
        self.wall_ns = now_ns + self._offset_ns if now_ns else 0

    def arrived(self, lane: int, published_ns: int, began_ns: int) -> None:
        """A message has come.

        Args:
            lane: in which.
            published_ns: its publisher's wall clock.
            began_ns: when its subscription began, by this host's wall clock.
        """
        if self.interval_ns and self.wall_ns and published_ns >= began_ns:
            self._count(lane, published_ns, 1)

    def batch_arrived(self, messages: list[Message], began_ns: int) -> None:
        """Messages of one lane have come together, in the order in which they were published."""
        if not self.interval_ns or not self.wall_ns:
            return
        count = len(messages)
        samples = min(count, _SAMPLES)
        for sample in range(samples):
            # Each stands for the messages from its own place to the next one's.
            first, end = sample * count // samples, (sample + 1) * count // samples
            message = messages[(first + end) // 2]
            if message.published_ns >= began_ns:
                self._count(message._lane, message.published_ns, end - first)

    def _count(self, lane: int, published_ns: int, weight: int) -> None:
        time_ns = self.wall_ns - published_ns
        if time_ns < 0:
            self._early += weight
        elif time_ns > _LONGEST_NS:
            time_ns = _LONGEST_NS
        histogram = self._histograms[lane]
        histogram.observe(time_ns, weight)

    def tick(self, now_ns: int, session: Session) -> None:
        """Time has passed: clocks are compared, and what is due is told."""
        if not self.interval_ns:
            return
        self._offset_ns = wall_offset_ns(self._offset_ns)
        if now_ns >= self._next_ns:
            self._next_ns = now_ns + self.interval_ns
            self.tell(session)

    def tell(self, session: Session) -> None:
        """Tells the broker what was measured, if anything was."""
        if not self.interval_ns:
            return
        copied = untold_copies(within=self._devices)
        if not any(copied) and not any(histogram.total for histogram in self._histograms):
            return
        taken = [histogram.take() for histogram in self._histograms]
        early, self._early = self._early, 0
        counts = [counts if any(counts) else [] for counts, _ in taken]
        told = list(copied) if any(copied) else []
        body = encode_body(Measured(counts, [sum_ns // 1000 for _, sum_ns in taken], early, told))
        session.put(Frame(Kind.MEASURED, lane=Lane.BULK, body=body))
