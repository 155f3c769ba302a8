"""The blocks that a client publishes from: of what pages they are, and when it is waited for one to come back."""

from __future__ import annotations

import pytest

from broker.limits import KIB, LARGE_PAGE_BYTES, MIB, SHARED_AHEAD_BYTES, SHARED_START_BYTES
from broker.protocol.sharing import PLACE, release_frames
from broker.transport.shared_memory import SharedMemory
from clients.publishing.arenas import Arenas, Block, Place


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
