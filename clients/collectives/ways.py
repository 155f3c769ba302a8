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

from broker import schedules
from broker.collectives import ring, shm
from broker.collectives.claims import Claim, member_problem
from broker.errors import BrokerError, InvalidValue
from broker.protocol.bodies import Membership
from broker.protocol.tensors import Array
from clients.collectives.collective import Prepared
from clients.connection.signals import Signal

if TYPE_CHECKING:
    from clients.collectives.membership import Place
    from clients.connection.operations import Driver

PLANS_MAX: Final = 1024
"""Different arrays of one program; beyond it the plans are made anew."""
PLAIN_TIMEOUT_S_MAX: Final = 1e9
"""Longer ones are checked with care."""


class Schedule(StrEnum):
    """How a group carries out its operations."""

    AUTO = schedules.AUTO
    SHM = schedules.SHM
    STAR = schedules.STAR
    RING = schedules.RING
    HALVING = schedules.HALVING
    HIERARCHICAL = schedules.HIERARCHICAL

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
        return self in schedules.LINKED

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

    def cancel_all(self) -> bool:
        """Cancels all that this member has in progress on it; says whether there was anything."""
        return self.engine.cancel_all()

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

    def plain_task(self, array: object, op: str, timeout_s: float, out: object = None) -> Task | None:
        """The shortest way to an all_reduce of an array like one before; None when it is not like one."""
        if type(array) is not np.ndarray or type(timeout_s) is not float or not 0.0 < timeout_s < PLAIN_TIMEOUT_S_MAX:
            return None
        if type(op) is not str:
            return None
        plan = self._plain.get((op, array.dtype, array.shape))
        if plan is None or not (out is None or _may_receive(out, array)):
            return None
        try:
            task = self.task(plan, array, array if out is None else out, int(timeout_s * 1e9))
        except (BufferError, ValueError):
            # It is read-only, or not contiguous.
            return None
        if out is not None:
            self.share(task, array, out)
        return task

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


def _may_receive(out: object, array: Array) -> bool:
    """Whether the result of an array may belong to another one; what is not seen at a glance is looked at with care."""
    return (
        type(out) is np.ndarray
        and out.dtype == array.dtype
        and out.shape == array.shape
        and not np.may_share_memory(out, array)
    )
