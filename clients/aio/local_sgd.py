"""As clients/training/local_sgd.py, with the asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Generator
from contextlib import closing
from inspect import isawaitable
from typing import Self, TypeVar

from broker.errors import InvalidValue
from clients.aio.groups import Group
from clients.training.outer_loop import NesterovLoop, OuterLoop

T = TypeVar("T")


class LocalSGD(OuterLoop[Group, Awaitable[Group]]):
    """As `clients.LocalSGD`, with coroutines; that class documents arguments and errors.

    `await LocalSGD(...)` meets the other ranks and gives the object; `steps` does so too if nobody has. `rejoin` is a
    coroutine function. The arithmetic of an outer step runs on the loop. A call that is cancelled leaves the outer step
    half made: `leave` the group then, and the others go on without this rank.
    """

    def __await__(self) -> Generator[object, None, Self]:
        return self._met().__await__()

    async def _met(self) -> Self:
        if not self._has_met:
            await _carry_out(self._meet())
        return self

    def _pause(self, delay_s: float) -> object:
        return asyncio.sleep(delay_s)

    async def steps(self, outer_steps: int) -> AsyncIterator[int]:
        """Inner steps to make, by their number, until so many outer steps are made."""
        await self._met()
        await _carry_out(self._reopen())
        while True:
            while self.outer_steps < outer_steps:
                yield self._number
                await self.step()
            if await _carry_out(self._end()):
                return

    async def step(self) -> bool:
        """To be called after each inner step; says whether an outer step has been applied."""
        if not self._has_met:
            raise InvalidValue("step()", "before the ranks have met", "await the object first")
        return await _carry_out(self._step())


class DiLoCo(NesterovLoop[Group, Awaitable[Group]], LocalSGD):
    """As `clients.DiLoCo`, with coroutines; see LocalSGD."""


async def _carry_out(calls: Generator[object, object, T]) -> T:
    """Awaits what is yielded, one after the other, and gives what comes of all."""
    with closing(calls):
        try:
            call = next(calls)
            while True:
                try:
                    result = await call if isawaitable(call) else call
                except BaseException as error:
                    call = calls.throw(error)
                else:
                    call = calls.send(result)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
