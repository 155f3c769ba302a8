"""Bounds of links between the members of a group (docs/wire.md section 15)."""

from __future__ import annotations

from typing import Final

from broker.limits import KIB

LINKED_RANKS_MAX: Final = 64
"""Members of a generation that are linked: each has a connection to every other one."""
LINK_ADDRESSES_MAX: Final = 4
"""Places at which one member can be reached."""
LINK_ADDRESS_BYTES_MAX: Final = 64
"""An address is a number and a port."""
LINK_MEETING_S: Final = 5.0
"""How long the members of a generation may take to find one another, before they go by `star`."""
LINK_DIAL_S: Final = 3.0
"""How long a member tries to reach another one, so that it can still say in time that it did not."""
LINK_GRACE_S: Final = 0.5
"""After members lose a link the broker waits this long, to hear whether one of them is gone."""
LINK_BREAKS_MAX: Final = 2
"""Generations in a row that lose a link and finish nothing, before the same members go by `star`."""
LINK_REPORTS_OWED_MAX: Final = 8
"""Generations of a group that have ended and of which a member has not said what it has finished."""
LINK_LANES: Final = 1
"""Connections between two members."""
LINK_USER_TIMEOUT_MS: Final = 30_000
"""What was sent over a link and has not been confirmed for so long will not be: the link is lost."""
LINK_VERDICT_S: Final = 120.0
"""How long a member waits to be told whether an operation was finished: the broker first has to lose who is silent."""
LINK_HALF_OPEN_MAX: Final = 128
"""Connections that have come to a member and not proved yet whose they are; then the oldest is closed."""
LINK_HELLO_S: Final = 3.0
"""How long such a connection may take."""

LINK_REPORT_S: Final = 0.1
"""How often members say what they are at, so that one that stands still is named within a second."""
LINK_REPORT_LAST_S: Final = 0.5
"""How long what they say of a generation that has ended is waited for: members tick ten times a second."""
LINK_REPORT_OPERATIONS: Final = 16
"""Operations that a member tells of in one report when it does many more; of groups with many members, fewer."""
LINK_REPORT_GROUP_OPERATIONS: Final = 256
"""And so many in the reports of all members together: at 5 us for each (measured) about a hundredth of the broker's
thread, for a group in a fast loop."""
LINK_REPORTS_QUEUED_BYTES_MAX: Final = 64 * KIB
"""A member whose control lane is that long says nothing more of its operations for the moment."""
LINK_WORDS_MAX: Final = 128
"""Operations of which the broker remembers what one member has said, until it knows what to make of them."""
LINK_CLOCK_NS: Final = 5_000_000_000
"""Over so long, and as long again, the quickest report says how a member's clock stands; clocks drift apart by some
tens of microseconds in a second."""
