"""Gradients that are reduced while the backward pass goes on.

    backward pass     layer 4 | layer 3 | layer 2 | layer 1 |
    ready                     4         3         2         1
    on the way                  [bucket 0: 4 ][bucket 1: 3, 2 ][bucket 2: 1 ]
    wait                                                    |................|

A bucket is started as soon as its last gradient is there, and never before the one in front of it, so all ranks start
them in the same order, whatever the order in which their gradients come. The later a bucket is, the higher is its
priority: the first layers are needed first in the next step. A gradient longer than a bucket is cut, so that others
can overtake it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from broker.collectives.buckets import plan_buckets
from broker.errors import BrokerError, InvalidValue
from broker.limits import BUCKET_BYTES, COLLECTIVE_TIMEOUT_S
from broker.protocol.tensors import Array
from clients.collectives.flats import writable_array_of
from clients.connection.checks import whole_number
from clients.groups import Group
from clients.work import Work

OVERLAPPED_BUCKET_BYTES: Final = BUCKET_BYTES // 4
"""Smaller than where nothing overlaps: the last bucket cannot start before the backward pass has ended."""


class BucketPlan:
    """Which gradients make up which bucket, and which have come in this step."""

    def __init__(self, arrays: Iterable[object], bucket_bytes: int) -> None:
        """Args:
            arrays: in the order of the forward pass; writable.
            bucket_bytes: a bucket is full at this size.

        Raises:
            InvalidValue: there is no array, one cannot be written to, or a bucket cannot be that small.
        """
        arrays = list(arrays)
        if not arrays or whole_number("bucket_bytes", bucket_bytes) < 1:
            raise InvalidValue("arrays and bucket_bytes", (len(arrays), bucket_bytes), "must be at least 1")
        pieces: list[Array] = []
        self._owners: list[int] = []
        for index, value in enumerate(arrays):
            for piece in _cut(writable_array_of(value, "gradient"), bucket_bytes):
                pieces.append(piece)
                self._owners.append(index)
        planned = plan_buckets(pieces, bucket_bytes)
        self.buckets = [[pieces[piece] for piece in bucket] for bucket in planned]
        self._bucket_of = {piece: number for number, bucket in enumerate(planned) for piece in bucket}
        self._count = len(arrays)
        self.begin()

    def begin(self) -> None:
        """A new step: nothing has come."""
        self._missing = [len(bucket) for bucket in self.buckets]
        self._come: set[int] = set()
        self._next = 0

    @property
    def lacking(self) -> list[int]:
        """The gradients that have not come, ascending."""
        return [index for index in range(self._count) if index not in self._come]

    def ready(self, index: object) -> list[int]:
        """A gradient has come; returns the buckets that are to be started now, in this order.

        Raises:
            InvalidValue: there is no such gradient, or it has come before in this step.
        """
        number = whole_number("index", index)
        if not 0 <= number < self._count or number in self._come:
            raise InvalidValue("index", number, f"must be from 0 to {self._count - 1}, and each once before wait()")
        self._come.add(number)
        for piece, owner in enumerate(self._owners):
            if owner == number:
                self._missing[self._bucket_of[piece]] -= 1
        first = self._next
        while self._next < len(self._missing) and not self._missing[self._next]:
            self._next += 1
        return list(range(first, self._next))


def _cut(array: Array, bucket_bytes: int) -> list[Array]:
    """An array in pieces of at most so many bytes, if it lies in one."""
    if array.nbytes <= bucket_bytes or not array.flags.c_contiguous:
        return [array]
    flat, step = array.reshape(-1), max(1, bucket_bytes // array.itemsize)
    return [flat[start : start + step] for start in range(0, flat.size, step)]


class GradientBuckets:
    """All-reduces a model's gradients in place, in buckets, while the backward pass goes on.

    Not for several threads at once. All ranks must register arrays of the same shapes and dtypes in the same order.
    """

    def __init__(
        self,
        group: Group,
        arrays: Iterable[object],
        *,
        op: str = "mean",
        bucket_bytes: int = OVERLAPPED_BUCKET_BYTES,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
    ) -> None:
        """Args:
            group: whose ranks have the gradients.
            arrays: the gradients' memory, the same in all steps, in the order of the forward pass.
            op: see Group.all_reduce.
            bucket_bytes: a bucket is full at this size.
            timeout_s: how long the ranks may take to arrive at each bucket, in seconds.

        Raises:
            InvalidValue: an argument cannot be.
        """
        self._group = group
        self._plan = BucketPlan(arrays, bucket_bytes)
        self._op = op
        self._timeout_s = timeout_s
        self._works: list[Work] = []

    def __len__(self) -> int:
        return len(self._plan.buckets)

    def ready(self, index: int) -> None:
        """A gradient is there; it must not be touched until `wait` has returned. Starts the buckets that it completes.

        Args:
            index: of the array.

        Raises:
            InvalidValue: no such gradient, or it was there already.
            CollectiveError: see Group.all_reduce.
        """
        for bucket in self._plan.ready(index):
            work = self._group.all_reduce(
                self._plan.buckets[bucket], self._op,
                timeout_s=self._timeout_s, async_op=True, priority=bucket,
            )  # fmt: skip
            self._works.append(work)

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until all buckets are reduced, and begins the next step.

        Args:
            timeout_s: how long to wait for each bucket; None waits for its own deadline.

        Raises:
            InvalidValue: some gradients were not `ready`; the step goes on.
            CollectiveError: a bucket has failed, on all ranks alike. Each bucket is reduced or as it was, so the
                gradients of this step are to be computed again. All have ended, and the next step has begun.
        """
        if self._plan.lacking:
            raise InvalidValue("gradients", self._plan.lacking, "have not been ready() in this step")
        works, self._works = self._works, []
        errors = [work.exception(timeout_s) for work in works]
        self._plan.begin()
        failures: list[BrokerError] = [error for error in errors if error is not None]
        if failures:
            raise failures[0]

    def cancel(self) -> None:
        """Gives up what is under way; `wait` is not needed any more, and the next step begins."""
        works, self._works = self._works, []
        for work in works:
            work.cancel()
        for work in works:
            work.exception()
        self._plan.begin()

    def __repr__(self) -> str:
        return f"<GradientBuckets buckets={len(self)} under_way={len(self._works)} lacking={len(self._plan.lacking)}>"
