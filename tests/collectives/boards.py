"""Ranks on a board without a broker: threads, and processes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from broker.collectives import shm
from broker.transport.shared_memory import SharedMemory
from tests.collectives.processes import PATIENCE_S, Process

SECOND_NS = 10**9
STAGE_BYTES = 8 << 20
"""Of the boards of tests, where arrays need not be as long as those that do not fit into a broker's."""

T = TypeVar("T")


def new_board(positions: int, stage_bytes: int = STAGE_BYTES) -> SharedMemory:
    """The memory of a board."""
    memory = SharedMemory.create(shm.board_bytes(positions, stage_bytes), common=True)
    shm.format_board(memory.address, memory.size_bytes, positions)
    return memory


def end_board(memory: SharedMemory, positions: int, *, draining: bool = False) -> None:
    """As the broker does when a member is gone, or a newcomer waits."""
    shm.end_board(memory.address, positions, draining=draining)


def on_threads(positions: int, work: Callable[[shm.Engine, int], T], memory: SharedMemory | None = None) -> list[T]:
    """What `work` has returned on each position."""
    board = memory or new_board(positions)
    engines = [shm.Engine(board.descriptor, board.size_bytes, positions, position) for position in range(positions)]
    try:
        with ThreadPoolExecutor(positions) as pool:
            futures = [pool.submit(work, engine, position) for position, engine in enumerate(engines)]
            return [future.result(PATIENCE_S) for future in futures]
    finally:
        for engine in engines:
            engine.close()


def new_process(memory: SharedMemory, positions: int, position: int) -> Process:
    """A rank on a board in a process of its own."""
    arguments = ["board", str(memory.descriptor), str(memory.size_bytes), str(positions), str(position)]
    return Process(arguments, [memory.descriptor])
