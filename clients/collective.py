"""From the arrays of the application to the flat bytes of a collective operation, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.collectives.member import Member
from broker.errors import InvalidValue
from broker.protocol.tensors import Array, as_array, describe, flat_bytes
from clients.checks import time_limit, whole_number

GRACE_S: Final = 5.0
"""The broker names the missing ranks at the deadline; a client that has not heard even that by then raises itself."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation that can be started.

    Attributes:
        claim: what to do.
        contribution: this rank's bytes, or None when it has none to give.
        target: where the result belongs, when that is the caller's array.
        complete: takes the bytes of the result and returns what the caller gets.
        abandon: to be called when the operation has failed.
    """

    claim: Claim
    contribution: memoryview | None
    target: memoryview | None
    complete: Callable[[memoryview], object]
    abandon: Callable[[], None] = lambda: None

    def finish(self, take: Callable[[], memoryview]) -> object:
        """What the caller gets of the operation, whose result is taken now.

        Raises:
            BrokerError: what taking it has raised: why the operation has failed.
        """
        try:
            result = take()
        except BaseException:
            self.abandon()
            raise
        return self.complete(result)


def _claim(
    kind: CollectiveKind, array: Array, timeout_s: float, op: str | None = None, root: int | None = None
) -> Claim:
    try:
        reduce_op = None if op is None else ReduceOp(op)
    except ValueError as error:
        raise InvalidValue("op", op, f"is none of {', '.join(ReduceOp)}") from error
    return Claim(kind, reduce_op, root, describe(array).dtype, array.shape, nanoseconds(timeout_s))


def nanoseconds(timeout_s: float) -> int:
    """A time limit as claims have it.

    Raises:
        InvalidValue: it is not above 0, or no number.
    """
    if time_limit("timeout_s", timeout_s) <= 0:
        raise InvalidValue("timeout_s", timeout_s, "must be above 0")
    return int(timeout_s * 1e9)


def _array_of(value: object, what: str) -> Array:
    array = as_array(value)
    if array is None:
        raise InvalidValue(what, value, "is not an array: pass a numpy array or a torch tensor")
    describe(array)
    return array


def in_place(value: object, what: str) -> tuple[Array, Array]:
    """The array to change, and one of the same elements that lies in C order and native byte order."""
    array = _array_of(value, what)
    if not array.flags.writeable:
        raise InvalidValue(what, f"{array.dtype}{list(array.shape)}", "is read-only, so no result fits in; pass a copy")
    if not isinstance(value, np.ndarray) and not np.may_share_memory(array, _array_of(value, what)):
        raise InvalidValue(what, type(value).__name__, "is not in host memory as it lies; pass a contiguous host copy")
    return array, _flat(array)


def _flat(array: Array) -> Array:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def write_back(value: object, array: Array, flat: Array) -> Callable[[memoryview], object]:
    """What copies a result that is in `flat` to the array, and returns what the caller has passed."""

    def complete(_: memoryview) -> object:
        if flat is not array:
            array[...] = flat
        return value

    return complete


def all_reduce(member: Member, value: object, op: str, timeout_s: float) -> Prepared:
    """Reduces the arrays of all ranks; every rank's array becomes the result."""
    array, flat = in_place(value, "array for all_reduce")
    data = flat_bytes(flat)
    return Prepared(_claim(CollectiveKind.ALL_REDUCE, array, timeout_s, op), data, data, write_back(value, array, flat))


def broadcast(member: Member, value: object, root: int, timeout_s: float) -> Prepared:
    """Copies the root's array into every rank's array."""
    root = whole_number("root", root)
    if root == member.rank:
        array = _array_of(value, "array for broadcast")
        claim = _claim(CollectiveKind.BROADCAST, array, timeout_s, root=root)
        return Prepared(claim, flat_bytes(_flat(array)), None, lambda _: value)
    array, flat = in_place(value, "array for broadcast")
    claim = _claim(CollectiveKind.BROADCAST, array, timeout_s, root=root)
    return Prepared(claim, None, flat_bytes(flat), write_back(value, array, flat))


def all_gather(member: Member, value: object, timeout_s: float) -> Prepared:
    """The arrays of all present ranks, in the order of their ranks."""
    array = _array_of(value, "array for all_gather")
    flat = _flat(array)
    count = len(member.ranks)

    def complete(result: memoryview) -> list[Array]:
        whole = np.frombuffer(result, flat.dtype) if len(result) else np.empty(0, flat.dtype)
        return list(whole.reshape(count, *flat.shape))

    return Prepared(_claim(CollectiveKind.ALL_GATHER, array, timeout_s), flat_bytes(flat), None, complete)


def reduce_scatter(member: Member, value: object, op: str, timeout_s: float) -> Prepared:
    """This rank's share, along the first axis, of the reduced array."""
    array = _array_of(value, "array for reduce_scatter")
    flat = _flat(array)
    count = len(member.ranks)
    if not flat.ndim or flat.shape[0] % count:
        # Perhaps it is divisible by the members of which the caller knows.
        member.raise_change()
        raise InvalidValue(
            "array for reduce_scatter of shape",
            flat.shape,
            f"the first axis is not divisible by the {count} ranks present",
        )

    def complete(result: memoryview) -> Array:
        whole = np.frombuffer(result, flat.dtype) if len(result) else np.empty(0, flat.dtype)
        return whole.reshape(flat.shape[0] // count, *flat.shape[1:])

    return Prepared(_claim(CollectiveKind.REDUCE_SCATTER, array, timeout_s, op), flat_bytes(flat), None, complete)


def barrier(timeout_s: float) -> Prepared:
    """Waits for all ranks."""
    return Prepared(Claim.barrier(nanoseconds(timeout_s)), None, None, lambda _: None)
