"""What an owner and its carrier share: memory with a ring for each direction, and a socket to tell how far they are.

    memory   | what the owner sends: UCX_RING_BYTES | what the owner receives: UCX_RING_BYTES |

A position counts the bytes of one direction from the start of the stream; byte n lies at n modulo UCX_RING_BYTES. All
positions pass over the socket, a SOCK_SEQPACKET, so that neither reads memory that the other may be writing: a message
over a socket is seen after what was written before it. When the socket ends, so has the process at its other end.
"""

from __future__ import annotations

import mmap
from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

from broker.limits import UCX_RING_BYTES

FROM_OWNER: Final = Struct("<QQB")
"""How far the owner has written, how far it has read, and a Wish."""
FROM_CARRIER: Final = Struct("<QQB")
"""How far there is something to read, how far the peer has read, and a State; then why it ended, in UTF-8."""
STEP_BYTES: Final = UCX_RING_BYTES // 4
"""What was read is told in steps of this: of the ring, at least half can always be written to."""
REASON_BYTES_MAX: Final = 500
READY: Final = b"ready"
"""What the process says from which carriers are forked, when it can."""


class Wish(IntFlag):
    """What an owner wants beyond moving bytes."""

    END = 1
    """The peer is to read the end when it has read all that was written."""
    ABORT = 2
    """The connection is to end at once."""


class State(IntEnum):
    """What has become of a connection, as its carrier sees it."""

    OPEN = 0
    ENDED = 1
    """The peer sends no more; when that has come to `reads` all of it is there."""
    LOST = 2
    """Nothing more comes and nothing more leaves."""


def map_rings(descriptor: int) -> tuple[memoryview, memoryview]:
    """The two rings, the one for what the owner sends first."""
    whole = memoryview(mmap.mmap(descriptor, 2 * UCX_RING_BYTES))
    return whole[:UCX_RING_BYTES], whole[UCX_RING_BYTES:]
