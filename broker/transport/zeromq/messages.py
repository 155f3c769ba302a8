"""What one ZeroMQ message says (docs/wire.md section 16).

    0      1                      9
    +------+----------------------+---------------- - -   +---------------- - -
    | kind | position         u64 | bytes of the stream   | more of them, in further parts
    +------+----------------------+---------------- - -   +---------------- - -

A position counts a stream's bytes and MESSAGE_CHARGE_BYTES for each DATA before it, in one direction of one connection.
So it also says whether a message is missing, and is what the other end grants.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from broker.buffers import Buffer

HEADER: Final = struct.Struct("<BQ")
HEADER_BYTES: Final = HEADER.size
VERSION: Final = int.from_bytes(b"TBUSZMQ1", "little")
"""In place of a position in OPEN: what speaks here, and in which version."""
REASON_BYTES_MAX: Final = 512


class Kind(IntEnum):
    """What a message is for."""

    OPEN = 1
    DATA = 2
    GRANT = 3
    END = 4
    RESET = 5


class Malformed(ValueError):
    """A message that nobody of ours has sent; the text says why."""


OPEN: Final = HEADER.pack(Kind.OPEN, VERSION)


def read_header(first: Buffer) -> tuple[int, int]:
    """The kind and the position of a message with this first part.

    Raises:
        Malformed: it is not one of ours.
    """
    if len(first) < HEADER_BYTES:
        raise Malformed(f"a message begins with {HEADER_BYTES} bytes, this one has {len(first)}")
    kind, position = HEADER.unpack_from(first)
    if not Kind.OPEN <= kind <= Kind.RESET:
        raise Malformed(f"a message of kind {kind}; there are 1 to {int(Kind.RESET)}")
    return kind, position


def reset(reason: str) -> bytes:
    """A message that ends a connection at once."""
    return HEADER.pack(Kind.RESET, 0) + reason.encode(errors="replace")[:REASON_BYTES_MAX]


def reason_of(first: Buffer) -> str:
    """Why a RESET came, fit for a log."""
    text = bytes(first[HEADER_BYTES : HEADER_BYTES + REASON_BYTES_MAX]).decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in text)
