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
from typing import Final

from broker.errors import InvalidValue, LimitExceeded, ProtocolError
from broker.limits import RELEASE_BYTES
from broker.protocol.frames import Flag, Frame
from broker.protocol.session import Session
from broker.protocol.sharing import VERSION, Memory, Passage, mapped_frame, place_of, release_frames

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


class Leases:
    """All that one session reads in shared memory."""

    def __init__(self) -> None:
        self._arenas: dict[int, Memory] = {}
        self._held: dict[int, tuple[Memory, int, int]] = {}
        self._over: deque[tuple[int, int]] = deque()
        self._passage: Passage | None = None

    def disconnected(self) -> None:
        """The session is over, and its connection about to be closed: what is still read is made this process's own."""
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

    def arena(self, session: Session, frame: Frame) -> None:
        """ARENA: the broker will speak of some memory, or not any more."""
        if frame.flags & _LAST:
            self._arenas.pop(frame.number, None)
            return
        if session.passage is None:
            raise ProtocolError("ARENA in a session that shares no memory")
        self._passage = session.passage
        try:
            if frame.count != VERSION:
                raise InvalidValue("arena of version", frame.count, f"is not of version {VERSION}")
            memory = self._arenas[frame.number] = session.passage.adopt(frame.sequence, frame.total_bytes)
            memory.close_descriptor()
        except (InvalidValue, LimitExceeded) as error:
            log.warning("arena.refused bytes=%d cause=%s", frame.total_bytes, error)
        session.put(mapped_frame(frame.number, mapped=frame.number in self._arenas))

    def payload(self, frame: Frame) -> memoryview:
        """The bytes of a message that lies in shared memory.

        Raises:
            ProtocolError: the broker has not told of that memory.
        """
        number, lease, offset = place_of(frame.payload)
        memory = self._arenas.get(number)
        if memory is None or offset + frame.total_bytes > memory.size_bytes:
            raise ProtocolError(f"{frame.total_bytes} bytes at {offset} of arena {number}, which has no such place")
        self._held[lease] = memory, offset, frame.total_bytes
        holder = Lease(memory, lease, frame.total_bytes, self._over, self._passage)
        return memory.view(offset, frame.total_bytes, holder)

    def due(self) -> bool:
        """Whether the broker is to be told now which messages are not used any more."""
        # Of a copy, which is made in one step: more may be over at any moment.
        return bool(self._over) and sum([size_bytes for _, size_bytes in list(self._over)]) >= RELEASE_BYTES

    def give_back(self, session: Session) -> None:
        """Tells the broker which messages are not used any more."""
        over = self._over
        if over:
            numbers = [over.popleft()[0] for _ in range(len(over))]
            for number in numbers:
                self._held.pop(number, None)
            for frame in release_frames(numbers):
                session.put(frame)
