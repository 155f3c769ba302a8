"""Boards as the broker makes them: shared memory that collectives' engines agree on."""

from __future__ import annotations

import logging

from broker.collectives import shm
from broker.collectives.reading import Reader
from broker.errors import InvalidValue, LimitExceeded
from broker.state.boards import BoardMaker
from broker.transport.shared_memory import SharedMemory

log = logging.getLogger(__name__)


class Board:
    """Memory in which the members of a generation carry out its operations."""

    def __init__(self, memory: SharedMemory, positions: int) -> None:
        """`memory` is all zeros, and long enough."""
        self.memory = memory
        self._positions = positions
        shm.format_board(memory.address, memory.size_bytes, positions)
        self.reader = Reader(memory, memory.address, positions)

    def end(self, *, draining: bool) -> None:
        """Ends the operations on it, and wakes who sleeps there; see broker.state.boards."""
        shm.end_board(self.memory.address, self._positions, draining=draining)


def _make(positions: int) -> Board | None:
    size_bytes = shm.board_bytes(positions)
    if not size_bytes:
        return None
    try:
        return Board(SharedMemory.create(size_bytes, common=True), positions)
    except (InvalidValue, LimitExceeded) as error:
        log.warning("board.refused positions=%d cause=%s", positions, error)
        return None


def board_maker(*, enabled: bool) -> BoardMaker | None:
    """What makes boards, where that can be."""
    return BoardMaker(shm.VERSION, _make) if enabled and shm.AVAILABLE else None
