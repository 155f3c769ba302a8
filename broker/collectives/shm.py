# ruff: noqa: F821
# mypy: disable-error-code="name-defined,attr-defined"
"""The engine of the schedule `shm`, for Python: collectives of ranks of one host, in memory that they share.

What happens there is in C: board.h has the layout of the memory, engine_operation.c how an operation goes. Plans, tasks
and turns are those of all engines (tasks.py). Only the compiled module can do any of it; the plain one says that it
cannot (`AVAILABLE`).
"""

from __future__ import annotations

from typing import Final

from broker.collectives.tasks import (
    ARRAY_BYTES_MAX,
    CLAIM_BYTES_MAX,
    POSITIONS_MAX,
    Outcome,
    Pieces,
    Plan,
    Task,
    Turns,
    Window,
    reducible,
)
from broker.errors import InvalidValue, LimitExceeded

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

__all__ = [
    "ARRAY_BYTES_MAX",
    "AVAILABLE",
    "CLAIM_BYTES_MAX",
    "POSITIONS_MAX",
    "VERSION",
    "Engine",
    "Outcome",
    "Pieces",
    "Plan",
    "Task",
    "Window",
    "board_bytes",
    "end_board",
    "format_board",
    "reducible",
]

AVAILABLE: Final = bool(cython.compiled)
"""Whether this module can do anything: it has to be compiled."""
VERSION: Final = 6
"""Of the board's layout."""


def board_bytes(positions: int, stage_bytes: int = 0) -> int:
    """Bytes of a board; 0 for a number of positions for which there is none.

    Args:
        positions: on it.
        stage_bytes: of each position, at least 2 MiB; 0 for as many as there can be. Longer arrays take a slower way.
    """
    return tb_board_bytes(positions, stage_bytes) if cython.compiled else 0


def format_board(address: int, size_bytes: int, positions: int) -> None:
    """Makes a board of `board_bytes` zeros, which start at an address."""
    tb_board_format(cython.cast("void *", cython.cast(uintptr_t, address)), size_bytes, positions)


def end_board(address: int, positions: int, *, draining: bool) -> None:
    """Ends all operations that have no verdict; when draining, only those to which not all have come."""
    tb_board_end(cython.cast("void *", cython.cast(uintptr_t, address)), positions, 1 if draining else 2)


class Engine(Turns):
    """One position's part in a board's operations."""

    def __init__(self, file: int, board_bytes: int, positions: int, position: int, descriptor: int = -1) -> None:
        """Args:
            file: a descriptor of the board's file, sealed so that it keeps its length; needed for this call only.
            board_bytes: the file's length.
            positions: of the board.
            position: this process's own.
            descriptor: an eventfd to which is added for each operation that the engine's thread is done with.

        Raises:
            InvalidValue: the file is not a board of this version and so many positions.
            LimitExceeded: it cannot be mapped.
        """
        super().__init__()
        if not 0 <= position < positions:
            raise InvalidValue("position", position, f"must be from 0 to {positions - 1}")
        self._engine = tb_engine_new(file, board_bytes, positions, position, descriptor)
        if self._engine == cython.NULL:
            if errno == EINVAL:
                raise InvalidValue("board of bytes", board_bytes, f"is none of {positions} positions")
            raise LimitExceeded("board", board_bytes, 0, f"cannot be mapped: errno {errno}")
        self._turns = cython.address(self._engine.turns)

    def close(self) -> None:
        """Ends the board and the engine's thread: what has no verdict is OVER."""
        engine = self._engine
        with cython.nogil:
            tb_engine_close(engine)

    def __dealloc__(self) -> None:
        if self._engine != cython.NULL:
            tb_engine_close(self._engine)
            tb_engine_free(self._engine)
