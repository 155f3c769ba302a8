"""The blocks that a client publishes from: of what pages they are, and when it is waited for one to come back."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker.limits import KIB, LARGE_PAGE_BYTES, MIB, SHARED_AHEAD_BYTES, SHARED_START_BYTES
from broker.protocol.places import PLACE
from broker.protocol.sharing import release_frames
from broker.transport.held import AVAILABLE
from broker.transport.shared_memory import SharedMemory
from clients.publishing.arenas import Arenas
from clients.publishing.blocks import Block, Place
from tests.daemon import PATIENCE_S


@pytest.fixture
def arenas() -> Arenas:
    arenas = Arenas()
    arenas.connected(enabled=True)
    return arenas


def lend(arenas: Arenas, size_bytes: int) -> Block:
    block = arenas.lend(size_bytes)
    assert block is not None
    block.arena.mapped = True
    return block


def share(arenas: Arenas, size_bytes: int) -> int:
    """Publishes a message; returns its loan."""
    block = lend(arenas, size_bytes)
    shared = arenas.share(Place(block, block.offset))
    assert shared is not None
    return int(PLACE.unpack(shared)[1])


def test_blocks_are_made_of_large_pages_each_once(arenas: Arenas, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(SharedMemory, "prepare", lambda _, offset, size_bytes: made.append((offset, size_bytes)))
    size_bytes = 5 * MIB // 4
    blocks = [lend(arenas, size_bytes) for _ in range(3)]
    assert made == [(0, LARGE_PAGE_BYTES), (LARGE_PAGE_BYTES, LARGE_PAGE_BYTES)]
    assert [block.offset for block in blocks] == [SHARED_START_BYTES + index * size_bytes for index in range(3)]
    blocks.clear()
    blocks = [lend(arenas, size_bytes) for _ in range(3)]
    assert len(made) == 2
    lend(arenas, 512 * KIB)
    assert len(made) == 2


def test_who_was_waited_for_in_vain_is_not_waited_for_before_something_has_come_back(arenas: Arenas) -> None:
    loans = [share(arenas, MIB) for _ in range(SHARED_AHEAD_BYTES // MIB)]
    assert not arenas.has_room(MIB)
    arenas.widen(MIB)
    for _ in range(8):
        assert arenas.has_room(MIB)
        loans.append(share(arenas, MIB))
    for frame in release_frames(loans[:1]):
        arenas.released(frame)
    # As much as its readers had when one of them gave something back.
    assert arenas.has_room(MIB)
    share(arenas, MIB)
    assert not arenas.has_room(MIB)


def test_an_array_that_the_program_drops_is_nothing_that_its_readers_gave_back(arenas: Arenas) -> None:
    loans = [share(arenas, MIB) for _ in range(SHARED_AHEAD_BYTES // MIB)]
    arenas.widen(MIB)
    for _ in range(4):
        lend(arenas, MIB)
        loans.append(share(arenas, MIB))
        assert arenas.has_room(MIB)


def test_a_new_session_waits_for_its_readers_again(arenas: Arenas) -> None:
    arenas.widen(MIB)
    arenas.connected(enabled=True)
    for _ in range(SHARED_AHEAD_BYTES // MIB):
        share(arenas, MIB)
    assert not arenas.has_room(MIB)


def test_two_threads_that_want_blocks_of_two_lengths_get_them(arenas: Arenas, monkeypatch: pytest.MonkeyPatch) -> None:
    """One waits while the other has an arena made, and is not given what that was made for."""
    create: Callable[..., SharedMemory] = SharedMemory.create
    making, second = threading.Event(), threading.Event()

    def slowly(size_bytes: int) -> SharedMemory:
        making.set()
        second.wait(PATIENCE_S)
        return create(size_bytes)

    monkeypatch.setattr(SharedMemory, "create", slowly)
    blocks: dict[int, Block] = {}

    def want(size_bytes: int, about_to: Callable[[], None]) -> None:
        about_to()
        blocks[size_bytes] = lend(arenas, size_bytes)

    first = threading.Thread(target=want, args=(64 * KIB, lambda: None))
    first.start()
    assert making.wait(PATIENCE_S)
    other = threading.Thread(target=want, args=(MIB, second.set))
    other.start()
    for thread in (first, other):
        thread.join(PATIENCE_S)
    assert {size_bytes: block.arena.block_bytes for size_bytes, block in blocks.items()} == {
        64 * KIB: 64 * KIB,
        MIB: MIB,
    }


def test_with_the_session_goes_the_memory_that_nobody_uses(arenas: Arenas) -> None:
    """At once, and not when Python looks for circles, which programs that train have it not do."""
    addresses = [lend(arenas, size_bytes).arena.address for size_bytes in (MIB, 64 * KIB)]
    kept = arenas.array((MIB,), np.dtype(np.uint8), MIB)
    kept[:] = 7
    gc.disable()
    try:
        arenas.disconnected()
        assert not any(address in mapped() for address in addresses[1:])
        assert (kept == 7).all()
        del kept
        assert not any(address in mapped() for address in addresses)
    finally:
        gc.enable()


def mapped() -> set[int]:
    """Where shared memory begins that this process has mapped."""
    lines = Path("/proc/self/maps").read_text("utf-8").splitlines()
    return {int(line.split("-")[0], 16) for line in lines if "memfd:tensorbus" in line}


def test_only_the_whole_array_is_known_by_its_block(arenas: Arenas) -> None:
    array = arenas.array((1000, 125), np.dtype(np.float64), MIB - 48_576)
    assert arenas.whole(array, array.nbytes) is not None
    assert memoryview(array.base).nbytes == array.nbytes
    part = np.ndarray((100,), np.float64, array.base, offset=8000)
    assert arenas.found(memoryview(part).cast("B"), part) is None
    assert part.flags.writeable
    strange = Arenas()
    strange.connected(enabled=True)
    assert strange.whole(array, array.nbytes) is None


@pytest.mark.skipif(not AVAILABLE, reason="nothing is compiled, and what an array lies in is numpy's")
def test_what_an_array_lies_in_is_not_copied(arenas: Arenas) -> None:
    """A copy would give the memory back when it goes, and a second time with the array."""
    array = arenas.array((MIB,), np.dtype(np.uint8), MIB)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="pickle"):
            attempt(array.base)
    assert np.array_equal(copy.deepcopy(array), array)
