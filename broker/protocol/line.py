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
from broker.protocol.frames import HEADER_BYTES, LANES, Frame

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

AVAILABLE = bool(cython.compiled)
"""Whether there can be lines."""
VERSION = 2
DATA_OFFSET = 4096
"""What a ring has in front of its data, in bytes."""
PLACE_BYTES = 4096
READERS_MAX = 8
NO_ROOM, CLOSED = -1, -2
"""What `Writer.write` says instead of which readers sleep."""
NOTHING, TAKEN, EJECTED = 0, 1, 2
"""What `take` says."""

if cython.compiled:
    assert (HEADER_BYTES, READERS_MAX, VERSION) == (TB_DIRECT_HEADER, TB_DIRECT_READERS, TB_DIRECT_VERSION)


class End:
    """One end of a line, which keeps the memory that it lies in."""

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
        """How far this end has come, of a writer or of the broker."""
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
        _fill(frame, cython.address(found))
        return TAKEN if tb_reader_take(cython.address(self._end), start, found.behind) else EJECTED

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
        _fill(frame, cython.address(found))
        self._end.position = found.behind
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


def format_ring(address: int, size_bytes: int) -> None:
    """Makes a ring of memory that is all zeros."""
    tb_ring_format(_pointer(address), size_bytes - DATA_OFFSET)


def check_entry(frame: Frame) -> None:
    """As `check_header` for frames of a socket; lengths have been compared with the ring.

    Raises:
        ProtocolError: it cannot be a frame.
    """
    if frame.lane >= LANES or len(frame.body) > FRAME_BODY_BYTES_MAX or frame.total_bytes:
        raise ProtocolError(f"{frame!r} in a line")
