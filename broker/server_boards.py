"""Boards as the broker makes them: shared memory that collectives' engines agree on."""

from __future__ import annotations

import logging
from typing import Final

from broker.collectives import shm
from broker.collectives.reading import Reader
from broker.errors import InvalidValue, LimitExceeded
from broker.state.boards import BoardMaker
from broker.transport.shared_memory import SharedMemory

_STAGE_BYTES_MIN: Final = 2 << 20
"""Of boards for which long ones are too much; longer arrays go through such stages in turn."""

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
    least_bytes = shm.board_bytes(positions, _STAGE_BYTES_MIN)
    if not least_bytes:
        return None
    # The broker never looks at stages, and as addresses that it uses they would count against `ulimit -v`.
    mapped_bytes = least_bytes - positions * _STAGE_BYTES_MIN
    try:
        try:
            memory = SharedMemory.create(shm.board_bytes(positions), common=True, mapped_bytes=mapped_bytes)
        except LimitExceeded:
            # As `ulimit -f` forbids so long a file.
            memory = SharedMemory.create(least_bytes, common=True, mapped_bytes=mapped_bytes)
        return Board(memory, positions)
    except (InvalidValue, LimitExceeded) as error:
        log.warning("board.refused positions=%d cause=%s", positions, error)
        return None


def board_maker(*, enabled: bool) -> BoardMaker | None:
    """What makes boards, where that can be."""
    return BoardMaker(shm.VERSION, _make) if enabled and shm.AVAILABLE else None
