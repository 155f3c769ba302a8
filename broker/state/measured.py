"""What clients have measured: how long messages took to reach them, all clients together."""

from __future__ import annotations

import operator
from typing import Final

from broker.devices import Copies
from broker.histograms import BUCKETS, Histogram
from broker.protocol.bodies import decode_body
from broker.protocol.frames import LANES, Frame
from broker.protocol.measured import Measured
from broker.state.records import SessionRecord

SUM_NS_MAX: Final = 1 << 62


class Latencies:
    """The sum of all reports since the broker began.

    Attributes:
        lanes: a histogram for each lane.
        early: messages that had come before they were published, by their publishers' clocks.
        copied: between host and devices, in the clients' processes.
    """

    def __init__(self) -> None:
        self.lanes = [Histogram() for _ in range(LANES)]
        self.early = 0
        self.copied = Copies()

    def measured(self, session: SessionRecord, frame: Frame, now_ns: int) -> None:
        """MEASURED: a client's report."""
        report = decode_body(frame.body, Measured)
        report.check()
        for histogram, counts, sum_us in zip(self.lanes, report.counts, report.sums_us, strict=True):
            # Whatever clients claim, it fits 64 bits.
            histogram.add(counts or [0] * BUCKETS, min(sum_us * 1000, SUM_NS_MAX - histogram.sum_ns))
        self.early += report.early
        if report.copied:
            self.copied = Copies(*map(operator.add, self.copied, report.all_copied))

    def __repr__(self) -> str:
        return f"<Latencies messages={[lane.total for lane in self.lanes]} early={self.early}>"
