"""MEASURED: what a client tells of the times that messages took to reach it (docs/wire.md section 17)."""

from __future__ import annotations

from typing import Final

import msgspec

from broker.devices import Copies
from broker.errors import ProtocolError
from broker.histograms import BUCKETS
from broker.limits import REPORTED_MAX
from broker.protocol.frames import LANES

_COPIED_MIN: Final = Copies._fields.index("within")


class Measured(msgspec.Struct, omit_defaults=True):
    """Since the last report of this session, of messages that have come since their subscriptions began.

    Attributes:
        counts: of each lane, how many messages took so long; see broker/histograms.py for the bounds. Empty where there
            were none.
        sums_us: of each lane, all their times together, in microseconds.
        early: messages that had come before they were published, by their publishers' clocks. They count as 0 too.
        copied: between host and devices, of the client's process: copies to the host, their bytes, copies to devices,
            their bytes, and staging buffers that could not be pinned; then, if there were any, copies within devices,
            their bytes, and arrays that took a detour through the host. Empty where there were none.
    """

    counts: list[list[int]]
    sums_us: list[int]
    early: int = 0
    copied: list[int] = []

    def __post_init__(self) -> None:
        # Brokers of before there were others know the first five.
        if not any(self.copied[_COPIED_MIN:]):
            self.copied = self.copied[:_COPIED_MIN]

    @property
    def all_copied(self) -> Copies:
        """What was copied, in a report that has been checked."""
        return Copies(*self.copied)

    def check(self) -> None:
        """Refuses what cannot be.

        Raises:
            ProtocolError: it has other lanes or buckets than there are, or a number that is out of bounds.
        """
        shaped = len(self.counts) == len(self.sums_us) == LANES and all(
            len(counts) in (0, BUCKETS) for counts in self.counts
        )
        shaped = shaped and len(self.copied) in (0, _COPIED_MIN, len(Copies._fields))
        numbers = [self.early, *self.copied, *self.sums_us, *(count for counts in self.counts for count in counts)]
        if not shaped or not all(0 <= number <= REPORTED_MAX for number in numbers):
            raise ProtocolError(
                f"MEASURED: {LANES} lanes of {BUCKETS} counts or none, from 0 to {REPORTED_MAX} each, were expected"
            )
