# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined,no-any-return"
"""What a client reads in shared memory: the arenas that it has mapped, and the messages in them that it still uses.

A message's bytes stay as they are until its Lease ends, and that ends with the last array or view over them, on
whatever thread. The broker is told when the client next speaks of credit, waits, or as time passes.

When the session ends, nobody can be told any more: what is still read then is copied, and the copy takes its place
under the arrays. The connection is closed after that, and the broker lets nobody write to the memory before it is. Of a
client that is forgotten and never closed, the arrays themselves hold the connection.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import Final, cast

from broker.buffers import Buffer
from broker.devices.memory import DeviceMemory
from broker.errors import InvalidValue, LimitExceeded, ProtocolError
from broker.limits import RELEASE_BYTES
from broker.protocol.bodies import decode_body
from broker.protocol.frames import Flag, Frame
from broker.protocol.line import Releases
from broker.protocol.places import place_of
from broker.protocol.session import Session
from broker.protocol.sharing import (
    DEVICE_VERSION,
    VERSION,
    DeviceArena,
    Memory,
    Passage,
    look_frame,
    mapped_frame,
    release_frames,
)
from broker.transport.held import Held

log = logging.getLogger(__name__)

_LAST: Final = Flag.LAST


class Lease:
    """The right to read one message's bytes, for as long as anything refers to this."""

    __slots__ = ("_memory", "_over", "_passage", "_told")

    def __init__(
        self, memory: Memory, number: int, size_bytes: int, over: deque[tuple[int, int]], passage: Passage | None
    ) -> None:
        self._memory = memory
        self._passage = passage
        self._told = number, size_bytes
        self._over = over

    def __del__(self) -> None:
        # On any thread and at any moment, also in the middle of a call of this client: it takes no lock.
        self._over.append(self._told)


class _Told:
    """What the leases of lines say to those who keep account of them.

    Attributes:
        due: whether the broker is to look at the places.
        nobody: whether nobody is to be told any more: the session is over, or this is a forked child.
    """

    def __init__(self) -> None:
        self.due = False
        self.nobody = False


class HeldOnLine:
    """What is still used of what has come on one line.

    Attributes:
        releases: where it is said that it is not.
        held: by the positions behind the entries, where their messages lie.
        told: what is said of it, and to whom.
        listed: whether it is among those that are looked at.
    """

    def __init__(self, releases: Releases, told: _Told) -> None:
        """Made by `Leases.line`."""
        self.releases = releases
        self.held: dict[int, tuple[_Mapped, int, int]] = {}
        self.told = told
        self.listed = False


class LineLease(Held):
    """As Lease, of a message that has come on a line, and its bytes: the broker reads in the place that it is over."""

    _line: HeldOnLine
    _passage: Passage | None
    _position: int

    def __del__(self) -> None:
        # As above: no lock, and nothing comes between.
        line = self._line
        if line is not None and not line.told.nobody:
            if line.releases.release(self._position):
                line.told.due = True
            line.held.pop(self._position, None)


class _Mapped:
    """Memory that the broker has told of.

    Attributes:
        address: of its first byte, and `size_bytes` its length, as long as `memory` is there.
        on_device: whether it is a device's.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.address = memory.address
        self.size_bytes = memory.size_bytes
        self.on_device = isinstance(memory, DeviceMemory)


class Leases:
    """All that one session reads in shared memory."""

    def __init__(self) -> None:
        self._arenas: dict[int, _Mapped] = {}
        self._held: dict[int, tuple[_Mapped, int, int]] = {}
        self._over: deque[tuple[int, int]] = deque()
        self._passage: Passage | None = None
        self._told = _Told()
        # Of lines on which something has come that is still used, or was when it was looked last.
        self._lines: list[HeldOnLine] = []

    def disconnected(self) -> None:
        """The session is over, and its connection about to be closed: what is still read is made this process's own."""
        self._told.nobody = True
        for number, _ in list(self._over):
            self._held.pop(number, None)
        kept: dict[Memory, list[tuple[int, int]]] = {}
        for held in (self._held, *(line.held for line in self._lines)):
            # A copy, which is made in one step: more may be over at any moment.
            for mapped, offset, size_bytes in list(held.values()):
                kept.setdefault(mapped.memory, []).append((offset, size_bytes))
        for memory, parts in kept.items():
            try:
                memory.keep(parts)
            except LimitExceeded as error:
                log.error("lease.lost messages=%d cause=%s: their arrays may change", len(parts), error)
        self.forget()

    def forget(self) -> None:
        """What is read of this session's is nobody's business any more."""
        self._arenas = {}
        self._held = {}
        self._over = deque()
        self._passage = None
        self._told.nobody = True
        self._told = _Told()
        self._lines = []

    def arena(self, session: Session, frame: Frame) -> None:
        """ARENA: the broker will speak of some memory, or not any more."""
        if frame.flags & _LAST:
            self._arenas.pop(frame.number, None)
            return
        if session.passage is None:
            raise ProtocolError("ARENA in a session that shares no memory")
        self._passage = session.passage
        try:
            if frame.count == DEVICE_VERSION:
                self._arenas[frame.number] = _Mapped(_on_device(session.passage, frame))
            elif frame.count != VERSION:
                raise InvalidValue("arena of version", frame.count, f"is not of version {VERSION}")
            else:
                memory = session.passage.adopt(frame.sequence, frame.total_bytes)
                memory.close_descriptor()
                self._arenas[frame.number] = _Mapped(memory)
        except (InvalidValue, LimitExceeded) as error:
            log.warning("arena.refused bytes=%d cause=%s", frame.total_bytes, error)
        session.put(mapped_frame(frame.number, mapped=frame.number in self._arenas))

    def payload(self, frame: Frame) -> Buffer:
        """The bytes of a message that lies in shared memory.

        Raises:
            ProtocolError: the broker has not told of that memory.
        """
        number, lease, offset = place_of(frame.payload)
        mapped = self._find(number, offset, frame.total_bytes)
        self._held[lease] = mapped, offset, frame.total_bytes
        holder = Lease(mapped.memory, lease, frame.total_bytes, self._over, self._passage)
        return mapped.memory.view(offset, frame.total_bytes, holder)

    def _find(self, number: int, offset: int, size_bytes: int) -> _Mapped:
        """The memory in which a message lies."""
        mapped = self._arenas.get(number)
        if (
            mapped is None
            or not size_bytes
            or size_bytes > mapped.size_bytes
            or offset > mapped.size_bytes - size_bytes
        ):
            raise ProtocolError(f"{size_bytes} bytes at {offset} of arena {number}, which has no such place")
        return mapped

    def line(self, releases: Releases) -> HeldOnLine:
        """For what comes on a line, with the place where it is said that it is over."""
        return HeldOnLine(releases, self._told)

    def lined(self, line: HeldOnLine, position: int, frame: Frame) -> Buffer:
        """As `payload`, for a message that has come on a line.

        Args:
            line: as `line` has given it.
            position: behind the entry.
            frame: the entry; its publisher need not be trusted.

        Raises:
            ProtocolError: there is no such place. The broker, which looks at it too, has more to say to its publisher.
        """
        size_bytes = frame.total_bytes
        try:
            place = place_in(frame.payload)
            if not place:
                raise ProtocolError(f"{frame!r} on a line, whose payload is not a place")
            mapped, offset = self._find(place.arena, place.offset, size_bytes), place.offset
            if mapped.on_device:
                raise ProtocolError(f"a place in {mapped.memory!r} on a line, which carries those in host memory alone")
        except ProtocolError:
            line.releases.release(position)
            raise
        lease = LineLease.__new__(LineLease)
        lease._line, lease._position, lease._passage, lease._holder = line, position, self._passage, mapped.memory
        lease._address, lease._size_bytes, lease._read_only = mapped.address + offset, size_bytes, True
        line.held[position] = mapped, offset, size_bytes
        if not line.listed:
            line.listed = True
            self._lines.append(line)
        return memoryview(lease)  # type: ignore[arg-type]

    def due(self) -> bool:
        """Whether the broker is to be told now which messages are not used any more."""
        if self._told.due:
            return True
        # Of a copy, which is made in one step: more may be over at any moment.
        return bool(self._over) and sum([size_bytes for _, size_bytes in list(self._over)]) >= RELEASE_BYTES

    def give_back(self, session: Session) -> None:
        """Tells the broker which messages are not used any more, or that it is to look in the places of lines."""
        if self._lines:
            self._look(session)
        over = self._over
        if over:
            numbers = [over.popleft()[0] for _ in range(len(over))]
            for number in numbers:
                self._held.pop(number, None)
            for frame in release_frames(numbers):
                session.put(frame)

    def _look(self, session: Session) -> None:
        """Has the broker look in the places if it waits for that, or if there was no room in one."""
        told = self._told
        due, told.due = told.due, False
        ended = False
        for line in self._lines:
            releases = line.releases
            if releases.late and releases.again():
                due = True
            if releases.due():
                due = True
            if not line.held and not releases.late:
                line.listed, ended = False, True
        if ended:
            self._lines = [line for line in self._lines if line.listed]
        if due:
            session.put(look_frame())


def _on_device(passage: Passage, frame: Frame) -> Memory:
    """Memory of a device that has arrived.

    Raises:
        InvalidValue, LimitExceeded: it has not, or cannot be mapped.
        ProtocolError: the frame is malformed.
    """
    told, handle = decode_body(frame.body, DeviceArena), passage.take_device(frame.sequence)
    if handle is None:
        raise InvalidValue("arena of device", told.device, "has come without its descriptor")
    return cast(Memory, DeviceMemory.adopt(handle.descriptor, told.device, frame.total_bytes, told.token))
