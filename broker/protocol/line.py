# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined,no-any-return"
"""The ends of a line (line.h): a ring of frames in shared memory, from one publisher to the readers of a topic.

Memory comes from the caller, who keeps it; here is neither a clock nor a system call. Only the compiled module can do
this; without it there are no lines. What lies in a ring is what a peer has written: every length is checked against the
ring before it is followed, and what comes out is a copy.
"""

from __future__ import annotations

from broker.errors import InvalidValue, ProtocolError
from broker.limits import FRAME_BODY_BYTES_MAX
from broker.protocol.frames import HEADER_BYTES, LANES, Flag, Frame

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

AVAILABLE = bool(cython.compiled)
"""Whether there can be lines."""
VERSION = 3
DATA_OFFSET = 4096
"""What a ring has in front of its data, in bytes."""
PLACE_BYTES = 4096
READERS_MAX = 8
RELEASES = 384
"""Entries that a reader has let go of and that the broker need not know of yet."""
NOTED, WAITED_FOR, FULL = 0, 1, -1
"""What `Releases.release` says."""
NO_ROOM, CLOSED = -1, -2
"""What `Writer.write` says instead of which readers sleep."""
_SHARED, _LANES, _BODY_BYTES_MAX = int(Flag.SHARED), LANES, FRAME_BODY_BYTES_MAX
NOTHING, TAKEN, EJECTED = 0, 1, 2
"""What `take` says."""

if cython.compiled:
    assert (HEADER_BYTES, READERS_MAX, VERSION) == (TB_DIRECT_HEADER, TB_DIRECT_READERS, TB_DIRECT_VERSION)
    assert RELEASES == TB_DIRECT_RELEASES


class End:
    """One end of a line, which keeps the memory that it lies in."""

    _body: bytes | None

    def __init__(self, ring: object, address: int, size_bytes: int) -> None:
        """Args:
            ring: is kept.
            address: of the ring's first byte.
            size_bytes: of the ring.

        Raises:
            InvalidValue: there is no ring of this version and length, or the module is not compiled.
        """
        fits = cython.compiled and address
        if fits:
            fits = tb_ring_fits(_pointer(address), size_bytes)
        if not fits:
            raise InvalidValue("ring of bytes", size_bytes, "is no line of this version, or the module is not compiled")
        self._kept = [ring]
        tb_end_open(cython.address(self._end), _pointer(address), size_bytes)

    def add(self, place: object, address: int) -> None:
        """Adds the place of a reader, which is kept; a reader's end has its own alone.

        Raises:
            InvalidValue: there are too many.
        """
        if self._end.readers >= READERS_MAX or not address:
            raise InvalidValue("readers of a line", self._end.readers + 1, f"must be at most {READERS_MAX}")
        self._kept.append(place)
        self._end.places[self._end.readers] = cython.cast("tb_place *", _pointer(address))
        self._end.readers += 1

    @property
    def position(self) -> int:
        """How far this end has come: behind what was written or taken last."""
        return self._end.position

    @property
    def readers(self) -> int:
        """How many places there are."""
        return self._end.readers


class Writer(End):
    """The publisher's end. One thread at a time may call."""

    def write(self, header: bytes, body: bytes, payload: bytes) -> int:
        """Publishes a frame.

        Returns:
            Which readers sleep and are to be woken, a bit for each; NO_ROOM or CLOSED when nothing was published.
        """
        return tb_write(
            cython.address(self._end), cython.cast("const char *", header), cython.cast("const char *", body),
            len(body), cython.cast("const char *", payload), len(payload),
        )  # fmt: skip

    @property
    def undrained_bytes(self) -> int:
        """What the broker has not read yet."""
        return tb_undrained(cython.address(self._end))

    def collectable(self) -> int:
        """How many messages in shared memory all readers have let go of without the broker's knowing, as they say."""
        return tb_collectable(cython.address(self._end))

    def let_go(self, reader: int) -> int:
        """An entry that a reader has let go of, as it says, by the position behind it; each once, and 0 when there is
        no other one. Some it may be the broker alone that hears of."""
        if not 0 <= reader < self._end.readers:
            raise InvalidValue("reader", reader, "is none of this line")
        return tb_see_let_go(cython.address(self._end), reader, cython.address(self._seen[reader]))


class Reader(End):
    """A reader's end, with its place. One thread at a time may call."""

    def take(self, frame: Frame) -> int:
        """Takes the next frame, if there is one.

        Args:
            frame: is filled.

        Returns:
            TAKEN, NOTHING, or EJECTED when the broker delivers all that was not taken.

        Raises:
            ProtocolError: what is there is no frame; nothing was taken.
        """
        look = tb_reader_look(cython.address(self._end), cython.address(found), cython.address(start))
        if look != TB_FOUND:
            if look == TB_RUBBISH:
                raise ProtocolError("a line holds what is no frame")
            return look
        _fill(frame, cython.address(found), self._body)
        if not tb_reader_take(cython.address(self._end), start, found.behind):
            return EJECTED
        self._end.position = found.behind
        self._body = frame.body
        return TAKEN

    def has_more(self) -> bool:
        """Whether there is something to take."""
        return tb_reader_has(cython.address(self._end))

    def sleeps(self, sleeps: bool) -> None:
        """Whether the publisher has to ring. Look at `has_more` between setting it and sleeping."""
        tb_reader_sleeps(cython.address(self._end), sleeps)

    def leave(self) -> None:
        """Takes nothing more: what comes is for the broker to deliver."""
        tb_eject(cython.address(self._end), 0)


class Drain(End):
    """The broker's end, with the places of all readers."""

    def take(self, frame: Frame) -> int:
        """Fills a frame with the next one, and goes on behind it; says TAKEN or NOTHING.

        Raises:
            ProtocolError: what is there is no frame.
        """
        position = self._end.position
        look = tb_look_at(cython.address(self._end), cython.address(position), cython.address(found))
        if look == TB_RUBBISH:
            raise ProtocolError("a line holds what is no frame")
        if look != TB_FOUND:
            return NOTHING
        _fill(frame, cython.address(found), self._body)
        self._end.position = found.behind
        self._body = frame.body
        return TAKEN

    def drained(self) -> None:
        """Lets the publisher write again where was read."""
        tb_drained(cython.address(self._end), self._end.position)

    def close(self) -> int:
        """Nothing more can be published; says up to which position was."""
        return tb_close(cython.address(self._end))

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return tb_is_closed(cython.address(self._end)) != 0

    def taken(self, reader: int) -> int:
        """How far a reader is, as it says; EJECTED_AT and above when it has left."""
        if not 0 <= reader < self._end.readers:
            raise InvalidValue("reader", reader, "is none of this line")
        word = tb_taken(cython.address(self._end), reader)
        return -1 if word & 1 else cython.cast("long long", word >> 1)

    def eject(self, reader: int) -> int:
        """Takes a reader's right to read away; says how far it had come, as it says."""
        if not 0 <= reader < self._end.readers:
            raise InvalidValue("reader", reader, "is none of this line")
        return tb_eject(cython.address(self._end), reader)


class Releases:
    """The entries that one reader lets go of, in its place: the reader's end, or the broker's."""

    def __init__(self, place: object, address: int) -> None:
        """Args:
            place: is kept.
            address: of the place's first byte.

        Raises:
            InvalidValue: the module is not compiled.
        """
        if not (cython.compiled and address):
            raise InvalidValue("place", address, "is of no use: the module is not compiled")
        self._kept = place
        self.late: list[int] = []
        """Entries for which there was no room."""
        self._releases.place = cython.cast("tb_place *", _pointer(address))
        self._releases.count = tb_released(cython.address(self._releases))

    # The reader's.

    def release(self, position: int) -> int:
        """It has let go of an entry, which it names by the position behind it. On any thread, and at any moment: not
        even Python's collector runs in between.

        Returns:
            NOTED; WAITED_FOR when the broker is to be told; FULL when it is too, as there was no room: then it is late.
        """
        said = tb_release(cython.address(self._releases), position)
        if said == FULL:
            self.late.append(position)
        return said

    def again(self) -> bool:
        """Tries once more to say what was late; says whether the broker is to be told."""
        late, self.late, told = self.late, [], False
        for position in late:
            told = self.release(position) != NOTED or told
        return told

    def due(self) -> bool:
        """Whether the broker waits for what the reader, which is about to wait too, has let go of: it is asked once."""
        return tb_release_due(cython.address(self._releases)) != 0

    # The broker's.

    def released(self) -> int:
        """How many entries the reader has let go of, as it says. To be read before the line is drained."""
        return tb_released(cython.address(self._releases))

    def collect(self, until: int) -> list[int]:
        """The entries that the reader has let go of and the broker did not know of; it does from here on.

        Args:
            until: as many as `released` has said.

        Raises:
            ProtocolError: so many there cannot be.
        """
        if until - self._releases.count > RELEASES:
            raise ProtocolError(f"a place in which {until} entries were let go of, after {self._releases.count}")
        positions = []
        while self._releases.count != until:
            positions.append(tb_let_go(cython.address(self._releases)))
        if positions:
            tb_collected(cython.address(self._releases))
        return positions

    def want(self, more: int) -> bool:
        """Asks the reader to tell when it has let go of so many more entries; says whether it has."""
        return tb_want(cython.address(self._releases), more) != 0


def format_ring(address: int, size_bytes: int) -> None:
    """Makes a ring of memory that is all zeros."""
    tb_ring_format(_pointer(address), size_bytes - DATA_OFFSET)


def check_entry(frame: Frame) -> None:
    """As `check_header` for frames of a socket; lengths have been compared with the ring.

    Raises:
        ProtocolError: it cannot be a frame.
    """
    unshared_bytes = 0 if frame.flags & _SHARED else frame.total_bytes
    if frame.lane >= _LANES or len(frame.body) > _BODY_BYTES_MAX or unshared_bytes:
        raise ProtocolError(f"{frame!r} in a line")
