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
from broker.protocol.session import Session
from broker.protocol.sharing import (
    DEVICE_VERSION,
    VERSION,
    DeviceArena,
    Memory,
    Passage,
    look_frame,
    mapped_frame,
    place_of,
    release_frames,
)

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
        over: those that have ended, by the line's releases and the position behind the entry.
        due: whether the broker is to look at the places.
        nobody: whether nobody is to be told any more: the session is over, or this is a forked child.
    """

    __slots__ = ("due", "nobody", "over")

    def __init__(self) -> None:
        self.over: deque[tuple[Releases, int]] = deque()
        self.due = False
        self.nobody = False


class LineLease:
    """As Lease, of a message that has come on a line: the broker reads in the place that it is over."""

    __slots__ = ("_entry", "_memory", "_passage", "_told")

    def __init__(self, memory: Memory, entry: tuple[Releases, int], told: _Told, passage: Passage | None) -> None:
        self._memory = memory
        self._passage = passage
        self._entry = entry
        self._told = told

    def __del__(self) -> None:
        # As above: no lock, and a store that nothing comes between.
        told, entry = self._told, self._entry
        if not told.nobody:
            releases, position = entry
            if releases.release(position):
                told.due = True
            told.over.append(entry)


class Leases:
    """All that one session reads in shared memory."""

    def __init__(self) -> None:
        self._arenas: dict[int, Memory] = {}
        self._held: dict[int | tuple[Releases, int], tuple[Memory, int, int]] = {}
        self._over: deque[tuple[int, int]] = deque()
        self._passage: Passage | None = None
        self._told = _Told()
        # Of lines on which something has come, and how much of that is still used.
        self._releases: dict[Releases, int] = {}

    def disconnected(self) -> None:
        """The session is over, and its connection about to be closed: what is still read is made this process's own."""
        self._told.nobody = True
        self._forget_over()
        for number, _ in list(self._over):
            self._held.pop(number, None)
        kept: dict[Memory, list[tuple[int, int]]] = {}
        for memory, offset, size_bytes in self._held.values():
            kept.setdefault(memory, []).append((offset, size_bytes))
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
        self._releases = {}

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
                self._arenas[frame.number] = _on_device(session.passage, frame)
            elif frame.count != VERSION:
                raise InvalidValue("arena of version", frame.count, f"is not of version {VERSION}")
            else:
                memory = self._arenas[frame.number] = session.passage.adopt(frame.sequence, frame.total_bytes)
                memory.close_descriptor()
        except (InvalidValue, LimitExceeded) as error:
            log.warning("arena.refused bytes=%d cause=%s", frame.total_bytes, error)
        session.put(mapped_frame(frame.number, mapped=frame.number in self._arenas))

    def payload(self, frame: Frame) -> Buffer:
        """The bytes of a message that lies in shared memory.

        Raises:
            ProtocolError: the broker has not told of that memory.
        """
        memory, lease, offset = self._find(frame)
        self._held[lease] = memory, offset, frame.total_bytes
        holder = Lease(memory, lease, frame.total_bytes, self._over, self._passage)
        return memory.view(offset, frame.total_bytes, holder)

    def _find(self, frame: Frame) -> tuple[Memory, int, int]:
        """Where a message lies, and the number that its sender has given to that."""
        number, loan, offset = place_of(frame.payload)
        memory, size_bytes = self._arenas.get(number), frame.total_bytes
        if memory is None or offset + size_bytes > memory.size_bytes or not size_bytes:
            raise ProtocolError(f"{size_bytes} bytes at {offset} of arena {number}, which has no such place")
        return memory, loan, offset

    def lined(self, releases: Releases, position: int, frame: Frame) -> Buffer:
        """As `payload`, for a message that has come on a line.

        Args:
            releases: where it is said that it is over.
            position: behind its entry.
            frame: the entry; its publisher need not be trusted.

        Raises:
            ProtocolError: there is no such place. The broker, which looks at it too, has more to say to its publisher.
        """
        try:
            memory, _, offset = self._find(frame)
        except ProtocolError:
            releases.release(position)
            raise
        if isinstance(memory, DeviceMemory):
            releases.release(position)
            raise ProtocolError(f"a place in {memory!r} on a line, which carries those in host memory alone")
        entry = releases, position
        self._held[entry] = memory, offset, frame.total_bytes
        self._releases[releases] = self._releases.get(releases, 0) + 1
        return memory.view(offset, frame.total_bytes, LineLease(memory, entry, self._told, self._passage))

    def _forget_over(self) -> None:
        """Forgets the messages of lines that are not used any more."""
        over = self._told.over
        while over:
            entry = over.popleft()
            if self._held.pop(entry, None) is not None:
                self._releases[entry[0]] -= 1

    def due(self) -> bool:
        """Whether the broker is to be told now which messages are not used any more."""
        if self._told.over:
            self._forget_over()
        if self._told.due:
            return True
        # Of a copy, which is made in one step: more may be over at any moment.
        return bool(self._over) and sum([size_bytes for _, size_bytes in list(self._over)]) >= RELEASE_BYTES

    def give_back(self, session: Session) -> None:
        """Tells the broker which messages are not used any more, or that it is to look in the places of lines."""
        if self._releases:
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
        self._forget_over()
        for releases, held in list(self._releases.items()):
            if releases.late and releases.again():
                due = True
            if releases.due():
                due = True
            if not held and not releases.late:
                del self._releases[releases]
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
