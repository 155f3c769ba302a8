"""Ranks on a board without a broker: each a process that can be stopped and killed, or a thread."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from broker.collectives import shm
from broker.transport.shared_memory import SharedMemory

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30.0
SECOND_NS = 10**9

T = TypeVar("T")


def new_board(positions: int) -> SharedMemory:
    """The memory of a board."""
    memory = SharedMemory.create(shm.board_bytes(positions), common=True)
    shm.format_board(memory.address, positions)
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


class Process:
    """A rank in a process of its own (board_rank.py)."""

    def __init__(self, memory: SharedMemory, positions: int, position: int) -> None:
        arguments = [str(memory.descriptor), str(memory.size_bytes), str(positions), str(position)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.collectives.board_rank", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            pass_fds=[memory.descriptor],
        )

    def begin(self, **wishes: object) -> None:
        """Lets it begin an operation."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wishes) + "\n")
        self._process.stdin.flush()

    def outcome(self) -> dict[str, object]:
        """What has become of the operation that it began."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())  # type: ignore[no-any-return]

    def send(self, number: int) -> None:
        """Sends a signal; when it is to stop, returns once it has stopped."""
        os.kill(self._process.pid, number)
        if number == signal.SIGSTOP:
            os.waitpid(self._process.pid, os.WUNTRACED)

    def kill(self) -> None:
        """Kills it, and returns when it is gone."""
        self._process.kill()
        self.end()

    def end(self) -> None:
        """Lets it end."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait(PATIENCE_S)
