"""Boards where the system limits what a process may map, lock or write."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.collectives import shm
from broker.limits import ARENA_BYTES_MAX
from broker.server_boards import Board, _make
from broker.server_memory import PAGE_BYTES

pytestmark = pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")

MIB = 1 << 20


@contextmanager
def limited(limit: int, most: int) -> Iterator[None]:
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


@contextmanager
def locking_what_is_mapped() -> Iterator[None]:
    libc = ctypes.CDLL(None)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 2 * ARENA_BYTES_MAX and os.geteuid():
        pytest.skip("this user may not lock so much memory")
    if libc.mlockall(2):
        pytest.skip("the system lets nobody lock memory")
    try:
        yield
    finally:
        libc.munlockall()


def mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * PAGE_BYTES


def made(positions: int) -> Board:
    board = _make(positions)
    assert board is not None
    return board


def engine_on(board: Board, positions: int) -> shm.Engine:
    return shm.Engine(board.memory.descriptor, board.memory.size_bytes, positions, 0)


def test_the_broker_maps_no_stages() -> None:
    before = mapped_bytes()
    board = made(2)
    assert mapped_bytes() - before < MIB
    assert board.memory.size_bytes > 0.95 * ARENA_BYTES_MAX
    with pytest.raises(ValueError, match="bytes at"):
        board.memory.view(MIB, 1, board)
    assert len(board.reader.standings()) == 2


@pytest.mark.parametrize("positions", [2, shm.POSITIONS_MAX])
def test_where_no_long_file_may_be_written_stages_are_short(positions: int) -> None:
    with limited(resource.RLIMIT_FSIZE, 512 * MIB):
        board = made(positions)
    assert board.memory.size_bytes < 256 * MIB
    engine_on(board, positions).close()


def test_where_none_may_be_written_there_is_no_board(caplog: pytest.LogCaptureFixture) -> None:
    with limited(resource.RLIMIT_FSIZE, MIB):
        assert _make(2) is None
    assert "board.refused positions=2" in caplog.text


def test_a_program_that_locks_its_memory_makes_no_pages_of_stages() -> None:
    with locking_what_is_mapped():
        board = made(2)
        engine_on(board, 2).close()
        assert board.memory.adopt(os.dup(board.memory.descriptor), board.memory.size_bytes, common=True).address
        assert os.fstat(board.memory.descriptor).st_blocks * 512 < MIB
