"""What the ends of a session say of the memory that they share (docs/wire.md section 13).

ARENA tells which memory one of them is about to speak of, RELEASE which messages in it are needed no more; in between,
frames say where messages lie (places.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from broker.protocol.bodies import decode_body, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane

VERSION: Final = 1
"""Of the layout of arenas, which is that of broker/transport/shared_memory.py."""
DEVICE_VERSION: Final = 2
"""Of arenas in the memory of a device, which is that of broker/devices/memory.py."""
RELEASED_AT_ONCE_MAX: Final = 8192
"""Loans that one RELEASE names; with its numbers it is less than a body may be."""


class HasDescriptor(Protocol):
    """What keeps a descriptor open until it has left."""

    descriptor: int


class Memory(Protocol):
    """What an arena lies in."""

    descriptor: int
    size_bytes: int
    identity: int

    @property
    def address(self) -> int:
        """Of its first byte in this process."""
        ...

    def view(self, offset: int, size_bytes: int, holder: object) -> memoryview:
        """Some of the bytes, which keep `holder` alive."""
        ...

    def keep(self, parts: Iterable[tuple[int, int]]) -> None:
        """Makes some parts, by offsets and lengths, this process's own, so that they stay as they are.

        Raises:
            LimitExceeded: there is no memory for them.
        """
        ...

    def close_descriptor(self) -> None:
        """It is to be passed on to nobody any more."""
        ...


class CommonMemory(Memory, Protocol):
    """Memory that the broker has made and passes on."""

    def handle(self, *, read_only: bool = False) -> HasDescriptor:
        """Another descriptor of it, which is closed with the last reference; see Passage.give.

        Raises:
            LimitExceeded: there is none to be had.
        """
        ...


class Passage(Protocol):
    """How memory passes from one end of a session to the other."""

    enabled: bool

    def give(self, memory: HasDescriptor) -> None:
        """Lets what is behind a descriptor leave with the next write."""
        ...

    def adopt(self, identity: int, size_bytes: int, *, common: bool = False, read_only: bool = False) -> Memory:
        """Memory that has arrived, to read, or to write to as well if it is common and not to be read only.

        Raises:
            InvalidValue, LimitExceeded: there is none, or it cannot be used.
        """
        ...

    def take(self, identity: int) -> HasDescriptor | None:
        """An eventfd that has arrived; None when there is none. What is returned closes it."""
        ...

    def take_device(self, identity: int) -> HasDescriptor | None:
        """The next descriptor of a device's memory that has arrived with this number, which several may have; None when
        there is none. What is returned closes it."""
        ...


class DeviceMemory(HasDescriptor, Protocol):
    """What an arena lies in, in the memory of a device, which the broker only passes on."""

    size_bytes: int
    identity: int
    name: str
    token: bytes


class DeviceArena(msgspec.Struct, omit_defaults=True):
    """ARENA of version 2: what there is to know of memory of a device.

    Attributes:
        device: its UUID.
        token: the first bytes of the memory.
        topic: from its publisher: on which messages in it will come first, so that its readers can be told.
    """

    device: str
    token: bytes
    topic: str = ""


class Release(msgspec.Struct):
    """RELEASE: the loans of messages whose bytes are needed no more."""

    loans: list[int]


def arena_frame(number: int, memory: Memory) -> Frame:
    """ARENA: here is memory."""
    return Frame(
        Kind.ARENA, lane=Lane.CONTROL, number=number, count=VERSION,
        total_bytes=memory.size_bytes, sequence=memory.identity,
    )  # fmt: skip


def device_arena_frame(number: int, memory: DeviceMemory, topic: str = "") -> Frame:
    """ARENA: here is memory of a device."""
    return Frame(
        Kind.ARENA, lane=Lane.CONTROL, number=number, count=DEVICE_VERSION,
        total_bytes=memory.size_bytes, sequence=memory.identity,
        body=encode_body(DeviceArena(memory.name, memory.token, topic)),
    )  # fmt: skip


def arena_ends(number: int) -> Frame:
    """ARENA: nothing will be said of it any more."""
    return Frame(Kind.ARENA, Flag.LAST, Lane.CONTROL, number=number)


def mapped_frame(number: int, *, mapped: bool, name: int = 0) -> Frame:
    """MAPPED: whether an arena can be used; to its publisher, by which number others know it."""
    return Frame(Kind.MAPPED, lane=Lane.CONTROL, number=number, target=name, count=int(mapped))


def release_frames(loans: Iterable[int]) -> list[Frame]:
    """RELEASE, as many as it takes."""
    numbers = list(loans)
    return [
        Frame(Kind.RELEASE, lane=Lane.CONTROL, body=encode_body(Release(numbers[start : start + RELEASED_AT_ONCE_MAX])))
        for start in range(0, len(numbers), RELEASED_AT_ONCE_MAX)
    ]


def released(frame: Frame) -> list[int]:
    """The loans that a RELEASE names."""
    return decode_body(frame.body, Release).loans


def look_frame() -> Frame:
    """RELEASE without a body: what was let go of is said in the places of lines."""
    return Frame(Kind.RELEASE, lane=Lane.CONTROL)
