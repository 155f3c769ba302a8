"""Ways in which the members of a generation carry operations out among themselves, without the broker.

There are two: a board, in memory that they share (boards.py), and links (links.py). Whether a
generation has one of them the broker decides, for all members alike. It watches over their lives as before: when one is
gone it begins another generation, and what was in progress waits for the CHANGED that says why.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

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
from broker.protocol.bodies import Membership
from clients.collectives.collective import GRACE_S, FlatMemory, Prepared
from clients.connection.signals import Signal

if TYPE_CHECKING:
    from clients.collectives.membership import Place
    from clients.connection.operations import Driver

PLANS_MAX: Final = 1024
"""Different arrays of one program; beyond it the plans are made anew."""
PLAIN_TIMEOUT_S_MAX: Final = 1e9
"""Longer ones are checked with care."""
_UNREADABLE: Final = "a claim that cannot be read"
_DONE: Final = int(shm.Outcome.COMMITTED)


class Schedule(StrEnum):
    """How a group carries out its operations."""

    AUTO = "auto"
    SHM = "shm"
    STAR = "star"
    RING = "ring"
    HALVING = "halving"
    HIERARCHICAL = "hierarchical"

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
    def linked(self) -> bool:
        """Whether it needs links."""
        return self in (Schedule.RING, Schedule.HALVING, Schedule.HIERARCHICAL)

    @property
    def board_version(self) -> int:
        """The version of boards that a member can use; 0 is none."""
        # A hierarchy of one host is that host.
        wanted = self in (Schedule.AUTO, Schedule.SHM, Schedule.HIERARCHICAL)
        return shm.VERSION if shm.AVAILABLE and wanted else 0

    @property
    def link_version(self) -> int:
        """The version of links that a member can use; 0 is none."""
        return ring.VERSION if ring.AVAILABLE and (self is Schedule.AUTO or self.linked) else 0


class Plan(Protocol):
    """What an operation is, apart from its arrays; see shm.Plan."""

    array_bytes: int
    result_bytes: int


class Task(Protocol):
    """An operation with its arrays; see shm.Task."""

    @property
    def status(self) -> int: ...

    @property
    def sequence(self) -> int: ...

    @property
    def positions(self) -> list[int]: ...

    @property
    def timeout_ns(self) -> int: ...

    @property
    def ended_ns(self) -> int: ...

    @property
    def claim(self) -> bytes: ...

    def claims(self) -> dict[int, bytes]: ...


class Engine(Protocol):
    """What carries tasks out; see shm.Engine."""

    def run(self, task: Task) -> int: ...

    def submit(self, task: Task) -> None: ...

    def wait(self, task: Task, timeout_s: float) -> int: ...

    def cancel(self, task: Task) -> None: ...

    def cancel_all(self) -> bool: ...

    def close(self) -> None: ...


class Way(ABC):
    """How a generation carries its operations out, as one of its members uses it.

    Attributes:
        schedule: its name.
        ranks: of all members, ascending.
        engine: carries operations out.
        over: ready when the member knows of the next generation, or its place is lost.
        error: why it is over.
    """

    schedule: str
    engine: Engine

    def __init__(self, told: Membership) -> None:
        self.ranks = tuple(told.ranks)
        self.generation = told.generation
        self.over = Signal()
        self.error: BrokerError | None = None
        self._plans: dict[tuple[object, ...], Plan] = {}
        self._plain: dict[tuple[object, ...], Plan] = {}

    @property
    def used(self) -> str:
        """How long arrays are reduced."""
        return self.schedule

    @abstractmethod
    def make_plan(self, claim: Claim, words: bytes, root: int, *, impossible: bool) -> Plan:
        """How to carry a claim out; `words` are what all members have to agree on, `root` a position."""

    def carries(self, claim: Claim) -> bool:
        """Whether it carries such operations; others go through the broker, for all members alike."""
        return claim.op is None or shm.reducible(claim.op, claim.dtype)

    def fitted(self, prepared: Prepared) -> Prepared:
        """An operation as the engine takes it."""
        return prepared

    @abstractmethod
    def task(
        self, plan: Plan, source: object, target: object, timeout_ns: int, *, scratch: bool = False, priority: int = 0
    ) -> Task:
        """See shm.Task."""

    def share(self, task: Task, source: object, target: object) -> None:  # noqa: B027
        """Lets a task go the shortest way if its arrays lie where that is possible."""

    def failed(self, task: Task) -> None:  # noqa: B027
        """A task has failed, and its program is about to get its arrays back."""

    def run(self, task: Task) -> int:
        """Carries a task out, and returns its outcome."""
        try:
            return self.engine.run(task)
        except BaseException:
            self.failed(task)
            raise

    def submit(self, task: Task) -> None:
        """Has a task carried out by the engine's own thread."""
        self.engine.submit(task)

    @abstractmethod
    def lost(self, place: Place) -> None:
        """An operation has ended because the way has; the broker may not know."""

    @abstractmethod
    async def settle(self, driver: Driver, task: Task) -> int:
        """What has become of a task that was left undecided."""

    def plan(self, claim: Claim, world_size: int) -> Plan:
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
            root = self.ranks.index(claim.root) if claim.root in self.ranks else 0
            impossible = bool(member_problem(claim, self.ranks, self.generation))
            plan = self._plans[key] = self.make_plan(claim, words, root, impossible=impossible)
        return plan

    def plain_task(self, array: object, op: str, timeout_s: float) -> Task | None:
        """The shortest way to an all_reduce of an array like one before; None when it is not like one."""
        if type(array) is not np.ndarray or type(timeout_s) is not float or not 0.0 < timeout_s < PLAIN_TIMEOUT_S_MAX:
            return None
        if type(op) is not str:
            return None
        plan = self._plain.get((op, array.dtype, array.shape))
        if plan is None:
            return None
        try:
            return self.task(plan, array, array, int(timeout_s * 1e9))
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
        self.error = error
        self.over.set()

    def close(self) -> None:
        """The member has no part in the generation any more."""
        self.engine.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.schedule} generation={self.generation} ranks={self.ranks}>"


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


def fitted(place: Place, prepared: Prepared) -> Prepared:
    """An operation as the engine of the place's way takes it."""
    return prepared if place.way is None else place.way.fitted(prepared)


def begin(place: Place, prepared: Prepared, priority: int = 0) -> SharedOperation | None:
    """An operation for the engine of the place's way; None when it goes through the broker.

    Raises:
        InvalidValue: the claim cannot be.
        GenerationChangedError: the members have changed since the last call.
        CollectiveError: it has to go another way than there is.
        BrokerError: the place is lost.
    """
    if place.closed is not None:
        raise place.closed.again()
    way = place.way
    if way is None or not way.carries(prepared.claim):
        place.check_schedule()
        return None
    place.member.raise_change()
    place.plain = way
    return SharedOperation.of(way, prepared, place.member.world_size, place.member.rank, priority)


async def finish(driver: Driver, place: Place, operation: SharedOperation) -> memoryview:
    """The flat bytes of the result of an operation that has ended.

    Raises:
        BrokerError: why it has failed; no array was changed.
    """
    task, way = operation.task, operation.way
    status = operation.status
    if status in (ring.Outcome.OVER, ring.Outcome.UNDECIDED):
        way.lost(place)
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
