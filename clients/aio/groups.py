"""A collective group, as one rank of the asynchronous client uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from broker.errors import BrokerError, InvalidValue
from broker.limits import ANSWER_TIMEOUT_S, COLLECTIVE_TIMEOUT_S
from broker.protocol.tensors import Array
from clients.aio.driver import AsyncDriver
from clients.aio.work import ManyWork, SharedWork, Work, take
from clients.collectives import (
    channels,
    collective,
    collective_lists,
    device_operations,
    joining,
    partial,
    shared_operation,
    state_sync,
    windows,
)
from clients.collectives.collective import GRACE_S, Prepared
from clients.collectives.collective_lists import PreparedList
from clients.collectives.compression import Compression
from clients.collectives.device_windows import Steps
from clients.collectives.group_base import GroupBase
from clients.collectives.membership import Place
from clients.collectives.partial import AUTO, Terms
from clients.collectives.staging import note_detour
from clients.collectives.state_sync import Synced
from clients.connection.checks import check_priority

T = TypeVar("T")


class Group(GroupBase):
    """As `clients.Group`, with coroutines; that class documents arguments and errors."""

    def __init__(self, driver: AsyncDriver, place: Place, compression: Compression) -> None:
        """Made by `Client.group`."""
        super().__init__(place, compression)
        self._driver = driver
        self._device_turn = asyncio.Lock()

    async def all_reduce(
        self,
        array: object,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
        quorum: float | None = None,
        deadline: float | str = AUTO,
        late: str = "carry",
        name: str = "",
        contribute: bool = True,
        compression: str | None = None,
        feedback: str | None = None,
    ) -> object:
        """Reduces the arrays, or lists of arrays, of all present ranks; see `clients.Group.all_reduce`."""
        place = self._place
        if quorum is not None:
            self._compression.refuse(compression, feedback)
            work = self._start_partly(array, op, timeout_s, Terms(quorum, deadline, late, name, contribute))
            return work if async_op else await work.wait()
        if self._compression.applies or compression is not None:
            encoded = self._compression.all_reduce(place.member, array, op, timeout_s, out, compression, feedback)
            if encoded is not None:
                return await self._call(encoded, timeout_s, async_op=async_op, priority=priority)
        steps = None if async_op else device_operations.all_reduce(place, array, op, timeout_s, out)
        if steps is not None:
            return await self._on_devices(steps, timeout_s, priority)
        if collective_lists.is_list(array):
            many = collective_lists.all_reduce(self._place.member, array, op, timeout_s, out)
            return await self._call_list(many, timeout_s, async_op=async_op, priority=priority)
        prepared = collective.all_reduce(self._place.member, array, op, timeout_s, out)
        return await self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    async def all_reduce_many(
        self,
        arrays: Sequence[Array] | Mapping[str, Array],
        op: str = "mean",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
    ) -> None:
        """As `all_reduce` of the list or dict of arrays; the op is mean unless it is given."""
        await self.all_reduce(arrays if isinstance(arrays, dict) else list(arrays), op, timeout_s=timeout_s)

    async def reduce(
        self,
        array: object,
        root: int = 0,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """As all_reduce, for the root only; returns the array or `out` there, None elsewhere, or a Work."""
        prepared = collective.reduce(self._place.member, array, root, op, timeout_s, out)
        return await self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    async def broadcast(
        self,
        array: object,
        root: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """Copies the root's array, or list of arrays, into every rank's; returns the array, `out`, or a Work."""
        steps = None if async_op else device_operations.broadcast(self._place, array, root, timeout_s, out)
        if steps is not None:
            return await self._on_devices(steps, timeout_s, priority)
        if collective_lists.is_list(array) or collective_lists.is_list(out):
            many = collective_lists.broadcast(self._place.member, array, root, timeout_s, out)
            return await self._call_list(many, timeout_s, async_op=async_op, priority=priority)
        prepared = collective.broadcast(self._place.member, array, root, timeout_s, out)
        return await self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    async def all_gather(
        self,
        array: object,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """The arrays, or lists of arrays, of all present ranks, in the order of their ranks."""
        steps = None if async_op else device_operations.all_gather(self._place, array, timeout_s, out)
        if steps is not None:
            return await self._on_devices(steps, timeout_s, priority)
        if collective_lists.is_list(array):
            if out is not None:
                raise InvalidValue("out", type(out).__name__, "is for one array, not for a list of them")
            many = collective_lists.all_gather(self._place.member, array, timeout_s)
            return await self._call_list(many, timeout_s, async_op=async_op, priority=priority)
        prepared = collective.all_gather(self._place.member, array, timeout_s, out)
        return await self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    async def gather(
        self,
        array: object,
        root: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """The arrays of all present ranks, on the root; None elsewhere."""
        prepared = collective.gather(self._place.member, array, root, timeout_s, out)
        return await self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    async def scatter(
        self,
        arrays: object,
        root: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """One of the root's arrays for each rank; `out` is needed but on the root."""
        prepared = collective.scatter(self._place.member, arrays, root, timeout_s, out)
        return await self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    async def reduce_scatter(
        self,
        array: object,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """This rank's share, along the first axis, of the reduced array."""
        steps = None if async_op else device_operations.reduce_scatter(self._place, array, op, timeout_s, out)
        if steps is not None:
            return await self._on_devices(steps, timeout_s, priority)
        prepared = collective.reduce_scatter(self._place.member, array, op, timeout_s, out)
        return await self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    async def all_to_all(
        self,
        arrays: object,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """One part from each rank to each rank."""
        prepared = collective.all_to_all(self._place.member, arrays, timeout_s, out)
        return await self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    async def send(
        self,
        array: object,
        to_rank: int,
        tag: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        priority: int = 0,
    ) -> object:
        """Sends an array to one rank, which receives it; returns when it has, or a Work."""
        work = self._start_point(channels.send(self._place.member, array, to_rank, tag, timeout_s), timeout_s, priority)
        return work if async_op else await work.wait()

    async def receive(
        self,
        array: object,
        from_rank: int,
        tag: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
    ) -> object:
        """Receives what one rank sends, into the array or, for None, into a new one; returns it, or a Work."""
        work = self._start_point(channels.receive(self._place.member, array, from_rank, tag, timeout_s), timeout_s, 0)
        return work if async_op else await work.wait()

    async def barrier(self, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Waits until all present ranks have called it."""
        await self._call(collective.barrier(timeout_s), timeout_s, async_op=False, priority=0)

    def abort(self) -> bool:
        """Cancels all operations that this rank has in progress; says whether there was one."""
        place, way = self._place, self._place.way
        found = way is not None and way.cancel_all()
        found = place.give_up([*place.member.pending, *place.channels.pending]) or found
        self._driver.flush()
        return found

    async def sync_state(self, state: object, step: int = 0, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> Synced:
        """Gives every rank the state of the one with the highest step; of several, of the lowest rank."""
        return await self._call_each(state_sync.sync_state(self._place.member, state, step, timeout_s), timeout_s)

    async def empty(
        self, shape: int | Sequence[int], dtype: npt.DTypeLike = "float32", *, timeout_s: float = COLLECTIVE_TIMEOUT_S
    ) -> npt.NDArray[np.generic]:
        """An uninitialised array in memory that the ranks share, if all are on one host; see clients.Group.empty."""
        return await self._call_each(windows.empty(self._place, shape, dtype, timeout_s), timeout_s)

    async def _call_each(self, calls: Generator[Prepared, object, T], timeout_s: float) -> T:
        """Carries out what is yielded, one after the other, and gives what comes of all.

        What interrupts it is raised where that was yielded: the other ranks may wait for what comes next.
        """
        # What they hold is let go with a call that fails, and not with the error that tells of it.
        with closing(calls):
            try:
                prepared = next(calls)
                while True:
                    try:
                        value = await self._call(prepared, timeout_s, async_op=False, priority=0)
                    except BrokerError:
                        raise
                    except BaseException as interruption:  # noqa: BLE001
                        prepared = calls.throw(interruption)
                    else:
                        prepared = calls.send(value)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]

    async def _on_devices(self, steps: Steps, timeout_s: float, priority: int) -> object:
        """As _call_each, of what takes place on devices: one after the other, whichever tasks call."""
        check_priority(priority)
        async with self._device_turn:
            return await self._call_each(steps, timeout_s)

    async def regroup(self, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Makes all ranks meet: the members stay, and each of them gets GenerationChangedError."""
        begun = self._place.regroup()
        self._driver.flush()
        await self._driver.wait(begun, timeout_s, f"another generation of group {self.name!r}")

    async def finish(self, *, generation: int | None = None, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Says that the members have done what the group is for: nobody is let in from now on."""
        await joining.finish(self._driver, self._place, generation, timeout_s)

    async def reopen(self, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Takes `finish` back: ranks can join again."""
        await joining.reopen(self._driver, self._place, timeout_s)

    async def leave(self) -> None:
        """Leaves in order: the others get GenerationChangedError."""
        await joining.leave(self._driver, self._place, ANSWER_TIMEOUT_S)

    def _start_partly(self, array: object, op: str, timeout_s: float, terms: Terms) -> Work:
        """Through the broker, whatever the schedule: it has to decide who is in time."""
        place = self._place
        prepared = partial.all_reduce(place.member, array, op, timeout_s, terms)
        note_detour(prepared, "a quorum", place.device_bytes)
        operation, signal = place.start(*prepared.flat())
        self._driver.flush()
        prepared = partial.completed(prepared, operation, self.rank)
        return Work(self._driver, place, operation, signal, prepared, timeout_s + GRACE_S)

    def _start(self, prepared: Prepared, timeout_s: float, priority: int) -> Work:
        place = self._place
        check_priority(priority)
        prepared, shared = shared_operation.begin(place, prepared, priority)
        if shared is not None:
            self._driver.submit(shared)
            return SharedWork(self._driver, place, shared, prepared, timeout_s + GRACE_S)
        operation, signal = place.start(*prepared.flat(), priority)
        self._driver.flush()
        return Work(self._driver, place, operation, signal, prepared, timeout_s + GRACE_S)

    def _start_point(self, point: tuple[int, int, Prepared], timeout_s: float, priority: int) -> Work:
        place = self._place
        channel, peer, prepared = point
        note_detour(prepared, "send or receive", place.device_bytes)
        check_priority(priority)
        if place.closed is not None:
            raise place.closed.again()
        end = place.channels.end(channel, peer)
        operation, signal = place.start(*prepared.flat(), priority, end)
        place.channels.begun(end, operation)
        self._driver.flush()
        prepared = channels.completed(prepared, operation)
        return Work(self._driver, place, operation, signal, prepared, timeout_s + GRACE_S)

    async def _call(self, prepared: Prepared, timeout_s: float, *, async_op: bool, priority: int) -> object:
        try:
            await joining.decided(self._driver, self._place)
            work = self._start(prepared, timeout_s, priority)
            return work if async_op else await take(work)
        except BaseException:
            # Also what could not begin has failed.
            prepared.abandon()
            raise

    async def _call_list(self, many: PreparedList, timeout_s: float, *, async_op: bool, priority: int) -> object:
        note_detour(many, "a list of arrays", self._place.device_bytes)
        await joining.decided(self._driver, self._place)
        works = [self._start(prepared, timeout_s, priority) for prepared in many.operations]
        work = ManyWork(works, many.complete)
        return work if async_op else await take(work)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.leave()
