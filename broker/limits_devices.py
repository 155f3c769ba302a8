"""Bounds of device memory that processes of one host share (docs/decisions/0056-device-places.md)."""

from __future__ import annotations

from typing import Final

from broker.limits import KIB, MIB

DEVICE_BYTES_MIN: Final = 64 * KIB
"""Shorter arrays are staged: the question to the broker takes longer than their two copies."""
DEVICE_HEADER_BYTES: Final = 256
"""At the beginning of an arena: its token, and nothing else up to where arrays are aligned as a device likes it."""
DEVICE_TOKEN_BYTES: Final = 16
"""By which a reader knows that it has mapped the arena that it was told of."""
DEVICE_BLOCKS_MIN: Final = 2
"""Of the first arena of a length: one is read while the other one is written."""
DEVICE_ARENA_BYTES: Final = 64 * MIB
"""Blocks of one size are made together, as many as fit into this. Device memory is dear, and all of it is there from
the beginning, unlike that of files."""
DEVICE_LOANS_MAX: Final = 4096
"""Messages in the memory of devices that one publisher has lent, beside those in host memory."""
DEVICES_NAMED_MAX: Final = 64
"""Devices of which one subscription may say that it takes arrays there."""
DEVICE_NAME_BYTES_MAX: Final = 64
"""A device is named by its UUID, in 36 characters."""
DEVICE_ANSWER_S: Final = 0.3
"""How long a publisher waits until its readers have mapped an arena; then the array is staged."""
DEVICE_PATIENCE_S: Final = 0.1
"""How long a publisher whose device memory is all in use waits for a block to come back; then the array is staged."""
DEVICE_AGAIN_NS: Final = 1_000_000_000
"""After the broker has said that not all readers of a topic can take device places, how long its arrays are staged
before it is asked again."""
DEVICE_UNUSED_NS: Final = 30_000_000_000
"""How often arenas go that were not used since the last time, and memory is tried for that was not to be had."""
DEVICE_STRANGERS_MAX: Final = 64
"""Connections of strangers that a rank bears where the others of its group give it their device memory."""
