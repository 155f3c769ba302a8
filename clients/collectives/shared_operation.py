"""An operation that the members of a generation carry out among themselves, from its beginning to its result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from broker.collectives import ring, shm
from broker.collectives.claims import Claim, CollectiveKind, member_problem
from broker.errors import (
    BrokerError,
    CollectiveAbortedError,
    CollectiveError,
    CollectiveMismatchError,
    InvalidValue,
    RankTimeoutError,
    TimeoutError,
)
from clients.collectives.collective import GRACE_S, FlatMemory, Prepared
from clients.collectives.staging import note_detour
from clients.collectives.ways import Plan, Task, Way
from clients.connection.signals import Signal

if TYPE_CHECKING:
    from clients.collectives.membership import Place
    from clients.connection.operations import Driver

_UNREADABLE: Final = "a claim that cannot be read"
_DONE: Final = int(shm.Outcome.COMMITTED)


class SharedOperation:
    """An operation that the members carry out among themselves.

    Attributes:
        way: how.
        task: for the way's engine.
        claim: what this rank has asked for.
        result: the flat bytes that are its result, once it is done.
        signal: ready when it is done, where somebody sees to that.
        settled: what has become of it, where the engine has left that undecided and the broker was asked.
    """

    __slots__ = ("claim", "result", "settled", "signal", "task", "way")

    def __init__(self, way: Way, claim: Claim, task: Task, result: memoryview) -> None:
        self.way = way
        self.claim = claim
        self.task = task
        self.result = result
        self.signal = Signal()
        self.settled: int | None = None

    @property
    def status(self) -> int:
        """What has become of it."""
        return self.task.status if self.settled is None else self.settled

    @classmethod
    def of(cls, way: Way, prepared: Prepared, world_size: int, rank: int, priority: int) -> SharedOperation:
        """Raises:
        InvalidValue: nobody can carry it out.
        """
        claim = prepared.claim
        plan = way.plan(claim, world_size)
        source, target, scratch = prepared.contribution, prepared.target, prepared.scratch
        if target is None and claim.result_bytes(rank, len(way.ranks)):
            target, scratch = np.empty(plan.result_bytes, np.uint8).data, True
        result = target if isinstance(target, memoryview) else memoryview(b"")
        # A memoryview that is in use cannot be garbage; the array that it is of can.
        sent = _array(source, plan)
        taken = sent if source is target else _array(target, plan)
        task = way.task(plan, sent, taken, claim.timeout_ns, scratch=scratch, priority=priority)
        if claim.kind is CollectiveKind.ALL_REDUCE and source is not target:
            way.share(task, sent, taken)
        return cls(way, claim, task, result)

    @classmethod
    def plain(cls, way: Way, task: Task) -> SharedOperation:
        """Of a plain task."""
        return cls(way, msgspec.msgpack.decode(task.claim, type=Claim), task, memoryview(b""))

    def __repr__(self) -> str:
        return f"<SharedOperation {self.task!r} {self.claim.describe()}>"


def _array(memory: FlatMemory | None, plan: Plan) -> object:
    if memory is None or not plan.array_bytes:
        return None
    return memory.obj if isinstance(memory, memoryview) else [each.obj for each in memory if each.nbytes]


def begin(place: Place, prepared: Prepared, priority: int = 0) -> tuple[Prepared, SharedOperation | None]:
    """An operation for the engine of the place's way, or None when it goes through the broker; as it is taken there.

    Raises:
        InvalidValue: the claim cannot be.
        GenerationChangedError: the members have changed since the last call.
        CollectiveError: it has to go another way than there is.
        BrokerError: the place is lost.
    """
    if place.closed is not None:
        raise place.closed.again()
    note_detour(prepared, prepared.claim.describe() if prepared.staged else "", place.device_bytes)
    way = place.way
    if way is None or not way.carries(prepared.claim):
        place.check_schedule()
        return prepared.packed(), None
    place.member.raise_change()
    place.plain = way
    prepared = way.fitted(prepared)
    return prepared, SharedOperation.of(way, prepared, place.member.world_size, place.member.rank, priority)


async def finish(driver: Driver, place: Place, operation: SharedOperation) -> memoryview:
    """The flat bytes of the result of an operation that has ended.

    Raises:
        BrokerError: why it has failed; no array was changed.
    """
    task, way = operation.task, operation.way
    status = operation.status
    if status in (ring.Outcome.OVER, ring.Outcome.UNDECIDED):
        way.lost(place)
        # What this member has finished is certain now, and others may wait to hear it.
        place.report()
        driver.flush()
    if status == ring.Outcome.UNDECIDED:
        status = operation.settled = await way.settle(driver, task)
    if status == _DONE:
        return operation.result
    way.failed(task)
    # A client that is closed does not wait for the engine.
    if status in (ring.Outcome.OVER, ring.Outcome.PENDING, ring.Outcome.UNDECIDED):
        raise await _over(driver, place, way)
    # The program may end over it, in whatever manner, and then nobody else could tell the broker why.
    place.tell_operations(None)
    driver.flush()
    raise _failure(place, operation, status)


def problem(place: Place, operation: SharedOperation) -> str | None:
    """Why an operation has failed, without asking anybody: empty when it was done, None while it is not known."""
    status = operation.status
    if status in (ring.Outcome.PENDING, ring.Outcome.UNDECIDED):
        return None
    if status == _DONE:
        return ""
    if status == ring.Outcome.OVER:
        return f"generation {operation.way.generation} of group {place.name!r} was over before"
    return str(_failure(place, operation, status))


def _failure(place: Place, operation: SharedOperation, status: int) -> BrokerError:
    task, way = operation.task, operation.way
    ranks = [way.ranks[position] for position in task.positions if position < len(way.ranks)]
    if status == shm.Outcome.MISSING:
        return RankTimeoutError(place.name, task.sequence, ranks, task.timeout_ns / 1e9)
    if status == shm.Outcome.MISMATCH:
        return CollectiveMismatchError(place.name, task.sequence, _claims(way, task, place.member.world_size))
    if status == shm.Outcome.INTERRUPTED and ranks:
        return CollectiveAbortedError(place.name, task.sequence, ranks[0])
    words = {
        shm.Outcome.INTERRUPTED: "a rank's program gave it up",
        shm.Outcome.NO_MEMORY: f"there is no memory for {operation.claim.nbytes} bytes beside the array",
        shm.Outcome.BROKEN: "its board or its links say what cannot be: a rank's program has written over it",
    }[shm.Outcome(status)]
    return CollectiveError(place.name, f"operation {task.sequence}: {words}")


async def _over(driver: Driver, place: Place, way: Way) -> BrokerError:
    """Why a generation is over; waits until the broker has said it."""
    try:
        await driver.wait(way.over, GRACE_S, "the group's next generation")
    except TimeoutError:
        return CollectiveError(place.name, f"generation {way.generation} is over, and the broker says nothing of it")
    change = place.member.take_change()
    if change is not None and place.closed is None:
        way.end(change)
    assert way.error is not None
    return way.error.again()


def _claims(way: Way, task: Task, world_size: int) -> dict[int, str]:
    return {
        way.ranks[position]: _words(way, claim, world_size)
        for position, claim in task.claims().items()
        if position < len(way.ranks)
    }


def _words(way: Way, data: bytes, world_size: int) -> str:
    """What a rank asks for, and why it cannot be, if it cannot: the same words on all ranks."""
    try:
        claim = msgspec.msgpack.decode(data, type=Claim)
        claim.check(world_size)
        return claim.describe() + member_problem(claim, way.ranks, way.generation)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, InvalidValue):
        return _UNREADABLE
