"""Operations that were started with `async_op=True`: what the Works of both kinds of client tell of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from broker.collectives import shm
from broker.collectives.member import MemberOperation
from clients.collectives import shared_operation
from clients.collectives.collective import Prepared
from clients.collectives.membership import Place
from clients.collectives.shared_operation import SharedOperation
from clients.connection.signals import Signal


class Started:
    """An operation that goes through the broker."""

    def __init__(
        self, place: Place, operation: MemberOperation, signal: Signal, prepared: Prepared, grace_s: float
    ) -> None:
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

    def cancel(self) -> bool:
        """Gives the operation up: it fails with CollectiveAbortedError on all ranks, and no array is changed.

        Returns:
            Whether that was still to be asked for. `wait` tells what came first, the end or this.
        """
        return self._place.give_up([self._operation])

    def __repr__(self) -> str:
        return f"<Work {self._operation!r}>"


class StartedShared(Started):
    """An operation without the broker: an engine carries it out on a thread of its own."""

    def __init__(self, place: Place, operation: SharedOperation, prepared: Prepared, grace_s: float) -> None:
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
        return shared_operation.problem(self._place, self._shared)

    def cancel(self) -> bool:
        asked = not self.done
        self._shared.way.engine.cancel(self._shared.task)
        return asked

    def __repr__(self) -> str:
        return f"<Work {self._shared!r}>"


class StartedMany(Started):
    """Several operations that were started together and count as one."""

    def __init__(self, works: Sequence[Started], complete: Callable[[Sequence[object]], object]) -> None:
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

    def cancel(self) -> bool:
        asked = [work.cancel() for work in self._works]
        return any(asked)

    def __repr__(self) -> str:
        return f"<Work of {len(self._works)} operations>"
