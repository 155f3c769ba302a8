"""What a reader of a line has of it in shared memory, from when the broker has drained it until the reader lets go.

    reader                      broker                                            publisher
    takes an entry              drains it: a Loan, and a lease of each reader
    its last array is gone:
    says so in its place  --->  reads what was let go of, drains up to the
    (no system call)            head, and ends these leases         --RELEASE-->  writes there again

The leases stand among those that the session has by DELIVER, and end with it as they do. A line may end before them:
the reader goes on to say in its place what it lets go of, and the broker goes on to look there.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from broker.errors import ProtocolError
from broker.limits import LEASES_MAX
from broker.protocol.line import Releases
from broker.protocol.sharing import CommonMemory

if TYPE_CHECKING:
    from broker.state.records import SessionRecord
    from broker.state.sharing import Loan

log = logging.getLogger(__name__)


class LineLeases:
    """What one reader has of one line.

    Attributes:
        reader: the session that reads.
        publisher: the session that has lent it.
    """

    __slots__ = ("_held", "_numbers", "_releases", "_seen", "_shares", "publisher", "reader")

    def __init__(self, reader: SessionRecord, publisher: SessionRecord, place: CommonMemory) -> None:
        assert reader.shares is not None
        self.reader = reader
        self.publisher = publisher
        self._shares = reader.shares
        self._held = reader.shares.leases
        # The leases' numbers, by the positions behind their entries, in that order.
        self._numbers: dict[int, int] = {}
        self._releases: Releases | None = Releases(place, place.address)
        self._seen = 0

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def full(self) -> bool:
        """Whether the reader has as much as it may have."""
        return len(self._held) >= LEASES_MAX

    def look(self) -> None:
        """The line is about to be drained: what was let go of by now is published by then."""
        if self._releases is not None:
            self._seen = self._releases.released()

    def hold(self, position: int, loan: Loan) -> None:
        """An entry was drained that the reader has, or is about to take."""
        self._numbers[position] = self._shares.hold(loan)

    def collect(self) -> None:
        """The line was drained: ends the leases of which the reader had let go when it was looked."""
        if self._releases is None:
            return
        try:
            positions = self._releases.collect(self._seen)
        except ProtocolError as error:
            # Who writes there what cannot be keeps what it has, to the end of its session.
            log.error("line.releases_unreadable session=%r cause=%s", self.reader.name, error)
            self._releases = None
            return
        for position in positions:
            self._end(position)

    def _end(self, position: int) -> None:
        number = self._numbers.pop(position, None)
        if number is not None:
            self._held.pop(number, None)

    def eject(self, taken: int) -> None:
        """The reader has no right any more to entries that it has not taken."""
        for position in [position for position in self._numbers if position > taken]:
            self._end(position)

    def want(self) -> bool:
        """The publisher waits for memory: the reader is to tell when it has let go of half of what it has. Says whether
        it has done so by now."""
        if self._releases is None or not self._numbers:
            return False
        return self._releases.want(max(1, len(self._numbers) // 2))

    def __repr__(self) -> str:
        return f"<LineLeases {len(self)} of {self.reader.name!r}, lent by {self.publisher.name!r}>"
