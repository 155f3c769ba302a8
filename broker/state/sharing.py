"""Shared memory in the broker: whose it is, who reads it, and when its publisher may write to it again.

    publisher          broker                             reader
    ARENA      ----->  Arena   --ARENA, the first time-->  maps it, or cannot: then the bytes come as chunks
    MAPPED     <-----                      <--- MAPPED
    PUBLISH    ----->  Loan    ---------- DELIVER ------>  an array over the bytes
    RELEASE    <-----  the last holder is gone  <-RELEASE  the array is gone

A Loan is what keeps a message's bytes as they are. Whoever may still read them refers to it: the message in queues and
rings, a reader's leases until it says RELEASE, and every memoryview on its way into a socket. When nothing does, Python
ends it, and its publisher is told. So there is no count that a forgotten call could leave wrong; a session that ends
drops its leases once its process has closed the connection, and a publisher's end costs its readers nothing: the memory
lives until they are done. What topics retain of it is copied, so that a short message does not hold a long arena.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol
from weakref import ref

from broker.buffers import Buffer
from broker.errors import InvalidValue, LimitExceeded, ProtocolError
from broker.limits import ARENA_SPARSE, ARENAS_BYTES_MAX, ARENAS_MAX, LEASES_MAX, LOANS_MAX
from broker.limits_devices import DEVICE_LOANS_MAX
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, encode
from broker.protocol.places import packed_place, place_of
from broker.protocol.sharing import (
    DEVICE_VERSION,
    VERSION,
    Memory,
    Passage,
    arena_ends,
    arena_frame,
    device_arena_frame,
    mapped_frame,
    release_frames,
    released,
)
from broker.state import device_places
from broker.state.device_places import Introduced, PassedOn
from broker.topics.messages import Stream, shared_stream

if TYPE_CHECKING:
    from broker.state.records import SessionRecord
    from broker.topics.messages import Chunk

log = logging.getLogger(__name__)

_CONTROL: Final = 0
_IN_PARTS = int(Flag.BATCH | Flag.CHUNKED)


class Resumed(Protocol):
    """What waits for a session to say whether it can read an arena."""

    def answered(self) -> None:
        """It has said so."""
        ...


class Arena:
    """Memory of one publisher.

    Attributes:
        number: by which readers know it.
        device: in whose memory it lies, by its UUID; empty of the host's.
        memory: in which it lies, as long as the broker needs that.
        size_bytes: its length.
        owner: its publisher's shares, while that has a session.
        ended: whether its publisher uses it no more.
        loans: how many there are.
        lent_bytes: their bytes.
        readers: the shares of sessions that were told of it.
    """

    __slots__ = (
        "_streams", "device", "ended", "lent_bytes", "loans", "memory", "number", "owner", "readers", "size_bytes"
    )  # fmt: skip

    def __init__(self, number: int, memory: Memory, owner: Shares) -> None:
        self.number = number
        self.memory: Memory | None = memory
        self.device = memory.name if isinstance(memory, PassedOn) else ""
        self.size_bytes = memory.size_bytes
        self.owner: Shares | None = owner
        self.ended = False
        self.loans = self.lent_bytes = 0
        self.readers: set[Shares] = set()
        self._streams: list[ref[Stream]] = []

    def end(self, streams: list[ref[Stream]]) -> None:
        """Its publisher uses it no more. No further reader is told of it, and those who were are told of the end once
        nothing in it is lent any more.

        Args:
            streams: of the messages in it that queues and rings hold.
        """
        self.ended = True
        if self.memory is not None:
            self.memory.close_descriptor()
        # Those on a device lie in what their readers map, and nobody here can copy them.
        self._streams = [] if self.device else streams
        self.look()

    def look(self) -> None:
        """When it has ended: copies what little the broker still needs of it, and lets go."""
        if not self.ended:
            return
        if self.memory is not None and self.lent_bytes * ARENA_SPARSE <= self.size_bytes:
            self.memory = None
            streams, self._streams = self._streams, []
            for reference in streams:
                stream = reference()
                if stream is not None:
                    # Without memory for a copy it stays where it is, and holds that itself.
                    with suppress(MemoryError):
                        stream.own()
        if not self.loans:
            readers, self.readers = self.readers, set()
            for reader in readers:
                reader.forget(self)
            if self.owner is not None:
                self.owner.gone(self)

    def __repr__(self) -> str:
        return f"<Arena {self.number} loans={self.loans} {self.memory!r}>"


class Loan:
    """The bytes of one message, for as long as anything refers to this.

    Attributes:
        number: by which its publisher knows it.
    """

    __slots__ = ("arena", "number", "offset", "size_bytes")

    def __init__(self, arena: Arena, number: int, offset: int, size_bytes: int) -> None:
        self.fill(arena, number, offset, size_bytes)

    def fill(self, arena: Arena, number: int, offset: int, size_bytes: int) -> None:
        """What `__init__` does; compiled, the numbers come here as they are."""
        self.arena = arena
        self.number = number
        self.offset = offset
        self.size_bytes = size_bytes
        arena.loans += 1
        arena.lent_bytes += size_bytes

    def __del__(self) -> None:
        arena = self.arena
        arena.loans -= 1
        arena.lent_bytes -= self.size_bytes
        if arena.owner is not None:
            arena.owner.over(self.number)
        arena.look()

    def __repr__(self) -> str:
        return f"<Loan {self.number} of arena {self.arena.number}: {self.size_bytes} bytes at {self.offset}>"


class LentBytes:
    """Makes the bytes of a loan, and keeps them where they are."""

    __slots__ = ("loan", "memory")

    loan: Loan
    memory: Memory

    def __call__(self) -> memoryview:
        """The bytes, which keep this."""
        return self.memory.view(self.loan.offset, self.loan.size_bytes, self)


class Shares:
    """What one session shares with the broker.

    Attributes:
        leases: what it reads, by the numbers that it was given.
    """

    __slots__ = (
        "_arenas",
        "_asked",
        "_attached",
        "_descriptor_max",
        "_device_bytes_max",
        "_flush",
        "_known",
        "_last_lease",
        "_lent",
        "_living",
        "_over",
        "_record",
        "devices",
        "leases",
        "reads",
    )

    def __init__(
        self,
        record: SessionRecord,
        flush: Callable[[SessionRecord], None],
        descriptor_max: int,
        device_bytes_max: int = 0,
    ) -> None:
        self._record = record
        self._flush = flush
        self._descriptor_max = descriptor_max
        self._device_bytes_max = device_bytes_max
        self._arenas: dict[int, Arena] = {}
        # Those that have ended as well, until nothing in them is lent.
        self._living: set[Arena] = set()
        self._lent: dict[int, ref[Stream]] = {}
        self._over: list[int] = []
        self._attached = False
        self._known: dict[Arena, bool] = {}
        self._asked: dict[Arena, list[Resumed]] = {}
        self._last_lease = 0
        self.leases: dict[int, Loan] = {}
        self.reads = True
        """Whether it may have others' memory: who may not read all topics would find there what it must not see."""
        self.devices: dict[int, frozenset[str]] = {}
        """Of subscriptions that take messages in the memory of devices, the UUIDs of these."""

    # As a publisher.

    def arena(self, frame: Frame, number: int, passage: Passage) -> Arena | None:
        """ARENA: the session has made memory, or ends some. Returns what it has made, of which it is to be told."""
        if frame.flags & Flag.LAST:
            arena = self._arenas.pop(frame.number, None)
            if arena is None:
                raise ProtocolError(f"the end of arena {frame.number}, which there is not")
            arena.end(self._streams().get(arena, []) if arena.loans else [])
            return None
        if frame.number in self._arenas:
            raise ProtocolError(f"a second arena {frame.number}")
        try:
            memory: Memory
            if frame.count == DEVICE_VERSION:
                memory = device_places.adopt(passage, frame, self._living, self._device_bytes_max)
            elif frame.count != VERSION:
                raise InvalidValue("arena of version", frame.count, f"is not of version {VERSION}")
            else:
                memory = passage.adopt(frame.sequence, frame.total_bytes)
            if len(self._living) >= ARENAS_MAX:
                raise LimitExceeded("arenas_max", len(self._living) + 1, ARENAS_MAX)
            if memory.descriptor > self._descriptor_max:
                # The system gives out the lowest number that is free: so many are in use.
                words = "the others are for connections: raise RLIMIT_NOFILE (ulimit -n)"
                raise LimitExceeded("descriptors", memory.descriptor, self._descriptor_max, words)
            size_bytes = sum(arena.size_bytes for arena in self._living if not arena.device) + memory.size_bytes
            if size_bytes > ARENAS_BYTES_MAX and frame.count == VERSION:
                raise LimitExceeded("arenas_bytes_max", size_bytes, ARENAS_BYTES_MAX)
        except (InvalidValue, LimitExceeded) as error:
            log.warning("arena.refused session=%r cause=%s", self._record.name, error)
            self._send(mapped_frame(frame.number, mapped=False))
            return None
        arena = self._arenas[frame.number] = Arena(number, memory, self)
        self._living.add(arena)
        return arena

    @property
    def arenas(self) -> Mapping[int, Arena]:
        """Those that the session publishes from, by its own numbers."""
        return self._arenas

    def borrow(self, frame: Frame) -> tuple[Stream, Chunk]:
        """PUBLISH of a message that lies in shared memory.

        Raises:
            ProtocolError: it does not lie in an arena of this session, or the loan's number is in use.
        """
        number, loan_number, offset = place_of(frame.payload)
        arena, size_bytes = self._arenas.get(number), frame.total_bytes
        if arena is None or offset + size_bytes > arena.size_bytes or not size_bytes:
            raise ProtocolError(f"{size_bytes} bytes at {offset} of arena {number}, which has no such place")
        loans_max = LOANS_MAX + (DEVICE_LOANS_MAX if self._device_bytes_max else 0)
        if loan_number in self._lent or len(self._lent) >= loans_max:
            raise ProtocolError(f"loan {loan_number} is in use, or {loans_max} are", Code.LIMIT)
        loan = Loan.__new__(Loan)
        loan.fill(arena, loan_number, offset, size_bytes)
        view = LentBytes.__new__(LentBytes)
        assert arena.memory is not None
        view.loan, view.memory = loan, arena.memory
        stream, first = shared_stream(loan, size_bytes, view)
        self._lent[loan_number] = ref(stream)
        return stream, first

    def _streams(self) -> dict[Arena, list[ref[Stream]]]:
        """Of all messages of this publisher that queues and rings hold, by arena."""
        streams: dict[Arena, list[ref[Stream]]] = {}
        for reference in self._lent.values():
            stream = reference()
            if stream is not None and isinstance(stream.loan, Loan):
                streams.setdefault(stream.loan.arena, []).append(reference)
        return streams

    def gone(self, arena: Arena) -> None:
        """Nothing is lent any more of an arena that has ended."""
        self._living.discard(arena)

    @property
    def gives_back(self) -> bool:
        """Whether the session is about to be told that it may write again."""
        return bool(self._over)

    def over(self, number: int) -> None:
        """A loan has ended: the session is told, of all that end until the frame leaves at once."""
        self._over.append(number)
        if not self._attached:
            self._attached = True
            self._record.session.attach(self, _CONTROL)
            self._flush(self._record)

    def pull(self, buffers: list[Buffer]) -> int:
        """Appends RELEASE; see Source."""
        over, self._over = self._over, []
        self._attached = bool(over)
        # Not before: who does not read what it is told shall not lend without end.
        for number in over:
            self._lent.pop(number, None)
        return sum(encode(frame, buffers) for frame in release_frames(over))

    # As a reader.

    def lend(self, loan: Loan) -> bytes | None:
        """The place of a message for this session to read, or None when it has to get the bytes."""
        if loan.arena.device:
            # It was taken only because this session maps the arena, and there is no other way for it.
            return packed_place(loan.arena.number, self.hold(loan), loan.offset)
        if not self.maps(loan.arena) or len(self.leases) >= LEASES_MAX:
            return None
        return packed_place(loan.arena.number, self.hold(loan), loan.offset)

    def maps(self, arena: Arena) -> bool:
        """Whether the session reads what lies in an arena by itself."""
        return self.reads and self._known.get(arena, False)

    def hold(self, loan: Loan) -> int:
        """The session has the right to read a message; returns the number of its lease."""
        leases = self.leases
        number = self._last_lease % 0xFFFFFFFF + 1
        while number in leases:
            number = number % 0xFFFFFFFF + 1
        self._last_lease = number
        leases[number] = loan
        return number

    def knows(self, arena: Arena, source: Resumed) -> bool:
        """Whether the session has said if it can read an arena, or will not be asked. It is told of it the first time.

        Args:
            arena: in which a message lies.
            source: what waits to send that message; resumed when the session has answered.
        """
        if not self.reads or arena in self._known or arena.memory is None or arena.ended:
            return True
        waiting = self._asked.get(arena)
        if waiting is None:
            passage = self._record.session.passage
            assert passage is not None
            waiting = self._asked[arena] = []
            arena.readers.add(self)
            passage.give(arena.memory)
            memory, number = arena.memory, arena.number
            if isinstance(memory, PassedOn):
                self._send(device_arena_frame(number, memory))
            else:
                self._send(arena_frame(number, memory))
        if source not in waiting:
            waiting.append(source)
        return False

    def mapped(self, frame: Frame) -> None:
        """MAPPED: the session can read an arena, or cannot; one that is gone by now does not matter."""
        for arena in self._asked:
            if arena.number == frame.number:
                self._known[arena] = bool(frame.count)
                for source in self._asked.pop(arena):
                    source.answered()
                return

    def release(self, frame: Frame) -> None:
        """RELEASE: the session is done with some of what it reads."""
        for number in released(frame):
            if self.leases.pop(number, None) is None:
                raise ProtocolError(f"RELEASE of loan {number}, which this session does not have")

    def forget(self, arena: Arena) -> None:
        """Nothing will be said of an arena any more."""
        self._known.pop(arena, None)
        self._send(arena_ends(arena.number))
        # Nobody answers for it any more, and what waited for that may have dropped what lay in it.
        for source in self._asked.pop(arena, ()):
            source.answered()

    def disconnect(self, *, reads_on: bool) -> None:
        """The session is over: what it has lent is its readers' alone, and what it reads is given back, unless its
        process may still read it."""
        for arena in (*self._known, *self._asked):
            arena.readers.discard(self)
        self._known.clear()
        asked, self._asked = self._asked, {}
        for sources in asked.values():
            for source in sources:
                if isinstance(source, Introduced):
                    source.without(self)
        arenas, self._arenas, streams = self._arenas, {}, self._streams()
        for arena in self._living:
            arena.owner = None
        self._living.clear()
        for arena in arenas.values():
            arena.end(streams.get(arena, []))
        if not reads_on:
            self.leases.clear()

    def tell(self, frame: Frame) -> None:
        """Tells the session something, while there is one."""
        if self._record.session.passage is not None:
            self._send(frame)

    def _send(self, frame: Frame) -> None:
        self._record.session.put(frame)
        self._flush(self._record)

    def __repr__(self) -> str:
        return f"<Shares arenas={len(self._arenas)} lent={len(self._lent)} leases={len(self.leases)}>"


def borrowed(session: SessionRecord, frame: Frame) -> tuple[Stream, Chunk]:
    """PUBLISH of a message that lies in shared memory.

    Raises:
        ProtocolError: it cannot be there.
    """
    shares = session.shares
    if shares is None or frame.flags & _IN_PARTS:
        raise ProtocolError("a PUBLISH in shared memory that is also a batch or in chunks, or where none is shared")
    return shares.borrow(frame)


class Sharing:
    """All shared memory of a broker."""

    def __init__(
        self,
        flush: Callable[[SessionRecord], None],
        descriptor_max: int,
        *,
        enabled: bool,
        device_bytes_max: int = 0,
    ) -> None:
        """Args:
        flush: called when a session has something to send.
        descriptor_max: the highest number that the descriptor of an arena may have.
        enabled: whether sessions may share memory.
        device_bytes_max: how much memory of devices each may share.
        """
        self._flush = flush
        self._enabled = enabled
        self._device_bytes_max = device_bytes_max
        self._descriptor_max = descriptor_max
        self._last_arena = 0

    def begin(self, record: SessionRecord, *, wanted: bool) -> bool:
        """A session has said hello; says whether memory is shared with it."""
        passage = record.session.passage
        if not (self._enabled and wanted and passage is not None):
            return False
        passage.enabled = True
        record.shares = Shares(record, self._flush, self._descriptor_max, self._device_bytes_max)
        return True

    def arena(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """ARENA."""
        shares, passage = self.shares(record, frame), record.session.passage
        assert passage is not None
        if frame.flags & Flag.LAST:
            # Its publisher need not wait until what lies there was drained, or until it was looked what was let go of.
            record.tenant.lines.take_in_all()
        self._last_arena = self._last_arena % 0xFFFFFFFF + 1
        arena = shares.arena(frame, self._last_arena, passage)
        if arena is not None and arena.device:
            device_places.introduce(record, arena, frame)
        elif arena is not None:
            record.tenant.lines.introduce(record, arena, frame.number)

    def mapped(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """MAPPED."""
        self.shares(record, frame).mapped(frame)

    def release(self, record: SessionRecord, frame: Frame, now_ns: int) -> None:
        """RELEASE."""
        self.shares(record, frame).release(frame)

    def shares(self, record: SessionRecord, frame: Frame) -> Shares:
        """What a session shares.

        Raises:
            ProtocolError: nothing, and yet it sends such a frame.
        """
        if record.shares is None:
            raise ProtocolError(f"{frame!r} in a session that shares no memory")
        return record.shares
