"""The memory of devices that a client publishes from: blocks of one size in arenas, as in arenas.py.

A block is held by the call that publishes and by the message in it, until the broker says RELEASE. There is little of
such memory, so an arena has few blocks, goes when it was not used for a while, and nobody waits long for a block to
come back: the array goes through host memory then, as it does where not all readers can map the arena.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Final

from broker import devices
from broker.devices import Device
from broker.devices.locks import OwnedLock
from broker.devices.memory import DeviceMemory, names
from broker.errors import InvalidValue, LimitExceeded
from broker.limits import ARENAS_MAX
from broker.limits_devices import (
    DEVICE_AGAIN_NS,
    DEVICE_ARENA_BYTES,
    DEVICE_BLOCKS_MIN,
    DEVICE_BYTES_MIN,
    DEVICE_HEADER_BYTES,
    DEVICE_LOANS_MAX,
    DEVICE_UNUSED_NS,
)
from broker.protocol.frames import Frame
from broker.protocol.places import packed_place
from broker.protocol.session import Session
from broker.protocol.sharing import arena_ends, device_arena_frame, released
from clients.connection.signals import Signal
from clients.publishing.arenas import LAST_LOAN, rounded

FIRST_NUMBER: Final = LAST_LOAN + 1
"""Of arenas and of loans: those in host memory have the lower numbers."""
_PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes, bytearray, list, tuple, dict))


class DeviceArena:
    """Blocks of one size in the memory of one device.

    Attributes:
        mapped: whether the broker has it; None until it was told of it.
        answered: ready once it has said so, or never will.
        used: whether a block of it was lent since unused arenas last went.
        lent: blocks that are not free.
        gone: whether its blocks are not to be lent any more.
    """

    __slots__ = ("answered", "block_bytes", "blocks", "gone", "lent", "mapped", "memory", "number", "used")

    def __init__(self, number: int, memory: DeviceMemory, block_bytes: int, blocks: int) -> None:
        self.number = number
        self.memory = memory
        self.block_bytes = block_bytes
        self.blocks = blocks
        self.mapped: bool | None = None
        self.answered = Signal()
        self.used = True
        self.lent = 0
        self.gone = False


class DeviceBlock:
    """Memory for one array, for as long as anything refers to this."""

    __slots__ = ("_over", "arena", "offset")

    def __init__(self, arena: DeviceArena, offset: int, over: deque[tuple[DeviceArena, int]]) -> None:
        self.arena = arena
        self.offset = offset
        self._over = over

    def __del__(self) -> None:
        # On any thread and at any moment: it takes no lock.
        self._over.append((self.arena, self.offset))


class DeviceArenas:
    """All arenas of one session. Any thread may call `suits` and `lend`; the others under the client's lock.

    Attributes:
        bytes_max: how long all arenas may be together.
        came_back: ready when the broker has said that messages are not read any more.
    """

    def __init__(self, bytes_max: int) -> None:
        """`bytes_max`: how long all arenas may be together, as the broker says."""
        self.came_back = Signal()
        self.bytes_max = bytes_max
        self._lock = OwnedLock()
        self._process = os.getpid()
        self._arenas: dict[int, DeviceArena] = {}
        self._free: dict[tuple[Device, int], list[tuple[DeviceArena, int]]] = {}
        self._over: deque[tuple[DeviceArena, int]] = deque()
        self._lent: dict[int, DeviceBlock] = {}
        self._left: deque[int] = deque()
        self._last_arena = self._last_loan = FIRST_NUMBER
        self._not_before: dict[str, int] = {}
        self._look_ns = 0
        self._names: dict[Device, str] | None = None
        self._failed_ns: int | None = None
        self._idle = False
        """Whether the broker has said no since it last took a message: then memory is not kept."""

    def disconnected(self) -> None:
        """The session is over. Its readers may still use what was lent there: it is left to them."""
        if os.getpid() != self._process:
            # A forked child: whichever thread of its parent held the lock is not here to give it up.
            self._lock = OwnedLock()
        with self._lock.taken():
            for arena in self._arenas.values():
                arena.gone = True
                arena.answered.set()
            self._arenas, self._free, self._lent = {}, {}, {}
        self.came_back.set()

    # Which arrays.

    def suits(self, value: object) -> bool:
        """Whether a value is an array of a device that is worth a place.

        Raises:
            InvalidValue: it is one on a device of a kind that is not known here.
        """
        if type(value) in _PLAIN or not devices.is_device_array(value):
            return False
        # Where cupy lacks the dtype there is no array to copy.
        wide = str(getattr(value, "dtype", "")) != "torch.bfloat16"
        return wide and devices.size_of(value) >= DEVICE_BYTES_MIN

    def is_due(self, topic: str) -> bool:
        """Whether the broker may be asked about a topic's places: not for a while after it has said no."""
        at_ns = self._not_before.get(topic)
        return at_ns is None or time.monotonic_ns() >= at_ns

    def put_off(self, topic: str) -> None:
        """The broker has said no."""
        if len(self._not_before) >= DEVICE_LOANS_MAX:
            self._not_before.clear()
        self._not_before[topic] = time.monotonic_ns() + DEVICE_AGAIN_NS
        self._idle = True

    def taken(self) -> None:
        """The broker has taken a message."""
        self._idle = False

    # Blocks.

    def lend(self, device: Device, size_bytes: int) -> DeviceBlock | None:
        """A free block of at least so many bytes; None when there is none to be had now, or never."""
        key = device, rounded(size_bytes)
        with self._lock.taken():
            self._collect()
            free = self._free.get(key) or self._more(device, key[1])
            if not free:
                return None
            arena, offset = free.pop()
            arena.lent += 1
            arena.used = True
            return DeviceBlock(arena, offset, self._over)

    def may_come_back(self, device: Device, size_bytes: int) -> bool:
        """Whether there are blocks of this size, so that waiting for one may help."""
        key = device, rounded(size_bytes)
        with self._lock.taken():
            return any((arena.memory.device, arena.block_bytes) == key for arena in self._arenas.values())

    def _collect(self) -> None:
        over = self._over
        while over:
            arena, offset = over.popleft()
            if not arena.gone:
                arena.lent -= 1
                self._free[arena.memory.device, arena.block_bytes].append((arena, offset))

    def _more(self, device: Device, block_bytes: int) -> list[tuple[DeviceArena, int]] | None:
        """Makes an arena, in the place of unused ones where they take up the room."""
        if self._names is None:
            self._names = {each: name for name, each in names().items()}
        if device not in self._names or self._failed_ns is not None:
            return None
        # Twice as many as there are, so that lengths that are rare take little of the room for others.
        sizes = [arena.blocks for arena in self._arenas.values() if arena.block_bytes == block_bytes]
        blocks = max(DEVICE_BLOCKS_MIN, min(DEVICE_ARENA_BYTES // block_bytes, 2 * sum(sizes)))
        for arena in list(self._arenas.values()):
            if self._has_room(block_bytes * blocks):
                break
            if not arena.lent:
                self._leave(arena)
        if not self._has_room(block_bytes * blocks):
            blocks = 1
        if not self._has_room(block_bytes * blocks):
            return None
        try:
            memory = DeviceMemory.create(device, self._names[device], block_bytes * blocks)
        except (LimitExceeded, InvalidValue) as error:
            devices.warn_of_detour("there is no device memory to share", error)
            self._failed_ns = time.monotonic_ns()
            return None
        if memory.size_bytes + self._held_bytes() > self.bytes_max:
            # The last page of it is too much.
            return None
        self._last_arena += 1
        arena = self._arenas[self._last_arena] = DeviceArena(self._last_arena, memory, block_bytes, blocks)
        free = self._free.setdefault((device, block_bytes), [])
        free.extend((arena, DEVICE_HEADER_BYTES + index * block_bytes) for index in reversed(range(blocks)))
        return free

    def _held_bytes(self) -> int:
        return sum(arena.memory.size_bytes for arena in self._arenas.values())

    def _has_room(self, size_bytes: int) -> bool:
        held = self._held_bytes() + size_bytes + DEVICE_HEADER_BYTES
        return held <= self.bytes_max and len(self._arenas) < ARENAS_MAX // 2

    def leave(self, arena: DeviceArena) -> None:
        """Uses an arena no more."""
        with self._lock.taken():
            if not arena.gone:
                self._leave(arena)

    def _leave(self, arena: DeviceArena) -> None:
        arena.gone = True
        del self._arenas[arena.number]
        key = arena.memory.device, arena.block_bytes
        self._free[key] = [free for free in self._free[key] if free[0] is not arena]
        arena.answered.set()
        if arena.mapped is not None:
            self._left.append(arena.number)

    def _leave_free(self) -> None:
        """Lets arenas go in which nothing is lent."""
        with self._lock.taken():
            self._collect()
            for arena in list(self._arenas.values()):
                if not arena.lent:
                    self._leave(arena)

    def tick(self, now_ns: int, session: Session) -> None:
        """Time passes: arenas that were not used of late go."""
        if now_ns - self._look_ns > DEVICE_UNUSED_NS:
            self._look_ns = now_ns
            self._failed_ns = None
            with self._lock.taken():
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

    def announce(self, arena: DeviceArena, session: Session, topic: str) -> Signal:
        """Tells the broker of an arena, the first time; what it returns is ready once readers of the topic can use it,
        or never will."""
        self._tell_left(session)
        if arena.mapped is None and not arena.gone and session.passage is not None:
            arena.mapped = False
            session.passage.give(arena.memory)
            session.put(device_arena_frame(arena.number, arena.memory, topic))
        return arena.answered

    def share(self, block: DeviceBlock) -> bytes | None:
        """The frame's payload for a message that is published now; None when its arena cannot be used."""
        arena = block.arena
        if not arena.mapped or arena.gone or len(self._lent) >= DEVICE_LOANS_MAX:
            return None
        number = self._last_loan + 1 if self._last_loan < 0xFFFFFFFF else FIRST_NUMBER
        while number in self._lent:
            number = number + 1 if number < 0xFFFFFFFF else FIRST_NUMBER
        self._last_loan = number
        self._lent[number] = block
        return packed_place(arena.number, number, block.offset)

    def mapped(self, frame: Frame) -> None:
        """MAPPED: the broker and those that it has asked have an arena, or the broker takes none."""
        arena = self._arenas.get(frame.number)
        if arena is None:
            return
        arena.memory.close_descriptor()
        if frame.count:
            arena.mapped = True
            arena.answered.set()
            return
        devices.warn_of_detour("the broker takes no more device memory", f"{arena.memory.size_bytes} bytes")
        # The broker has none that it would have to be told the end of.
        arena.mapped = None
        self.leave(arena)
        self._failed_ns = time.monotonic_ns()

    def released(self, frame: Frame) -> None:
        """RELEASE: nobody reads some messages any more."""
        for number in released(frame):
            self._lent.pop(number, None)
        if self._idle:
            self._leave_free()
        self.came_back.set()

    def __repr__(self) -> str:
        return f"<DeviceArenas arenas={len(self._arenas)} lent={len(self._lent)} bytes={self._held_bytes()}>"
