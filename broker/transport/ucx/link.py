"""What carriers tell each other over their link (docs/wire.md section 21)."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

MAGIC: Final = b"TBUSUCX1"
"""What a link begins with, each way."""
STRANGER: Final = "it does not speak as the end of a ucx:// address does: it begins with {!r}"
NOTE: Final = Struct("<BQ")
"""A Kind and a number."""
LENGTH: Final = Struct("<H")
LINGER_ZERO: Final = Struct("ii").pack(1, 0)
"""With it closing a link resets it (socket(7), struct linger)."""
ADDRESS_BYTES_MAX: Final = 16_384
"""Of a worker's address; with the packaged UCX they have some hundred, with many network cards a few thousand."""


class Kind(IntEnum):
    """What a note says."""

    HELLO = 1
    """The tag of messages for this end; behind it the length of its worker's address, two bytes, and the address."""
    GRANT = 2
    """How far this end has read: the other may send a ring's length further."""
    END = 3
    """How far this end has sent; no more comes."""
    DONE = 4
    """How far this end has received, when it is all that END said."""


class Malformed(Exception):
    """The peer does not keep to the protocol; the text says how."""


def hello(tag: int, address: bytes) -> bytes:
    """The note that says how to reach this end."""
    return NOTE.pack(Kind.HELLO, tag) + LENGTH.pack(len(address)) + address


class Notes:
    """Splits what came over a link into notes."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False

    def split(self, data: bytes) -> list[tuple[Kind, int, bytes]]:
        """Takes what has come.

        Returns:
            The kind of each note, its number, and the address that a HELLO has.

        Raises:
            Malformed: it is none.
        """
        rest = self._rest + data
        if not self._begun:
            if not rest.startswith(MAGIC[: len(rest)]):
                raise Malformed(STRANGER.format(rest[: len(MAGIC)]))
            if len(rest) < len(MAGIC):
                self._rest = rest
                return []
            self._begun, rest = True, rest[len(MAGIC) :]
        found = []
        while (note := _first(rest)) is not None:
            kind, number, address, size = note
            found.append((kind, number, address))
            rest = rest[size:]
        self._rest = rest
        return found


def _first(data: bytes) -> tuple[Kind, int, bytes, int] | None:
    """The first note and its size; None while some of it is missing."""
    if len(data) < NOTE.size:
        return None
    number_of_kind, number = NOTE.unpack_from(data)
    if number_of_kind not in Kind.__members__.values():
        raise Malformed(f"it sends a note of kind {number_of_kind}")
    kind = Kind(number_of_kind)
    if kind is not Kind.HELLO:
        return kind, number, b"", NOTE.size
    begin = NOTE.size + LENGTH.size
    if len(data) < begin:
        return None
    (length,) = LENGTH.unpack_from(data, NOTE.size)
    if not 0 < length <= ADDRESS_BYTES_MAX:
        raise Malformed(f"its address has {length} bytes, the limit is {ADDRESS_BYTES_MAX}")
    if len(data) < begin + length:
        return None
    return kind, number, data[begin : begin + length], begin + length
