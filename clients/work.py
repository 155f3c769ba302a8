"""A collective operation that runs while the application goes on."""

from __future__ import annotations

from collections.abc import Callable

from broker.collectives import shm
from broker.collectives.member import MemberOperation
from broker.errors import BrokerError, TimeoutError
from clients import ways
from clients.checks import time_limit
from clients.driver import Driver
from clients.membership import Place
from clients.signals import Signal
from clients.ways import SharedOperation


class Work:
    """The handle of an operation that was started with `async_op=True`.

    The array must not be touched until `wait` has returned; until then it holds what it held. Threads may share a Work.
    """

    def __init__(
        self,
        driver: Driver,
        operation: MemberOperation,
        signal: Signal,
        complete: Callable[[memoryview], object],
        grace_s: float,
    ) -> None:
        """Made by a Group."""
        self._driver = driver
        self._operation = operation
        self._signal = signal
        self._complete = complete
        self._grace_s = grace_s
        self._finished = False
        self._value: object = None
        driver.expect_results(more=True)
        signal.callbacks.append(lambda: driver.expect_results(more=False))
        if signal.ready:
            signal.set()

    @property
    def done(self) -> bool:
        """Whether `wait` will return or raise at once."""
        return self._signal.ready

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
                self._value = self._complete(self._operation.finish())
                self._finished = True
            return self._value

    def exception(self, timeout_s: float | None = None) -> BrokerError | None:
        """As `wait`, but returns the error that it would raise, or None."""
        try:
            self.wait(timeout_s)
        except BrokerError as error:
            return error
        return None

    def __repr__(self) -> str:
        return f"<Work {self._operation!r}>"


class SharedWork(Work):
    """As Work, of an operation without the broker: an engine carries it out on a thread of its own."""

    def __init__(
        self,
        driver: Driver,
        place: Place,
        operation: SharedOperation,
        complete: Callable[[memoryview], object],
        grace_s: float,
    ) -> None:
        """Made by a Group. The driver's lock is held."""
        self._driver = driver
        self._place = place
        self._shared = operation
        self._complete = complete
        self._grace_s = grace_s
        self._finished = False
        self._value = None
        operation.way.submit(operation.task)

    @property
    def done(self) -> bool:
        return self._shared.task.status != shm.Outcome.PENDING

    def wait(self, timeout_s: float | None = None) -> object:
        operation, driver = self._shared, self._driver
        limit_s = self._grace_s if timeout_s is None else time_limit("timeout_s", timeout_s)
        if operation.way.engine.wait(operation.task, limit_s) == shm.Outcome.PENDING:
            raise TimeoutError(operation.claim.describe(), limit_s)
        if not self._finished:
            result = driver.run(ways.finish(driver, self._place, operation))
            with driver.lock:
                if not self._finished:
                    self._value = self._complete(result)
                    self._finished = True
        return self._value

    def __repr__(self) -> str:
        return f"<Work {self._shared!r}>"
