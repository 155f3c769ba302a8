"""A collective operation that runs while the application goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from broker.collectives import shm
from broker.collectives.member import MemberOperation
from broker.errors import BrokerError, TimeoutError
from clients.collectives import shared_operation
from clients.collectives.collective import Prepared
from clients.collectives.membership import Place
from clients.collectives.shared_operation import SharedOperation
from clients.collectives.started import Started, StartedMany, StartedShared
from clients.connection.checks import time_limit
from clients.connection.driver import Driver
from clients.connection.signals import Signal


class Work(Started):
    """The handle of an operation that was started with `async_op=True`.

    The array must not be touched until `wait` has returned; until then it holds what it held. Threads may share a Work.
    """

    def __init__(
        self,
        driver: Driver,
        place: Place,
        operation: MemberOperation,
        signal: Signal,
        prepared: Prepared,
        grace_s: float,
    ) -> None:
        """Made by a Group."""
        self._driver = driver
        self._hold = driver.holding.hold()
        driver.expect_results(more=True)
        super().__init__(place, operation, signal, prepared, grace_s)

    def _end(self) -> None:
        super()._end()
        self._driver.expect_results(more=False)

    def wait(self, timeout_s: float | None = None) -> object:
        """Waits for the result, which is then in the array.

        Args:
            timeout_s: how long to wait for it here; None waits for the operation's own deadline. The operation goes on
                after a time-out, and wait may be called again.

        Returns:
            What the call without async_op would have returned.

        Raises:
            TimeoutError: not done in time.
            CollectiveError: the operation has failed; the array is as it was.
        """
        with self._driver.lock:
            if not self._finished:
                what = self._operation.claim.describe()
                self._driver.block(self._signal, self._grace_s if timeout_s is None else timeout_s, what)
                self._value = self._prepared.finish(self._operation.finish)
                self._finished = True
            return self._value

    def exception(self, timeout_s: float | None = None) -> BrokerError | None:
        """As `wait`, but returns the error that it would raise, or None."""
        try:
            self.wait(timeout_s)
        except BrokerError as error:
            # Without the frames that it went through, which would be kept by it, and it by a variable in them.
            return error.with_traceback(None)
        return None

    def cancel(self) -> bool:
        with self._driver.lock:
            asked = super().cancel()
            self._driver.flush()
        return asked

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Waits for the result; where the block has raised, gives the operation up and waits until it has ended."""
        try:
            if kind is None:
                self.wait()
        finally:
            # Also where that was interrupted: the arrays are the program's again.
            if not self.done:
                self.cancel()
                self.exception()


class SharedWork(StartedShared, Work):
    """As Work, of an operation without the broker."""

    def __init__(
        self, driver: Driver, place: Place, operation: SharedOperation, prepared: Prepared, grace_s: float
    ) -> None:
        """Made by a Group. The driver's lock is held."""
        self._driver = driver
        self._hold = driver.holding.hold()
        StartedShared.__init__(self, place, operation, prepared, grace_s)
        operation.way.submit(operation.task)

    def wait(self, timeout_s: float | None = None) -> object:
        operation, driver = self._shared, self._driver
        limit_s = self._grace_s if timeout_s is None else time_limit("timeout_s", timeout_s)
        if operation.way.engine.wait(operation.task, limit_s) == shm.Outcome.PENDING:
            raise TimeoutError(operation.claim.describe(), limit_s)
        if not self._finished:
            result = self._prepared.take(lambda: driver.run(shared_operation.finish(driver, self._place, operation)))
            with driver.lock:
                if not self._finished:
                    self._value = self._prepared.complete(result)
                    self._finished = True
        return self._value


class ManyWork(StartedMany, Work):
    """As Work, of several operations that were started together and count as one."""

    _works: Sequence[Work]

    def __init__(self, works: Sequence[Work], complete: Callable[[Sequence[object]], object]) -> None:
        """Made by a Group."""
        StartedMany.__init__(self, works, complete)
        self._lock = threading.Lock()

    def wait(self, timeout_s: float | None = None) -> object:
        deadline = None if timeout_s is None else time.monotonic() + time_limit("timeout_s", timeout_s)
        with self._lock:
            if self._finished:
                return self._value
            # Nobody looks at the arrays before all have ended.
            errors = [work.exception(_left_s(deadline)) for work in self._works]
            failures = [error for error in errors if error is not None]
            if failures:
                raise failures[0]
            self._value = self._complete_all([work.wait() for work in self._works])
            self._finished = True
            return self._value


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
