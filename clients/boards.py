"""Collectives by the schedule `shm`: the members of a generation carry them out on its board, without the broker.

The broker gives a board to a generation whose members are all on its host and can use one, so all of them take the same
way. It watches over their lives as before: when one is gone it ends the board, and what was in progress there waits for
the CHANGED that says why.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from broker.collectives import shm
from broker.collectives.claims import Claim, member_problem
from broker.errors import (
    BrokerError,
    CollectiveAbortedError,
    CollectiveError,
    CollectiveMismatchError,
    InvalidValue,
    LimitExceeded,
    RankTimeoutError,
    TimeoutError,
)
from broker.protocol.bodies import Membership
from broker.protocol.sharing import Memory, Passage
from clients.collective import GRACE_S, FlatMemory, Prepared
from clients.signals import Signal

if TYPE_CHECKING:
    from clients.membership import Place
    from clients.operations import Driver

log = logging.getLogger(__name__)

PLANS_MAX: Final = 1024
"""Different arrays of one program; beyond it the plans are made anew."""
PLAIN_TIMEOUT_S_MAX: Final = 1e9
"""Longer ones are checked with care."""
_UNREADABLE: Final = "a claim that cannot be read"


class Schedule(StrEnum):
    """How a group carries out its operations."""

    AUTO = "auto"
    SHM = "shm"
    STAR = "star"

    @classmethod
    def of(cls, name: str) -> Schedule:
        """The schedule that the application names.

        Raises:
            InvalidValue: there is none of this name.
        """
        try:
            return cls(name)
        except ValueError as error:
            raise InvalidValue("schedule", name, f"is none of {', '.join(cls)}") from error

    @property
    def board_version(self) -> int:
        """The version of boards that a member can use; 0 is none."""
        return shm.VERSION if shm.AVAILABLE and self is not Schedule.STAR else 0


class Board:
    """A generation's board, as one of its members uses it.

    Attributes:
        engine: carries operations out.
        over: ready when the member knows of the next generation, or its place is lost.
        error: why it is over.
    """

    def __init__(self, memory: Memory, told: Membership, rank: int, descriptor: int) -> None:
        """`descriptor` is an eventfd that is to tell of submitted operations, or -1.

        Raises:
            InvalidValue, LimitExceeded: the memory is not a board for these members, or cannot be mapped.
        """
        self.ranks = tuple(told.ranks)
        self.generation = told.generation
        self.engine = shm.Engine(
            memory.descriptor, memory.size_bytes, len(self.ranks), self.ranks.index(rank), descriptor
        )
        self.over = Signal()
        self.error: BrokerError | None = None
        self._plans: dict[tuple[object, ...], shm.Plan] = {}
        self._plain: dict[tuple[object, ...], shm.Plan] = {}

    def plan(self, claim: Claim, world_size: int) -> shm.Plan:
        """How to carry a claim out.

        Raises:
            InvalidValue: nobody can.
        """
        key = claim.kind, claim.op, claim.root, claim.dtype, claim.shape, claim.parts, claim.stands_for
        plan = self._plans.get(key)
        if plan is None:
            claim.check(world_size)
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            # Ranks may wait for different times.
            words = msgspec.msgpack.encode(msgspec.structs.replace(claim, timeout_ns=1))
            plan = self._plans[key] = shm.Plan(
                claim.kind, words, len(self.ranks),
                op=claim.op, dtype=claim.dtype, array_bytes=claim.nbytes,
                root=self.ranks.index(claim.root) if claim.root in self.ranks else 0,
                impossible=bool(member_problem(claim, self.ranks, self.generation)),
            )  # fmt: skip
        return plan

    def plain_task(self, array: object, op: str, timeout_s: float) -> shm.Task | None:
        """The shortest way to an all_reduce of an array like one before; None when it is not like one."""
        if type(array) is not np.ndarray or type(timeout_s) is not float or not 0.0 < timeout_s < PLAIN_TIMEOUT_S_MAX:
            return None
        plan = self._plain.get((op, array.dtype, array.shape))
        if plan is None:
            return None
        try:
            return shm.Task(plan, array, array, int(timeout_s * 1e9))
        except (BufferError, ValueError):
            # It is read-only, or not contiguous.
            return None

    def remember(self, array: object, op: str, claim: Claim, world_size: int) -> None:
        """An all_reduce of an array was begun; the next one of its kind may be plain."""
        reducible = claim.op is not None and shm.reducible(claim.op, claim.dtype)
        if reducible and type(array) is np.ndarray and array.dtype.isnative and array.size:
            if len(self._plain) >= PLANS_MAX:
                self._plain.clear()
            self._plain[op, array.dtype, array.shape] = self.plan(claim, world_size)

    def end(self, error: BrokerError) -> None:
        """The member knows why its generation is over."""
        # One that is never raised: else the board and its memory would be kept by the frames that its error has seen.
        self.error = error.again()
        self.over.set()

    def __repr__(self) -> str:
        return f"<Board generation={self.generation} ranks={self.ranks}>"


class SharedOperation:
    """An operation on a board.

    Attributes:
        task: for the board's engine.
        claim: what this rank has asked for.
        result: the flat bytes that are its result, once it is done.
        signal: ready when it is done, where somebody sees to that.
    """

    __slots__ = ("board", "claim", "result", "signal", "task")

    def __init__(self, board: Board, claim: Claim, task: shm.Task, result: memoryview) -> None:
        self.board = board
        self.claim = claim
        self.task = task
        self.result = result
        self.signal = Signal()

    @classmethod
    def of(cls, board: Board, prepared: Prepared, world_size: int, rank: int, priority: int) -> SharedOperation:
        """Raises:
        InvalidValue: nobody can carry it out.
        """
        claim = prepared.claim
        plan = board.plan(claim, world_size)
        source, target, scratch = prepared.contribution, prepared.target, prepared.scratch
        if target is None and claim.result_bytes(rank, len(board.ranks)):
            target, scratch = np.empty(plan.result_bytes, np.uint8).data, True
        result = target if isinstance(target, memoryview) else memoryview(b"")
        # A memoryview that is in use cannot be garbage; the array that it is of can.
        sent = _array(source, plan)
        taken = sent if source is target else _array(target, plan)
        task = shm.Task(plan, sent, taken, claim.timeout_ns, scratch, priority)
        return cls(board, claim, task, result)

    @classmethod
    def plain(cls, board: Board, task: shm.Task) -> SharedOperation:
        """Of a plain task."""
        return cls(board, msgspec.msgpack.decode(task.claim, type=Claim), task, memoryview(b""))

    def __repr__(self) -> str:
        return f"<SharedOperation {self.task!r} {self.claim.describe()}>"


def _array(memory: FlatMemory | None, plan: shm.Plan) -> object:
    if memory is None or not plan.array_bytes:
        return None
    return memory.obj if isinstance(memory, memoryview) else [each.obj for each in memory if each.nbytes]


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


def begin(place: Place, prepared: Prepared, priority: int = 0) -> SharedOperation | None:
    """An operation on the place's board, for its engine; None when it goes through the broker.

    Raises:
        InvalidValue: the claim cannot be.
        GenerationChangedError: the members have changed since the last call.
        CollectiveError: it has to go through a board, and there is none.
        BrokerError: the place is lost.
    """
    if place.closed is not None:
        raise place.closed.again()
    board, claim = place.board, prepared.claim
    if board is None or not (claim.op is None or shm.reducible(claim.op, claim.dtype)):
        place.check_schedule()
        return None
    place.member.raise_change()
    place.plain = board
    return SharedOperation.of(board, prepared, place.member.world_size, place.member.rank, priority)


async def finish(driver: Driver, place: Place, operation: SharedOperation) -> memoryview:
    """The flat bytes of the result of an operation that has ended.

    Raises:
        BrokerError: why it has failed; no array was changed.
    """
    task, board = operation.task, operation.board
    status = task.status
    if status == shm.Outcome.COMMITTED:
        return operation.result
    # A client that is closed does not wait for the engine.
    if status in (shm.Outcome.OVER, shm.Outcome.PENDING):
        raise await _over(driver, place, board)
    ranks = [board.ranks[position] for position in task.positions if position < len(board.ranks)]
    if status == shm.Outcome.MISSING:
        raise RankTimeoutError(place.name, task.sequence, ranks, task.timeout_ns / 1e9)
    if status == shm.Outcome.MISMATCH:
        raise CollectiveMismatchError(place.name, task.sequence, _claims(board, operation))
    if status == shm.Outcome.INTERRUPTED and ranks:
        raise CollectiveAbortedError(place.name, task.sequence, ranks[0])
    problem = {
        shm.Outcome.INTERRUPTED: "a rank's program gave it up",
        shm.Outcome.NO_MEMORY: f"there is no memory for {operation.claim.nbytes} bytes beside the array",
        shm.Outcome.BROKEN: "its board says what cannot be: a rank's program has written over it",
    }[shm.Outcome(status)]
    raise CollectiveError(place.name, f"operation {task.sequence}: {problem}")


async def _over(driver: Driver, place: Place, board: Board) -> BrokerError:
    """Why a board is over; waits until the broker has said it."""
    try:
        await driver.wait(board.over, GRACE_S, "the group's next generation")
    except TimeoutError:
        return CollectiveError(place.name, f"generation {board.generation} is over, and the broker says nothing of it")
    change = place.member.take_change()
    if change is not None and place.closed is None:
        board.end(change)
    assert board.error is not None
    return board.error.again()


def _claims(board: Board, operation: SharedOperation) -> dict[int, str]:
    problem = member_problem(operation.claim, board.ranks, board.generation)
    return {
        board.ranks[position]: _words(claim) + problem
        for position, claim in operation.task.claims().items()
        if position < len(board.ranks)
    }


def _words(claim: bytes) -> str:
    try:
        return msgspec.msgpack.decode(claim, type=Claim).describe()
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _UNREADABLE
