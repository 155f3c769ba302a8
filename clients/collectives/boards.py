"""Collectives by the schedule `shm`: the members of a generation carry them out on its board (ways.py).

The broker gives a board to a generation whose members are all on its host and can use one.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from broker.collectives import shm
from broker.collectives.claims import Claim
from broker.errors import BrokerError, InvalidValue, LimitExceeded
from broker.protocol.bodies import Membership
from broker.protocol.sharing import Memory, Passage
from broker.schedules import SHM
from clients.collectives import windows
from clients.collectives.device_windows import DeviceWindows
from clients.collectives.ways import Engine, Plan, Task, Way

if TYPE_CHECKING:
    from clients.collectives.membership import Place
    from clients.connection.operations import Driver

log = logging.getLogger(__name__)


class Board(Way):
    """A generation's board, as one of its members uses it."""

    schedule = SHM

    def __init__(self, memory: Memory, told: Membership, rank: int, descriptor: int) -> None:
        """`descriptor` is an eventfd that is to tell of submitted operations, or -1.

        Raises:
            InvalidValue, LimitExceeded: the memory is not a board for these members, or cannot be mapped.
        """
        super().__init__(told)
        positions, position = len(self.ranks), self.ranks.index(rank)
        engine = shm.Engine(memory.descriptor, memory.size_bytes, positions, position, descriptor)
        self.engine = cast("Engine", engine)
        self.windows = windows.Windows()
        self.device_windows = DeviceWindows()

    def make_plan(self, claim: Claim, words: bytes, root: int, *, impossible: bool) -> Plan:
        """See Way."""
        return shm.Plan(
            claim.kind, words, len(self.ranks),
            op=claim.op, dtype=claim.dtype, array_bytes=claim.nbytes, root=root, impossible=impossible,
        )  # fmt: skip

    def task(
        self, plan: Plan, source: object, target: object, timeout_ns: int, *, scratch: bool = False, priority: int = 0
    ) -> Task:
        """See Way."""
        return shm.Task(cast("shm.Plan", plan), source, target, timeout_ns, scratch, priority)

    def share(self, task: Task, source: object, target: object) -> None:
        """See Way."""
        self.windows.share(cast("shm.Task", task), source, target)

    def failed(self, task: Task) -> None:
        """See Way."""
        windows.failed(cast("shm.Task", task))

    def end(self, error: BrokerError) -> None:
        """See Way. An operation that is in progress keeps the memory that it uses."""
        super().end(error)
        self.device_windows.window = None

    def cancel_all(self) -> bool:
        """See Way. Between the agreements of an operation on devices the engine has nothing."""
        found = self.device_windows.abort()
        return super().cancel_all() or found

    def lost(self, place: Place) -> None:
        """See Way. It was the broker who has ended the board."""

    async def settle(self, driver: Driver, task: Task) -> int:
        """See Way. On a board everything is decided."""
        return int(shm.Outcome.OVER)


def adopt(passage: Passage | None, told: Membership, rank: int, descriptor: int) -> Board | None:
    """The board of a generation, whose descriptor has arrived; None when it cannot be used."""
    try:
        if passage is None:
            raise InvalidValue("board", told.board, "came over a link that passes no memory")
        return Board(passage.adopt(told.board, told.board_bytes, common=True), told, rank, descriptor)
    except (InvalidValue, LimitExceeded) as error:
        log.warning("board.refused bytes=%d cause=%s", told.board_bytes, error)
        return None


def discard(passage: Passage | None, told: Membership) -> None:
    """Lets go of the board of a generation in which this client has no part."""
    if told.board and passage is not None:
        with suppress(InvalidValue, LimitExceeded):
            passage.adopt(told.board, told.board_bytes, common=True)
