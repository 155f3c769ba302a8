"""A collective group, as one rank of the synchronous client uses it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Self, TypeVar, overload

from broker.collectives import shm
from broker.errors import InvalidValue
from broker.limits import COLLECTIVE_TIMEOUT_S
from broker.protocol.tensors import Array
from clients.collectives import collective, collective_lists, device_operations, shared_operation
from clients.collectives.meetings import Meetings
from clients.collectives.partial import AUTO, Partial, Terms
from clients.collectives.shared_operation import SharedOperation
from clients.work import Work

T = TypeVar("T")


class Group(Meetings):
    """One rank's membership of a group.

    Every call must be made by all ranks in the same order. A call either succeeds on all ranks or fails on all ranks,
    and a failed one has changed no array. When a rank is lost or somebody joins, each rank gets GenerationChangedError
    once, and calls after that run with the present ranks. Threads may call; the order of their calls must then be the
    same everywhere.

    Attributes:
        name: the group's name.
        world_size: how many ranks the group was made for; `ranks` are those present.
    """

    @overload
    def all_reduce(
        self,
        array: T,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: Literal[False] = False,
        out: object = None,
        priority: int = 0,
        quorum: None = None,
        compression: str | None = None,
        feedback: str | None = None,
    ) -> T: ...

    @overload
    def all_reduce(
        self,
        array: T,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: Literal[False] = False,
        quorum: float,
        deadline: float | str = AUTO,
        late: str = "carry",
        name: str = "",
        contribute: bool = True,
    ) -> Partial[T]: ...

    @overload
    def all_reduce(
        self,
        array: object,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: Literal[True],
        out: object = None,
        priority: int = 0,
        quorum: float | None = None,
        deadline: float | str = AUTO,
        late: str = "carry",
        name: str = "",
        contribute: bool = True,
        compression: str | None = None,
        feedback: str | None = None,
    ) -> Work: ...

    @overload
    def all_reduce(
        self,
        array: object,
        op: str = ...,
        *,
        timeout_s: float = ...,
        async_op: bool = ...,
        compression: str | None = ...,
        feedback: str | None = ...,
    ) -> object: ...

    def all_reduce(
        self,
        array: object,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
        quorum: float | None = None,
        deadline: float | str = AUTO,
        late: str = "carry",
        name: str = "",
        contribute: bool = True,
        compression: str | None = None,
        feedback: str | None = None,
    ) -> object:
        """Reduces the arrays of all present ranks element by element; every rank's array becomes the result.

        Args:
            array: numpy array, torch tensor or device array; the same dtype and shape on all ranks. Changed in place.
                Or a list, tuple or dict of such arrays, which all succeed or fail.
            op: sum, mean (over the present ranks), min, max or product.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.
            out: like `array`; becomes the result in its place, and `array` is not changed. Not overlapping it.
            priority: of asynchronous operations that have not begun, the highest goes first; the same on all ranks.
            quorum: does not wait for everybody: so many ranks are enough (an int), or such a share (a float up to 1.0).
            deadline: with a quorum, how long the others are waited for once one has come, in seconds; "auto" learns it.
            late: with a quorum: "carry" adds an array that comes too late to the next call of its name; or "drop".
            name: with a quorum, tells tensors of one dtype and shape apart; the same on all ranks.
            contribute: with a quorum: False takes the result and gives nothing.
            compression: none, float16, bfloat16, int8 or top-k:0.01 (of what share); None is the group's.
            feedback: of a compressed array, the tensor's name: what it loses is kept, and added to the next one.

        Returns:
            The array, or `out`, with the same bits on all ranks; a Work; with a quorum, a Partial that has the array.

        Raises:
            InvalidValue: an argument cannot be, and nothing was begun.
            CollectiveMismatchError: the ranks asked for different things; `claims` says who for what.
            RankTimeoutError: `missing_ranks` did not arrive in time.
            CollectiveAbortedError: the program of a rank gave it up.
            GenerationChangedError: the membership changed.
            RankBehindError: the others have finished so many calls with a quorum that their results are not kept.
            ConnectionClosed: the connection was lost, and with it the membership.
        """
        place = self._place
        if quorum is not None:
            self._compression.refuse(compression, feedback)
            return self._reduce_partly(array, op, timeout_s, Terms(quorum, deadline, late, name, contribute), async_op)
        if self._compression.applies or compression is not None:
            encoded = self._compression.all_reduce(place.member, array, op, timeout_s, out, compression, feedback)
            if encoded is not None:
                return self._call(encoded, timeout_s, async_op=async_op, priority=priority)
        way = None if async_op else place.plain
        task = None if way is None else way.plain_task(array, op, timeout_s, out)
        if task is not None and way is not None:
            if way.run(task) != shm.Outcome.COMMITTED:
                self._driver.run(shared_operation.finish(self._driver, place, SharedOperation.plain(way, task)))
            return array if out is None else out
        steps = None if async_op else device_operations.all_reduce(place, array, op, timeout_s, out)
        if steps is not None:
            return self._on_devices(steps, timeout_s, priority)
        if collective_lists.is_list(array):
            many = collective_lists.all_reduce(place.member, array, op, timeout_s, out)
            return self._call_list(many, timeout_s, async_op=async_op, priority=priority)
        prepared = collective.all_reduce(place.member, array, op, timeout_s, out)
        result = self._call(prepared, timeout_s, async_op=async_op, priority=priority)
        if place.plain is not None:
            place.plain.remember(array, op, prepared.claim, self.world_size)
        return result

    def all_reduce_many(
        self,
        arrays: Sequence[Array] | Mapping[str, Array],
        op: str = "mean",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
    ) -> None:
        """As `all_reduce` of a list or dict of arrays, such as gradients; the op is mean unless it is given."""
        self.all_reduce(arrays if isinstance(arrays, dict) else list(arrays), op, timeout_s=timeout_s)

    def reduce(
        self,
        array: object,
        root: int = 0,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """As all_reduce, but only the root's array becomes the result; the others' are not changed.

        Args:
            array: the same dtype and shape on all ranks.
            root: the rank that gets the result; it must be present.
            op: see all_reduce.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.
            out: on the root, what becomes the result in place of `array`; ignored elsewhere.
            priority: see all_reduce.

        Returns:
            The array, or `out`, on the root; None on the other ranks.
        """
        prepared = collective.reduce(self._place.member, array, root, op, timeout_s, out)
        return self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    def broadcast(
        self,
        array: T,
        root: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> T | Work:
        """Copies the array of one rank into every rank's array; see all_reduce.

        Args:
            array: the same dtype and shape on all ranks; changed in place but on the root. Or a list, tuple or dict.
            root: the rank whose array is copied; it must be present.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.
            out: becomes the root's array in place of `array`, which may be None except on the root.
            priority: see all_reduce.
        """
        member = self._place.member
        steps = None if async_op else device_operations.broadcast(self._place, array, root, timeout_s, out)
        if steps is not None:
            return self._on_devices(steps, timeout_s, priority)  # type: ignore[return-value]
        if collective_lists.is_list(array) or collective_lists.is_list(out):
            many = collective_lists.broadcast(member, array, root, timeout_s, out)
            return self._call_list(many, timeout_s, async_op=async_op, priority=priority)  # type: ignore[return-value]
        prepared = collective.broadcast(member, array, root, timeout_s, out)
        return self._call(prepared, timeout_s, async_op=async_op, priority=priority)  # type: ignore[return-value]

    @overload
    def all_gather(
        self,
        array: object,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: Literal[False] = False,
        out: None = None,
        priority: int = 0,
    ) -> list[Array]: ...

    @overload
    def all_gather(
        self, array: object, *, timeout_s: float = ..., async_op: bool = ..., out: object = ..., priority: int = ...
    ) -> object: ...

    def all_gather(
        self,
        array: object,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """The arrays of all present ranks, in the order of their ranks; all have the same dtype and shape.

        Args:
            array: what this rank gives; not changed. Or a list, tuple or dict of arrays.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.
            out: an array with one axis more, of as many as there are ranks, or a list of arrays; filled in place of new
                ones. Not for lists of arrays.
            priority: see all_reduce.

        Returns:
            A list with an array, or a list or dict of arrays, for each rank; or `out`; or a Work.
        """
        with self._driver.lock:
            steps = None if async_op else device_operations.all_gather(self._place, array, timeout_s, out)
        if steps is not None:
            return self._on_devices(steps, timeout_s, priority)
        if collective_lists.is_list(array):
            if out is not None:
                raise InvalidValue("out", type(out).__name__, "is for one array, not for a list of them")
            many = collective_lists.all_gather(self._place.member, array, timeout_s)
            return self._call_list(many, timeout_s, async_op=async_op, priority=priority)
        with self._driver.lock:
            prepared = collective.all_gather(self._place.member, array, timeout_s, out)
        return self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    def gather(
        self,
        array: object,
        root: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """As all_gather for one rank: a list of arrays, or `out`, on the root; None on the other ranks."""
        with self._driver.lock:
            prepared = collective.gather(self._place.member, array, root, timeout_s, out)
        return self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    def scatter(
        self,
        arrays: object,
        root: int = 0,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """Gives each present rank one of the root's arrays, by position.

        Args:
            arrays: on the root a list with one array for each rank, all alike, or one array that is shared out along
                its first axis; not changed. None on the other ranks.
            root: the rank that has the arrays; it must be present.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.
            out: an array like this rank's part, which is written to it. Needed but on the root: it says what is
                expected.
            priority: see all_reduce.

        Returns:
            This rank's part: `out`, or on the root a new array without one; or a Work.
        """
        with self._driver.lock:
            prepared = collective.scatter(self._place.member, arrays, root, timeout_s, out)
        return self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    @overload
    def reduce_scatter(
        self,
        array: object,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: Literal[False] = False,
        out: None = None,
        priority: int = 0,
    ) -> Array: ...

    @overload
    def reduce_scatter(
        self,
        array: object,
        op: str = ...,
        *,
        timeout_s: float = ...,
        async_op: bool = ...,
        out: object = ...,
        priority: int = ...,
    ) -> object: ...

    def reduce_scatter(
        self,
        array: object,
        op: str = "sum",
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """Reduces as all_reduce does and returns this rank's share: the `position`-th part along the first axis.

        Args:
            array: the same dtype and shape on all ranks; the first axis is divisible by the number of present ranks.
                Not changed.
            op: see all_reduce.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.
            out: an array like the share, filled in place of a new one.
            priority: see all_reduce.
        """
        # Locked, as it may be what tells the caller of a change.
        with self._driver.lock:
            steps = None if async_op else device_operations.reduce_scatter(self._place, array, op, timeout_s, out)
        if steps is not None:
            return self._on_devices(steps, timeout_s, priority)
        with self._driver.lock:
            prepared = collective.reduce_scatter(self._place.member, array, op, timeout_s, out)
        return self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    def all_to_all(
        self,
        arrays: object,
        *,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        async_op: bool = False,
        out: object = None,
        priority: int = 0,
    ) -> object:
        """Gives each rank a part of this one's, and takes this rank's part of each one's, by position.

        Args:
            arrays: one array, which is shared out along its first axis, or a list with one array for each present rank;
                all parts have the same dtype and shape. Not changed.
            timeout_s: how long the ranks may take to arrive, in seconds.
            async_op: returns a Work at once in place of waiting.
            out: like `arrays`; filled in place of new memory. Not overlapping it.
            priority: see all_reduce.

        Returns:
            What all ranks have for this one, in the form of `arrays`; or a Work.
        """
        with self._driver.lock:
            prepared = collective.all_to_all(self._place.member, arrays, timeout_s, out)
        return self._call(prepared, timeout_s, async_op=async_op, priority=priority)

    def barrier(self, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        """Waits until all present ranks have called it."""
        self._call(collective.barrier(timeout_s), timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.leave()
