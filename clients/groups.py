"""A collective group, as one rank of the synchronous client uses it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar, overload

from broker.collectives import shm
from broker.collectives.buckets import Buckets
from broker.limits import COLLECTIVE_TIMEOUT_S
from broker.protocol.tensors import Array
from clients import collective, joining, ways
from clients.collective import GRACE_S, Prepared
from clients.driver import Driver
from clients.membership import Place
from clients.ways import SharedOperation
from clients.work import SharedWork, Work

T = TypeVar("T")


class Group:
    """One rank's membership of a group.

    Every call must be made by all ranks in the same order. A call either succeeds on all ranks or fails on all ranks,
    and a failed one has changed no array. When a rank is lost or somebody joins, each rank gets GenerationChangedError
    once, and calls after that run with the present ranks. Threads may call; the order of their calls must then be the
    same everywhere.

    Attributes:
        name: the group's name.
        world_size: how many ranks the group was made for; `ranks` are those present.
    """

    def __init__(self, driver: Driver, place: Place) -> None:
        """Made by `Client.group`."""
        self._driver = driver
        self._place = place
        self.name = place.name
        self.world_size = place.member.world_size

    @property
    def rank(self) -> int:
        """This member's rank, the same for as long as it is a member."""
        return self._place.member.rank

    @property
    def generation(self) -> int:
        """The version of the membership, from 1 upwards."""
        return self._place.member.generation

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that are present, ascending."""
        return tuple(self._place.member.ranks)

    @property
    def position(self) -> int:
        """The index of this rank among the present ones: which shard of data or parameters is its own."""
        return self._place.member.position

    @property
    def schedule(self) -> str:
        """How operations go at the moment: `shm`, `star`, or `ring` or `halving`, with auto the quicker for each."""
        return self._place.used_schedule

    @overload
    def all_reduce(
        self, array: T, op: str = "sum", *, timeout_s: float = COLLECTIVE_TIMEOUT_S, async_op: Literal[False] = False
    ) -> T: ...

    @overload
    def all_reduce(
        self, array: object, op: str = "sum", *, timeout_s: float = COLLECTIVE_TIMEOUT_S, async_op: Literal[True]
    ) -> Work: ...

    def all_reduce(
        self, array: object, op: str = "sum", *, timeout_s: float = COLLECTIVE_TIMEOUT_S, async_op: bool = False
    ) -> object:
        """Reduces the arrays of all present ranks element by element; every rank's array becomes the result.

        The result is the same to the bit on all ranks and in every run: a sum is formed in the order of the ranks, or
        over links in an order that depends on their number and the array's length;
        float16 and bfloat16 are summed in float32 and rounded once.

        Args:
            array: numpy array, or torch tensor in host memory; the same dtype and shape on all ranks. Changed in place.
            op: sum, mean (over the present ranks), min, max or product.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.

        Returns:
            The array, or a Work.

        Raises:
            CollectiveMismatchError: the ranks asked for different things; `claims` says who for what.
            RankTimeoutError: `missing_ranks` did not arrive in time.
            GenerationChangedError: the membership changed.
            ConnectionClosed: the connection was lost, and with it the membership.
        """
        place = self._place
        way = None if async_op else place.plain
        task = None if way is None else way.plain_task(array, op, timeout_s)
        if task is not None and way is not None:
            if way.run(task) != shm.Outcome.COMMITTED:
                self._driver.run(ways.finish(self._driver, place, SharedOperation.plain(way, task)))
            return array
        prepared = collective.all_reduce(place.member, array, op, timeout_s)
        result = self._call(prepared, timeout_s, async_op=async_op)
        if place.plain is not None:
            place.plain.remember(array, op, prepared.claim, self.world_size)
        return result

    def all_reduce_many(
        self, arrays: Sequence[Array], op: str = "mean", *, timeout_s: float = COLLECTIVE_TIMEOUT_S
    ) -> None:
        """As all_reduce over a list of arrays, such as a model's gradients, in a few large operations (buckets).

        Args:
            arrays: writable numpy arrays; the same dtypes and shapes on all ranks. Changed in place.
            op: see all_reduce.
            timeout_s: for each bucket, in seconds.

        Raises:
            CollectiveError: as for all_reduce; no array is changed unless all buckets have succeeded.
        """
        buckets = Buckets(arrays)
        flats = [buckets.pack(bucket) for bucket in buckets]
        prepared = [collective.all_reduce(self._place.member, flat, op, timeout_s) for flat in flats]
        # Under one hold of the lock, so that no change of the members comes between two buckets: all start in the same
        # generation or none does, as on the other ranks.
        with self._driver.lock:
            self._decide()
            works = [self._start(bucket, timeout_s) for bucket in prepared]
            self._driver.flush()
        failures = [failure for work in works if (failure := work.exception()) is not None]
        if failures:
            raise failures[0]
        for bucket in buckets:
            buckets.unpack(bucket)

    def broadcast(
        self, array: T, root: int = 0, *, timeout_s: float = COLLECTIVE_TIMEOUT_S, async_op: bool = False
    ) -> T | Work:
        """Copies the array of one rank into every rank's array; see all_reduce.

        Args:
            array: the same dtype and shape on all ranks; changed in place but on the root.
            root: the rank whose array is copied; it must be present.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.
        """
        prepared = collective.broadcast(self._place.member, array, root, timeout_s)
        return self._call(prepared, timeout_s, async_op=async_op)  # type: ignore[return-value]

    def all_gather(self, array: object, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> list[Array]:
        """The arrays of all present ranks, in the order of their ranks; all have the same dtype and shape."""
        prepared = collective.all_gather(self._place.member, array, timeout_s)
        return self._call(prepared, timeout_s)  # type: ignore[return-value]

    def reduce_scatter(self, array: object, op: str = "sum", *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> Array:
        """Reduces as all_reduce does and returns this rank's share: the `position`-th part along the first axis.

        Args:
            array: the same dtype and shape on all ranks; the first axis is divisible by the number of present ranks.
            op: see all_reduce.
            timeout_s: how long the ranks may take to arrive, in seconds.
        """
        prepared = collective.reduce_scatter(self._place.member, array, op, timeout_s)
        return self._call(prepared, timeout_s)  # type: ignore[return-value]

    def barrier(self, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Waits until all present ranks have called it."""
        self._call(collective.barrier(timeout_s), timeout_s)

    def leave(self) -> None:
        """Leaves in order: the others get GenerationChangedError, pending operations of this rank fail."""
        self._driver.run(joining.leave(self._driver, self._place, 5.0))

    def _start(self, prepared: Prepared, timeout_s: float) -> Work:
        shared = ways.begin(self._place, prepared)
        if shared is not None:
            return SharedWork(self._driver, self._place, shared, prepared.complete, timeout_s + GRACE_S)
        operation, signal = self._place.start(prepared.claim, prepared.contribution, prepared.target)
        return Work(self._driver, operation, signal, prepared.complete, timeout_s + GRACE_S)

    def _decide(self) -> None:
        """Waits, under the lock, until it is known how operations go: moments, when a generation has just begun."""
        if not self._place.decided.ready:
            self._driver.block(self._place.decided, joining.DECISION_S, "the members to be linked")

    def _call(self, prepared: Prepared, timeout_s: float, *, async_op: bool = False) -> object:
        driver, place = self._driver, self._place
        with driver.lock:
            self._decide()
            if async_op:
                work = self._start(prepared, timeout_s)
                driver.flush()
                return work
            shared = ways.begin(place, prepared)
            if shared is None:
                operation, signal = place.start(prepared.claim, prepared.contribution, prepared.target)
                driver.block(signal, timeout_s + GRACE_S, f"{prepared.claim.describe()} in group {self.name!r}")
                return prepared.complete(operation.finish())
        # Without the lock: the client's other threads go on meanwhile.
        shared.way.run(shared.task)
        return prepared.complete(driver.run(ways.finish(driver, place, shared)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    def __repr__(self) -> str:
        return f"<Group {self.name!r} rank={self.rank} of {self.ranks} generation={self.generation}>"
