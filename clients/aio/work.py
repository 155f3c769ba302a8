"""A collective operation of the asynchronous client that runs while its application goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Self

from broker.collectives.member import MemberOperation
from broker.errors import BrokerError
from clients.aio.driver import AsyncDriver
from clients.collectives import shared_operation
from clients.collectives.collective import Prepared
from clients.collectives.membership import Place
from clients.collectives.shared_operation import SharedOperation
from clients.collectives.started import Started, StartedMany, StartedShared
from clients.connection.operations import Deadline
from clients.connection.signals import Signal


class Work(Started):
    """As `clients.Work`: an operation that was started with `async_op=True`."""

    def __init__(
        self,
        driver: AsyncDriver,
        place: Place,
        operation: MemberOperation,
        signal: Signal,
        prepared: Prepared,
        grace_s: float,
    ) -> None:
        """Made by a Group."""
        self._driver = driver
        super().__init__(place, operation, signal, prepared, grace_s)

    async def wait(self, timeout_s: float | None = None) -> object:
        """Waits for the result, which is then in the array; see `clients.Work.wait`. Cancelling leaves it under way."""
        if not self._finished:
            what = self._operation.claim.describe()
            await self._driver.wait(self._signal, self._grace_s if timeout_s is None else timeout_s, what)
            self._value = self._prepared.finish(self._operation.finish)
            self._finished = True
        return self._value

    async def exception(self, timeout_s: float | None = None) -> BrokerError | None:
        """As `wait`, but returns the error that it would raise, or None."""
        try:
            await self.wait(timeout_s)
        except BrokerError as error:
            # As clients.Work.exception: without what would keep the error alive by way of itself.
            return error.with_traceback(None)
        return None

    def cancel(self) -> bool:
        asked = super().cancel()
        self._driver.flush()
        return asked

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """See `clients.Work.__exit__`."""
        if kind is None:
            await take(self)
        else:
            await _abandon(self)

    def _let_go(self) -> bool:
        """Whether the operation, which is given up, still has its arrays."""
        self._operation.let_go()
        return self._operation.opened


class SharedWork(StartedShared, Work):
    """As Work, of an operation without the broker."""

    def __init__(
        self, driver: AsyncDriver, place: Place, operation: SharedOperation, prepared: Prepared, grace_s: float
    ) -> None:
        """Made by a Group."""
        self._driver = driver
        StartedShared.__init__(self, place, operation, prepared, grace_s)

    async def wait(self, timeout_s: float | None = None) -> object:
        operation, driver = self._shared, self._driver
        if not self._finished:
            what = operation.claim.describe()
            await driver.wait(operation.signal, self._grace_s if timeout_s is None else timeout_s, what)
            try:
                result = await shared_operation.finish(driver, self._place, operation)
            except Exception:
                # Not when this is cancelled: then nothing is known yet.
                self._prepared.abandon()
                raise
            self._value = self._prepared.complete(result)
            self._finished = True
        return self._value

    def _let_go(self) -> bool:
        return self._shared.task.sequence > 0


class ManyWork(StartedMany, Work):
    """As Work, of several operations that were started together and count as one."""

    _works: Sequence[Work]

    def __init__(self, works: Sequence[Work], complete: Callable[[Sequence[object]], object]) -> None:
        """Made by a Group."""
        StartedMany.__init__(self, works, complete)

    async def wait(self, timeout_s: float | None = None) -> object:
        deadline = Deadline(timeout_s)
        if not self._finished:
            # Nobody looks at the arrays before all have ended.
            errors = [await work.exception(deadline.remaining_s) for work in self._works]
            failures = [error for error in errors if error is not None]
            if failures:
                raise failures[0]
            if not self._finished:
                self._value = self._complete_all([await work.wait() for work in self._works])
                self._finished = True
        return self._value


async def take(work: Work) -> object:
    """Waits for a Work of which its program has no handle: if this is cancelled, the operation is given up.

    The arrays are then the caller's again: as they were, or with the result if all has ended well in that moment.
    """
    try:
        return await work.wait()
    except asyncio.CancelledError:
        await _abandon(work)
        raise


async def _abandon(work: Work) -> None:
    """Gives an operation up. When this returns, nothing writes to its arrays, and nobody gets what is written there."""
    work.cancel()
    if isinstance(work, ManyWork):
        for each in work._works:
            await _abandon(each)
        return
    # What has begun has its arrays until it has ended, so nobody cancels this: others may have parts of them, and parts
    # may be on their way. What has not begun will find that it is given up.
    while work._let_go() and not work._finished:
        try:
            await work.wait()
        except asyncio.CancelledError:
            continue
        except BrokerError:
            break
