"""A collective operation of the asynchronous client that runs while its application goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from broker.collectives import shm
from broker.collectives.member import MemberOperation
from broker.errors import BrokerError
from clients.aio.driver import AsyncDriver
from clients.collectives import ways
from clients.collectives.collective import Prepared
from clients.collectives.membership import Place
from clients.collectives.ways import SharedOperation
from clients.connection.operations import Deadline
from clients.connection.signals import Signal


class Work:
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
        self._place = place
        self._operation = operation
        self._signal = signal
        self._prepared = prepared
        self._grace_s = grace_s
        self._finished = False
        self._value: object = None
        self._ended_ns = 0
        signal.callbacks.append(self._end)
        if signal.ready:
            signal.set()

    def _end(self) -> None:
        self._ended_ns = time.monotonic_ns()

    @property
    def done(self) -> bool:
        """Whether `wait` will return or raise at once."""
        return self._signal.ready

    @property
    def ended_ns(self) -> int:
        """When it was done or had failed, in nanoseconds of the monotonic clock; 0 before that."""
        return self._ended_ns

    @property
    def problem(self) -> str | None:
        """Why it has failed, without waiting: empty when it was done, None while it is not known."""
        if not self._ended_ns:
            return None
        return "" if self._operation.error is None else str(self._operation.error)

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
        """Gives the operation up; see `clients.Work.cancel`."""
        asked = self._place.give_up([self._operation])
        self._driver.flush()
        return asked

    def __repr__(self) -> str:
        return f"<Work {self._operation!r}>"


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

    @property
    def ended_ns(self) -> int:
        return self._shared.task.ended_ns if self.done else 0

    @property
    def problem(self) -> str | None:
        return ways.problem(self._place, self._shared)

    async def wait(self, timeout_s: float | None = None) -> object:
        operation, driver = self._shared, self._driver
        if not self._finished:
            what = operation.claim.describe()
            await driver.wait(operation.signal, self._grace_s if timeout_s is None else timeout_s, what)
            try:
                result = await ways.finish(driver, self._place, operation)
            except BaseException:
                self._prepared.abandon()
                raise
            self._value = self._prepared.complete(result)
            self._finished = True
        return self._value

    def cancel(self) -> bool:
        asked = not self.done
        self._shared.way.engine.cancel(self._shared.task)
        return asked

    def __repr__(self) -> str:
        return f"<Work {self._shared!r}>"


class ManyWork(Work):
    """As Work, of several operations that were started together and count as one."""

    def __init__(self, works: Sequence[Work], complete: Callable[[Sequence[object]], object]) -> None:
        """Made by a Group."""
        self._works = works
        self._complete_all = complete
        self._finished = False
        self._value = None

    @property
    def done(self) -> bool:
        return all(work.done for work in self._works)

    @property
    def ended_ns(self) -> int:
        return max((work.ended_ns for work in self._works), default=0) if self.done else 0

    @property
    def problem(self) -> str | None:
        found = [work.problem for work in self._works]
        return None if None in found else next((each for each in found if each), "")

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

    def cancel(self) -> bool:
        asked = [work.cancel() for work in self._works]
        return any(asked)

    def __repr__(self) -> str:
        return f"<Work of {len(self._works)} operations>"
