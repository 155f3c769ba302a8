"""Blocks of shared memory, in which messages lie that a client publishes, and the arenas that they are parts of.

A block is free when its Block object is gone. What may be done with them is in arenas.py.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from broker.limits import LARGE_PAGE_BLOCK_BYTES_MIN, SHARED_START_BYTES
from broker.transport.held import AVAILABLE, Held
from broker.transport.shared_memory import SharedMemory
from clients.connection.signals import Signal


class Arena:
    """Blocks of one size in one piece of memory.

    Attributes:
        mapped: whether the broker can use it; None until it was told of it.
        answered: ready once it has said so, or never will.
        used: whether a block of it was lent since unused arenas last went.
        lent: blocks that are not free.
        gone: whether its blocks are not to be lent any more.
        made_bytes: how much of it the system was asked to make of large pages. Blocks are lent in their order the first
            time, so what is behind was never written to.
        name: by which number the broker and the readers know it, once the broker does.
        free: those of its blocks that are free, and others of their size.
        address: of its first byte in this process.
    """

    __slots__ = (
        "address",
        "answered",
        "block_bytes",
        "blocks",
        "free",
        "gone",
        "lent",
        "made_bytes",
        "mapped",
        "memory",
        "name",
        "number",
        "used",
    )

    def __init__(self, number: int, block_bytes: int, blocks: int) -> None:
        self.number = number
        self.block_bytes = block_bytes
        self.blocks = blocks
        self.memory = SharedMemory.create(SHARED_START_BYTES + block_bytes * blocks)
        self.address = self.memory.address
        self.mapped: bool | None = None
        self.answered = Signal()
        self.used = True
        self.lent = 0
        self.gone = False
        # Of what is shorter than a large page, and of short blocks, the system makes a page at a time.
        large = block_bytes >= LARGE_PAGE_BLOCK_BYTES_MIN
        self.made_bytes = 0 if large else self.memory.size_bytes
        self.name = 0
        self.free: list[Slot] = []


Slot = tuple[Arena, int]
"""Where a block lies: its arena, and its offset there."""


class Block(Held):
    """Memory for one message, for as long as anything refers to this.

    Attributes:
        arena: of which it is a part.
        offset: where, in the arena.
        given_away: whether the array over it was published.
    """

    arena: Arena
    offset: int
    given_away: bool
    _slot: Slot
    _over: deque[Slot]

    def view(self, size_bytes: int) -> memoryview:
        """Its first bytes, writable; they keep the block."""
        return self.arena.memory.view(self.offset, size_bytes, self)

    def array(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
        """An array over it, which keeps it: `block_of` finds it, and views have this array as their base."""
        return np.ndarray(shape, dtype, self if AVAILABLE else self.view(self._size_bytes))  # type: ignore[arg-type]

    def give_away(self, array: npt.NDArray[np.generic]) -> None:
        """The application publishes an array over it, which it is not to write to any more."""
        array.setflags(write=False)
        self.given_away = True

    def __del__(self) -> None:
        # On any thread and at any moment: it takes no lock.
        if self._over is not None:
            self._over.append(self._slot)


def block_in(slot: Slot, size_bytes: int, over: deque[Slot]) -> Block:
    """A block.

    Args:
        slot: where it lies.
        size_bytes: of the message in it.
        over: gets that when nothing refers to the block any more.
    """
    block, (arena, offset) = Block.__new__(Block), slot
    block.arena, block.offset, block.given_away = arena, offset, False
    block._slot, block._over = slot, over
    block._address, block._size_bytes, block._read_only = arena.address + offset, size_bytes, False
    return block


def block_of(array: npt.NDArray[np.generic]) -> Block | None:
    """The block over which an array was made by `Block.array`; None of any other one, also of a view of such."""
    base: object = array.base
    if type(base) is Block:
        return base
    holder = None if AVAILABLE or base is None else getattr(base, "holder", None)
    return holder if type(holder) is Block else None


class Place(NamedTuple):
    """Where a message lies: in a block, at an offset of its arena."""

    block: Block
    offset: int
