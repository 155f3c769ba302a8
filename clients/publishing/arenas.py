"""The shared memory that a client publishes from.

    arena: blocks of one size, up to 64 MiB    free blocks of that size, the last used first: its pages are there and
    +---+-------+-------+-------+- - -+-------+     its bytes may still be in the cache
    |   | block | block | block |     | block |
    +---+-------+-------+-------+- - -+-------+     a block is free when its Block object is gone
    SHARED_START_BYTES

A Block is held by the array that was lent over it, by the call that publishes it, and by each message in it until the
broker says RELEASE, which it does when no reader uses it any more, or until its line tells sooner (line_out.py).

Where there is no block to be had, because readers hold them all or the message is longer than what may be shared, the
message goes through the socket, under its topic's credit: nobody waits for a reader that keeps what it got. So it does
when the system has no memory or no descriptor for another arena, or the broker takes none; that is tried again later.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from broker.buffers import Buffer, Gathered, Payload
from broker.errors import InvalidValue, LimitExceeded
from broker.limits import (
    ARENA_BYTES,
    ARENAS_MAX,
    LARGE_PAGE_BYTES,
    LOANS_MAX,
    REUSED_BYTES_MIN,
    SHARED_AHEAD_BYTES,
    SHARED_BYTES_MAX,
    SHARED_BYTES_MIN,
    SHARED_PAGE_BYTES,
    SHARED_START_BYTES,
)
from broker.protocol.frames import Frame
from broker.protocol.places import packed_place
from broker.protocol.pool import BufferPool
from broker.protocol.session import Session
from broker.protocol.sharing import arena_ends, arena_frame, released
from broker.transport.copying import copy, copy_flat
from clients.connection.locks import UNBROKEN, Lock
from clients.connection.signals import Signal
from clients.publishing.blocks import Arena, Block, Place, Slot, block_in, block_of

log = logging.getLogger(__name__)

BLOCKS_MIN: Final = 8
"""Of the first arena of a length, and at least what may be under way."""
FRESH_BYTES_PER_S: Final = 1.5e9
"""How fast the system makes pages: 256 MiB took 0.17 s, in which as much was copied and summed four times."""
UNUSED_NS: Final = 30_000_000_000
"""How often arenas go that were not used since the last time, and another one is tried where none was to be had."""
LAST_LOAN: Final = (1 << 31) - 1
"""Of the numbers of loans; the higher ones are for memory of devices (device_arenas.py)."""
_LAST_LOAN = LAST_LOAN


class Arenas:
    """All arenas of one client.

    Attributes:
        enabled: whether the session shares memory.
        lent_bytes: of blocks that are not free.
        came_back: ready when the broker has said that messages are not read any more.

    Any thread may call what gives a block or asks for one: `array`, `found`, `copied`, `filled`, `place`, `whole`,
    `lend`, `suits`, `has_room`. The others are called under the client's lock."""

    def __init__(self) -> None:
        self.enabled = False
        self.lent_bytes = 0
        self.came_back = Signal()
        # Python's own where signals may come between two steps: its `with` is one.
        self._lock = Lock() if UNBROKEN else threading.Lock()
        self._arenas: dict[int, Arena] = {}
        self._free: dict[int, list[Slot]] = {}
        self._over: deque[Slot] = deque()
        self._last_arena = self._last_loan = 0
        # Of the message for which a block was lent last.
        self._last_size = self._last_block_bytes = 0
        self._free_of_last: list[Slot] | None = None
        self._lent: dict[int, Block] = {}
        # Loans whose memory came back before the broker has said so: to it they are in use until then.
        self._untold: set[int] = set()
        self._left: deque[int] = deque()
        self._held_bytes = 0
        self._ahead_bytes = SHARED_AHEAD_BYTES
        self._waited_s = 0.0
        self._look_ns = 0
        self._full = False
        """Whether another arena was not to be had of late."""
        self._in_vain = False
        """Whether readers were waited for in vain, and nothing has come back since: they keep what they get."""

    def connected(self, *, enabled: bool) -> None:
        """A session is open. Readers of an earlier one may still use what was lent there: it is left to them."""
        with self._lock:
            self._leave_all()
            self.enabled = enabled

    def disconnected(self) -> None:
        """The session is over."""
        with self._lock:
            self._leave_all()
            self.enabled = False

    def forked(self) -> None:
        """This is a forked child: whichever thread of its parent held the lock is not here to give it up."""
        self._lock = Lock() if UNBROKEN else threading.Lock()

    def _leave_all(self) -> None:
        # Blocks that are still referred to need not be told of any more, and with the last of them their arena goes.
        self._over = deque()
        for arena in self._arenas.values():
            arena.gone = True
            arena.answered.set()
            # What is free refers to it, and would keep it until Python looks for such circles.
            arena.free.clear()
        self._arenas = {}
        self._free = {}
        self._free_of_last = None
        self._lent = {}
        self._untold = set()
        self._left.clear()
        self._held_bytes = self.lent_bytes = 0
        self._full = self._in_vain = False

    # Blocks.

    def suits(self, size_bytes: int) -> bool:
        """Whether a message of so many bytes is to be shared if there is a block for it."""
        return self.enabled and size_bytes >= SHARED_BYTES_MIN

    def has_room(self, size_bytes: int) -> bool:
        """Whether a message of so many bytes need not wait for blocks to come back."""
        if not self.suits(size_bytes):
            return True
        if self._over:
            with self._lock:
                self._collect()
        # What only the application holds, the broker does not give back.
        if not self._lent or self._in_vain:
            return True
        if size_bytes > ARENA_BYTES and not self._free.get(rounded(size_bytes)):
            # An arena of its own, whose pages the system has to make first: that takes as long as several messages.
            return self._waited_s * FRESH_BYTES_PER_S >= size_bytes
        return self.lent_bytes + size_bytes <= max(self._ahead_bytes, 2 * size_bytes)

    def waited(self, seconds: float) -> None:
        """So long it was waited for memory to come back: when it was as long as fresh memory takes, that is made."""
        self._waited_s += seconds

    def widen(self, size_bytes: int) -> None:
        """Readers take longer with what they have than is to be waited for, and are not before something comes back."""
        self._in_vain = True
        self._ahead_bytes = min(self.lent_bytes + size_bytes, SHARED_BYTES_MAX)
        self._waited_s += size_bytes / FRESH_BYTES_PER_S

    def array(self, shape: tuple[int, ...], dtype: np.dtype[np.generic], size_bytes: int) -> npt.NDArray[np.generic]:
        """An array for the application to fill and publish, in a block if it suits and there is one."""
        block = self.lend(size_bytes) if self.suits(size_bytes) and not dtype.hasobject else None
        if block is None:
            return np.empty(shape, dtype)
        return block.array(shape, dtype)

    def place(self, payload: Payload, value: object) -> Place | None:
        """Where a payload lies that the application was lent the memory for and gives away, or a copy of another one.

        Args:
            payload: of a message.
            value: what it was made of; an array that is given away becomes read-only.

        Returns:
            None when there is no block for a copy.
        """
        return self.found(payload, value) or self.copied(payload)

    def found(self, payload: Payload, value: object) -> Place | None:
        """Where a payload lies that the application was lent the memory for and gives away, or None; as `place`."""
        if not isinstance(value, np.ndarray) or isinstance(payload, Gathered) or not len(payload):
            return None
        block = self.whole(value, len(payload))
        if block is not None and value.flags.c_contiguous:
            block.give_away(value)
            return Place(block, block.offset)
        return self._find(payload, value)

    def whole(self, array: npt.NDArray[np.generic], size_bytes: int) -> Block | None:
        """The block of an array of so many bytes, if that was lent and is not a part of one that was."""
        block = block_of(array)
        if block is None or block._size_bytes != size_bytes or block._over is not self._over or block.arena.gone:
            return None
        return block

    def copied(self, payload: Payload) -> Place | None:
        """Copies a payload into a block; None when there is none."""
        parts = payload.parts if isinstance(payload, Gathered) else (payload,)
        arrays = [np.frombuffer(part, np.uint8) for part in parts if len(part)]
        size_bytes = len(payload)
        block = self.lend(size_bytes)
        if block is None:
            return None
        place, start = np.frombuffer(block.view(size_bytes), np.uint8), 0
        for array in arrays:
            copy(place[start : start + array.nbytes], array)
            start += array.nbytes
        return Place(block, block.offset)

    def filled(self, array: npt.NDArray[np.generic], size_bytes: int) -> Block | None:
        """A block with a copy of a contiguous array of so many bytes; None when there is none.

        Raises:
            ValueError: Python knows no buffer of its dtype.
        """
        block = self.lend(size_bytes)
        if block is not None:
            copy_flat(block.arena.address + block.offset, array, size_bytes)
        return block

    def _find(self, payload: Buffer, view: npt.NDArray[np.generic]) -> Place | None:
        """Where a view lies of an array that was lent, if that was given away before or is gone; or a whole one that is
        not in C order.

        While the application has the whole array, and may go on to fill it, a view of it does not give it away.
        """
        # First, as what follows refers to the whole array as well.
        alone = _is_all_there_is(view, payload)
        whole = view.base if type(view.base) is np.ndarray else view
        block = self.whole(whole, whole.nbytes)
        if block is None or not (block.given_away or whole is view or alone):
            return None
        address: int = np.frombuffer(payload, np.uint8).__array_interface__["data"][0]
        offset = address - block.arena.address
        if not block.offset <= offset <= block.offset + block.arena.block_bytes - len(payload):
            # Of a view that is not contiguous, a copy.
            return None
        block.give_away(view)
        return Place(block, offset)

    def lend(self, size_bytes: int) -> Block | None:
        """A free block of at least so many bytes; None when there is none to be had."""
        if not self.enabled:
            return None
        with self._lock:
            block_bytes = self._rounded(size_bytes)
            self._collect()
            free = self._free_of_last
            if not free:
                free = self._free_of_last = self._free.get(block_bytes) or self._more(block_bytes)
                if not free:
                    return None
            slot = free.pop()
            arena, offset = slot
            arena.lent += 1
            self.lent_bytes += block_bytes
            arena.used = True
            block = block_in(slot, size_bytes, self._over)
            fresh = arena.made_bytes
            made = arena.made_bytes = max(fresh, _large(offset + block_bytes))
        if fresh < made:
            # Without the lock, as this takes as long as to fill it. Where it fails, pages come as they are written to.
            arena.memory.prepare(fresh, made - fresh)
        return block

    def _rounded(self, size_bytes: int) -> int:
        """The size of the block for a message: of most the one before's."""
        if size_bytes != self._last_size:
            self._last_size, self._last_block_bytes, self._free_of_last = size_bytes, rounded(size_bytes), None
        return self._last_block_bytes

    def _collect(self) -> None:
        """Takes blocks back that nobody refers to any more."""
        over = self._over
        while over:
            slot = over.popleft()
            arena = slot[0]
            if arena.gone:
                continue
            arena.lent -= 1
            self.lent_bytes -= arena.block_bytes
            arena.free.append(slot)

    def _more(self, block_bytes: int) -> list[Slot] | None:
        """Makes an arena, in the place of unused ones where they take up the room."""
        # Twice as many as there are, so that lengths that are rare take little of the room for others.
        there_are = sum(arena.blocks for arena in self._arenas.values() if arena.block_bytes == block_bytes)
        first = max(BLOCKS_MIN, SHARED_AHEAD_BYTES // block_bytes)
        blocks = max(1, min(ARENA_BYTES // block_bytes, max(first, 2 * there_are)))
        size_bytes = block_bytes * blocks
        if self._full or block_bytes > SHARED_BYTES_MAX:
            return None
        for arena in list(self._arenas.values()):
            if self._has_room(size_bytes):
                break
            if not arena.lent:
                self._leave(arena)
        if not self._has_room(size_bytes):
            return None
        try:
            arena = Arena(self._last_arena + 1, block_bytes, blocks)
        except (LimitExceeded, InvalidValue) as error:
            log.warning("arena.not_made bytes=%d cause=%s", size_bytes, error)
            self._full = True
            return None
        self._last_arena += 1
        self._waited_s = 0.0
        self._arenas[arena.number] = arena
        self._held_bytes += size_bytes
        free = arena.free = self._free.setdefault(block_bytes, [])
        free.extend((arena, SHARED_START_BYTES + index * block_bytes) for index in reversed(range(blocks)))
        return free

    def _has_room(self, size_bytes: int) -> bool:
        return self._held_bytes + size_bytes <= SHARED_BYTES_MAX and len(self._arenas) < ARENAS_MAX

    def _leave(self, arena: Arena) -> None:
        """Uses an arena no more. Blocks of it that are in use go with their holders."""
        arena.gone = True
        self.lent_bytes -= arena.lent * arena.block_bytes
        del self._arenas[arena.number]
        self._held_bytes -= arena.block_bytes * arena.blocks
        arena.free[:] = [free for free in arena.free if free[0] is not arena]
        arena.free = []
        if arena.mapped is not None:
            self._left.append(arena.number)

    def tick(self, now_ns: int, session: Session) -> None:
        """Time passes: arenas that were not used of late go."""
        self._ahead_bytes = max(SHARED_AHEAD_BYTES, (self._ahead_bytes + self.lent_bytes) // 2)
        if now_ns - self._look_ns > UNUSED_NS:
            self._look_ns = now_ns
            with self._lock:
                self._full = False
                self._collect()
                for arena in list(self._arenas.values()):
                    if not arena.lent and not arena.used:
                        self._leave(arena)
                    arena.used = False
        self._tell_left(session)

    def _tell_left(self, session: Session) -> None:
        while self._left:
            session.put(arena_ends(self._left.popleft()))

    # Messages.

    def announce(self, arena: Arena, session: Session) -> Signal:
        """Tells the broker of an arena, the first time; what it returns is ready once the broker has answered."""
        self._tell_left(session)
        if arena.mapped is None and not arena.gone and session.passage is not None:
            arena.mapped = False
            session.passage.give(arena.memory)
            session.put(arena_frame(arena.number, arena.memory))
        return arena.answered

    def can_share(self, block: Block) -> bool:
        """Whether a message in a block can be published."""
        arena = block.arena
        return bool(arena.mapped) and not arena.gone and len(self._lent) + len(self._untold) < LOANS_MAX

    def share(self, place: Place) -> bytes | None:
        """The frame's payload for a message that is published now; None when the broker cannot use its arena."""
        if not self.can_share(place.block):
            return None
        return packed_place(place.block.arena.number, self.open_loan(place.block), place.offset)

    def open_loan(self, block: Block) -> int:
        """The number of the loan for a message in a block that is published now and can be."""
        number = self._last_loan % _LAST_LOAN + 1
        while number in self._lent or number in self._untold:
            number = number % _LAST_LOAN + 1
        self._last_loan = number
        self._lent[number] = block
        return number

    def cancel_loan(self, number: int) -> None:
        """A message was not published after all."""
        del self._lent[number]

    def mapped(self, frame: Frame) -> None:
        """MAPPED: the broker can use an arena, or cannot."""
        arena = self._arenas.get(frame.number)
        if arena is None:
            return
        if frame.count:
            arena.mapped, arena.name = True, frame.target
        else:
            log.warning("arena.refused_by_broker bytes=%d", arena.memory.size_bytes)
            with self._lock:
                # The broker has none that it would have to be told the end of.
                arena.mapped = None
                self._leave(arena)
                self._full = True
        arena.answered.set()
        arena.memory.close_descriptor()

    def released(self, frame: Frame) -> None:
        """RELEASE: nobody reads some messages any more."""
        for number in released(frame):
            if self._lent.pop(number, None) is None:
                self._untold.discard(number)
            elif self._in_vain:
                self._bound_again()
        self.came_back.set()

    def take_back(self, loans: list[int]) -> None:
        """Nobody needs some messages any more, of which the broker may have told already, or tells later."""
        for number in loans:
            if self._lent.pop(number, None) is not None:
                self._untold.add(number)
                if self._in_vain:
                    self._bound_again()

    def _bound_again(self) -> None:
        """Readers give back what they have got: so much they had, and for more they are waited for."""
        self._in_vain = False
        self._ahead_bytes = max(self._ahead_bytes, min(self.lent_bytes, SHARED_BYTES_MAX))


def _is_all_there_is(view: npt.NDArray[np.generic], payload: Buffer) -> bool:
    """Whether nothing but this view refers to the array that it is a view of, nor what its payload was made by."""
    made = isinstance(payload, memoryview) and cast(object, payload.obj) is not view
    return type(view.base) is np.ndarray and _references(view) == _REFERENCES_OF_ONE + made


def _references(view: npt.NDArray[np.generic]) -> int:
    return sys.getrefcount(view.base)


_REFERENCES_OF_ONE: Final = _references(np.empty(1)[:])


def _large(size_bytes: int) -> int:
    """As much in whole large pages."""
    return -(-size_bytes // LARGE_PAGE_BYTES) * LARGE_PAGE_BYTES


def rounded(size_bytes: int) -> int:
    """The size of the block for a message: one of four between each power of two and the next, in whole pages."""
    step = max(SHARED_PAGE_BYTES, 1 << max(0, (size_bytes - 1).bit_length() - 3))
    return -(-size_bytes // step) * step


def ordinary_array(
    pool: BufferPool, lengths: tuple[int, ...], kind: np.dtype[np.generic], size_bytes: int
) -> npt.NDArray[np.generic]:
    """An array in this process's own memory; a long one in memory that an earlier one has left: fresh pages have to be
    made and zeroed first, which takes a good part of the time that their bytes take to leave.

    Args:
        pool: of the client, whose lock is held.
        lengths: of the axes.
        kind: of the elements.
        size_bytes: of all of them.
    """
    if size_bytes < REUSED_BYTES_MIN or kind.hasobject:
        return np.empty(lengths, kind)
    return pool.acquire(size_bytes).view(kind.base).reshape(lengths + kind.shape)
