"""A collective group, as one rank of the asynchronous client uses it."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TypeVar

from broker.collectives import shm
from broker.collectives.member import MemberOperation
from broker.limits import COLLECTIVE_TIMEOUT_S
from broker.protocol.tensors import Array
from clients import collective, joining, ways
from clients.aio.driver import AsyncDriver
from clients.collective import GRACE_S, Prepared
from clients.membership import Place
from clients.signals import Signal
from clients.ways import SharedOperation

T = TypeVar("T")


class Work:
    """As `clients.Work`: an operation that was started with `async_op=True`."""

    def __init__(
        self, driver: AsyncDriver, operation: MemberOperation, signal: Signal, prepared: Prepared, grace_s: float
    ) -> None:
        """Made by a Group."""
        self._driver = driver
        self._operation = operation
        self._signal = signal
        self._prepared = prepared
        self._grace_s = grace_s
        self._finished = False
        self._value: object = None

    @property
    def done(self) -> bool:
        """Whether `wait` will return or raise at once."""
        return self._signal.ready

    async def wait(self, timeout_s: float | None = None) -> object:
        """Waits for the result, which is then in the array; see `clients.Work.wait`. Cancelling leaves it under way."""
        if not self._finished:
            what = self._prepared.claim.describe()
            await self._driver.wait(self._signal, self._grace_s if timeout_s is None else timeout_s, what)
            self._value = self._prepared.complete(self._operation.finish())
            self._finished = True
        return self._value


class SharedWork(Work):
    """As Work, of an operation on a board: the board's engine carries it out on a thread of its own."""

    def __init__(
        self, driver: AsyncDriver, place: Place, operation: SharedOperation, prepared: Prepared, grace_s: float
    ) -> None:
        """Made by a Group."""
        self._driver = driver
        self._place = place
        self._shared = operation
        self._prepared = prepared
        self._grace_s = grace_s
        self._finished = False
        self._value = None

    @property
    def done(self) -> bool:
        return self._shared.task.status != shm.Outcome.PENDING

    async def wait(self, timeout_s: float | None = None) -> object:
        operation, driver = self._shared, self._driver
        if not self._finished:
            what = operation.claim.describe()
            await driver.wait(operation.signal, self._grace_s if timeout_s is None else timeout_s, what)
            result = await ways.finish(driver, self._place, operation)
            self._value = self._prepared.complete(result)
            self._finished = True
        return self._value


class Group:
    """As `clients.Group`, with coroutines; that class documents arguments and errors."""

    def __init__(self, driver: AsyncDriver, place: Place) -> None:
        """Made by `Client.group`."""
        self._driver = driver
        self._place = place
        self.name = place.name
        self.world_size = place.member.world_size

    @property
    def rank(self) -> int:
        """This member's rank, the same for as long as it is a member."""
        return self._place.member.rank

    @property
    def generation(self) -> int:
        """The version of the membership, from 1 upwards."""
        return self._place.member.generation

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that are present, ascending."""
        return tuple(self._place.member.ranks)

    @property
    def position(self) -> int:
        """The index of this rank among the present ones."""
        return self._place.member.position

    @property
    def schedule(self) -> str:
        """How operations go at the moment; see `clients.Group.schedule`."""
        return self._place.used_schedule

    async def all_reduce(
        self, array: object, op: str = "sum", *, timeout_s: float = COLLECTIVE_TIMEOUT_S, async_op: bool = False
    ) -> object:
        """Reduces the arrays of all present ranks in place; returns the array, or a Work."""
        await joining.decided(self._driver, self._place)
        prepared = collective.all_reduce(self._place.member, array, op, timeout_s)
        work = self._start(prepared, timeout_s)
        return work if async_op else await work.wait()

    async def broadcast(
        self, array: object, root: int = 0, *, timeout_s: float = COLLECTIVE_TIMEOUT_S, async_op: bool = False
    ) -> object:
        """Copies the root's array into every rank's array; returns the array, or a Work."""
        await joining.decided(self._driver, self._place)
        prepared = collective.broadcast(self._place.member, array, root, timeout_s)
        work = self._start(prepared, timeout_s)
        return work if async_op else await work.wait()

    async def all_gather(self, array: object, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> list[Array]:
        """The arrays of all present ranks, in the order of their ranks."""
        await joining.decided(self._driver, self._place)
        prepared = collective.all_gather(self._place.member, array, timeout_s)
        return await self._start(prepared, timeout_s).wait()  # type: ignore[return-value]

    async def reduce_scatter(self, array: object, op: str = "sum", *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> Array:
        """This rank's share, along the first axis, of the reduced array."""
        await joining.decided(self._driver, self._place)
        prepared = collective.reduce_scatter(self._place.member, array, op, timeout_s)
        return await self._start(prepared, timeout_s).wait()  # type: ignore[return-value]

    async def barrier(self, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Waits until all present ranks have called it."""
        await joining.decided(self._driver, self._place)
        await self._start(collective.barrier(timeout_s), timeout_s).wait()

    async def leave(self) -> None:
        """Leaves in order: the others get GenerationChangedError."""
        await joining.leave(self._driver, self._place, 5.0)

    def _start(self, prepared: Prepared, timeout_s: float) -> Work:
        place = self._place
        shared = ways.begin(place, prepared)
        if shared is not None:
            self._driver.submit(shared)
            return SharedWork(self._driver, place, shared, prepared, timeout_s + GRACE_S)
        operation, signal = place.start(prepared.claim, prepared.contribution, prepared.target)
        self._driver.flush()
        return Work(self._driver, operation, signal, prepared, timeout_s + GRACE_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()

    def __repr__(self) -> str:
        return f"<Group {self.name!r} rank={self.rank} of {self.ranks} generation={self.generation}>"
