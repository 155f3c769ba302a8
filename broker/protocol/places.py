# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined,no-any-return"
"""Where a message in shared memory lies (docs/wire.md section 13).

A PUBLISH or DELIVER with the flag SHARED has as its payload not the message's but its place:

    0               4               8                              16
    +---------------+---------------+-------------------------------+
    | arena     u32 | loan      u32 | offset in the arena       u64 |
    +---------------+---------------+-------------------------------+

ARENA has told before which memory the arena is. Whoever has got such a frame says RELEASE with its loan when it needs
the bytes no more. See sharing.py.
"""

from __future__ import annotations

import struct
from typing import Final

from broker.buffers import Buffer
from broker.errors import ProtocolError
from broker.limits import FRAME_PAYLOAD_BYTES_MAX, SHARED_CHARGE_SHIFT

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

PLACE: Final = struct.Struct("<IIQ")
_PAYLOAD_BYTES_MAX, _CHARGE_SHIFT = FRAME_PAYLOAD_BYTES_MAX, SHARED_CHARGE_SHIFT


def packed_place(arena: int, loan: int, offset: int) -> bytes:
    """The payload that says where a message lies."""
    if not cython.compiled:
        return PLACE.pack(arena, loan, offset)
    return _packed(arena, loan, offset)


def place_of(payload: Buffer) -> tuple[int, int, int]:
    """Arena, loan and offset of a shared message.

    Raises:
        ProtocolError: the payload is not a place.
    """
    if cython.compiled:
        place = place_in(payload)
        if place:
            return place.arena, place.loan, place.offset
    if len(payload) != PLACE.size:
        raise ProtocolError(f"shared message whose place has {len(payload)} bytes; it has {PLACE.size}")
    return PLACE.unpack(payload)


def renamed(place: bytes, name: int) -> bytes:
    """A place with another number for its arena."""
    _, loan, offset = place_of(place)
    return packed_place(name, loan, offset)


def charge(size_bytes: int) -> int:
    """What a shared message of so many bytes takes of its topic's credit, besides its body."""
    return min(size_bytes >> _CHARGE_SHIFT, _PAYLOAD_BYTES_MAX)
