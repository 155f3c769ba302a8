"""What a connection over ZeroMQ may have under way, and what the library may take (docs/wire.md section 16)."""

from __future__ import annotations

from typing import Final

from broker.limits import MIB

WINDOW_BYTES: Final = 4 * MIB
"""What one end may have under way to the other, in libzmq's queues and in the sockets: what a peer that does not read
costs, and what a control message may find in front of it."""
MESSAGE_BYTES_MAX: Final = 1 * MIB
"""Bytes of the stream in one message. A message may begin anywhere within the window, and so go over it by as much."""
MESSAGE_CHARGE_BYTES: Final = 256
"""What a message takes of the window beside its bytes: what it costs its reader even when it is empty."""
UNREAD_MESSAGES_MAX: Final = 256
"""Messages that libzmq takes from one peer's socket ahead of us; it bounds one that ignores its window."""
PUMP_MESSAGES_MAX: Final = 512
"""Messages that are taken in before the event loop gets its turn, whatever a stranger sends."""
STRANGERS_MAX: Final = 1024
"""Peers of which it is remembered that they were told that they send rubbish; it stands in the log once for each."""
SOCKETS_MAX: Final = 65_535
"""Clients of one process; libzmq's most."""
KEPT_BYTES: Final = 16 * MIB
"""Blocks up to so long the allocator keeps when they are free, and twice as much at the end of its heap: all that a
few windows take. At most 32 MiB, or glibc goes on as before."""
LINGER_S: Final = 2.0
"""How long a closed connection goes on delivering, and so the most that the end of a process waits for it."""
