"""As clients/training/gradients.py, with the asynchronous client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from broker.errors import BrokerError, InvalidValue
from broker.limits import COLLECTIVE_TIMEOUT_S
from clients.aio.groups import Group
from clients.aio.work import Work
from clients.training.gradients import OVERLAPPED_BUCKET_BYTES, BucketPlan


class GradientBuckets:
    """As `clients.GradientBuckets`, with coroutines; that class documents arguments and errors."""

    def __init__(
        self,
        group: Group,
        arrays: Iterable[object],
        *,
        op: str = "mean",
        bucket_bytes: int = OVERLAPPED_BUCKET_BYTES,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
    ) -> None:
        self._group = group
        self._plan = BucketPlan(arrays, bucket_bytes)
        self._op = op
        self._timeout_s = timeout_s
        self._works: list[Work] = []

    def __len__(self) -> int:
        return len(self._plan.buckets)

    async def ready(self, index: int) -> None:
        """A gradient is there; starts the buckets that it completes."""
        for bucket in self._plan.ready(index):
            work = await self._group.all_reduce(
                self._plan.buckets[bucket], self._op,
                timeout_s=self._timeout_s, async_op=True, priority=bucket,
            )  # fmt: skip
            self._works.append(cast(Work, work))

    async def wait(self, timeout_s: float | None = None) -> None:
        """Waits until all buckets are reduced, and begins the next step."""
        if self._plan.lacking:
            raise InvalidValue("gradients", self._plan.lacking, "have not been ready() in this step")
        works, self._works = self._works, []
        errors = [await work.exception(timeout_s) for work in works]
        self._plan.begin()
        failures: list[BrokerError] = [error for error in errors if error is not None]
        if failures:
            raise failures[0]

    async def cancel(self) -> None:
        """Gives up what is under way; `wait` is not needed any more, and the next step begins."""
        works, self._works = self._works, []
        for work in works:
            work.cancel()
        for work in works:
            await work.exception()
        self._plan.begin()

    def __repr__(self) -> str:
        return f"<GradientBuckets buckets={len(self)} under_way={len(self._works)} lacking={len(self._plan.lacking)}>"
