"""A collective operation that runs while the application goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from broker.collectives import shm
from broker.collectives.member import MemberOperation
from broker.errors import BrokerError, TimeoutError
from clients.collectives import ways
from clients.collectives.collective import Prepared
from clients.collectives.membership import Place
from clients.collectives.ways import SharedOperation
from clients.connection.checks import time_limit
from clients.connection.driver import Driver
from clients.connection.signals import Signal


class Work:
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
        self._place = place
        self._operation = operation
        self._signal = signal
        self._prepared = prepared
        self._grace_s = grace_s
        self._finished = False
        self._value: object = None
        self._ended_ns = 0
        driver.expect_results(more=True)
        signal.callbacks.append(self._end)
        if signal.ready:
            signal.set()

    def _end(self) -> None:
        self._ended_ns = time.monotonic_ns()
        self._driver.expect_results(more=False)

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
        """Gives the operation up: it fails with CollectiveAbortedError on all ranks, and no array is changed.

        Returns:
            Whether that was still to be asked for. `wait` tells what came first, the end or this.
        """
        with self._driver.lock:
            asked = self._place.give_up([self._operation])
            self._driver.flush()
        return asked

    def __repr__(self) -> str:
        return f"<Work {self._operation!r}>"


class SharedWork(Work):
    """As Work, of an operation without the broker: an engine carries it out on a thread of its own."""

    def __init__(
        self,
        driver: Driver,
        place: Place,
        operation: SharedOperation,
        prepared: Prepared,
        grace_s: float,
    ) -> None:
        """Made by a Group. The driver's lock is held."""
        self._driver = driver
        self._place = place
        self._shared = operation
        self._prepared = prepared
        self._grace_s = grace_s
        self._finished = False
        self._value = None
        operation.way.submit(operation.task)

    @property
    def done(self) -> bool:
        return self._shared.task.status != shm.Outcome.PENDING

    @property
    def ended_ns(self) -> int:
        return self._shared.task.ended_ns if self.done else 0

    @property
    def problem(self) -> str | None:
        return ways.problem(self._place, self._shared)

    def wait(self, timeout_s: float | None = None) -> object:
        operation, driver = self._shared, self._driver
        limit_s = self._grace_s if timeout_s is None else time_limit("timeout_s", timeout_s)
        if operation.way.engine.wait(operation.task, limit_s) == shm.Outcome.PENDING:
            raise TimeoutError(operation.claim.describe(), limit_s)
        if not self._finished:
            result = self._prepared.take(lambda: driver.run(ways.finish(driver, self._place, operation)))
            with driver.lock:
                if not self._finished:
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
        self._lock = threading.Lock()
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

    def cancel(self) -> bool:
        asked = [work.cancel() for work in self._works]
        return any(asked)

    def __repr__(self) -> str:
        return f"<Work of {len(self._works)} operations>"


def _left_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())
