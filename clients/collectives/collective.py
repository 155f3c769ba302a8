"""From the arrays of the application to the flat bytes of a collective operation, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from broker.collectives.claims import Claim, CollectiveKind, ReduceOp
from broker.collectives.member import Member
from broker.errors import InvalidValue
from broker.protocol.tensors import Array, describe
from clients.collectives.flats import (
    array_of,
    bytes_of,
    check_apart,
    check_out,
    flat_of,
    room_for,
    same_kind,
    same_memory,
    writable_array_of,
)
from clients.collectives.staging import broadcast_use, staged
from clients.connection.checks import time_limit, whole_number

GRACE_S: Final = 5.0
"""The broker names the missing ranks at the deadline; a client that has not heard even that by then raises itself."""

FlatMemory = memoryview | Sequence[memoryview]
"""Flat bytes: in one place, or in several that count as one."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """An operation that can be started.

    Attributes:
        claim: what to do.
        contribution: this rank's bytes, or None when it has none to give.
        target: where the result belongs, when that is the caller's array, or memory that is as long.
        complete: takes the bytes of the result and returns what the caller gets.
        scratch: whether the target is memory of the operation's own, which nobody looks at after a failure.
        abandon: to be called when the operation has failed or could not begin; more than once does not matter.
        staged: whether its arrays stand for arrays of devices.
    """

    claim: Claim
    contribution: FlatMemory | None
    target: FlatMemory | None
    complete: Callable[[memoryview], object]
    scratch: bool = False
    abandon: Callable[[], None] = lambda: None
    staged: bool = False

    def take(self, take: Callable[[], memoryview]) -> memoryview:
        """The result of the operation, which has ended.

        Raises:
            BrokerError: what taking it has raised: why the operation has failed.
        """
        try:
            return take()
        except BaseException:
            self.abandon()
            raise

    def finish(self, take: Callable[[], memoryview]) -> object:
        """What the caller gets of the operation; see take."""
        return self.complete(self.take(take))

    @property
    def in_pieces(self) -> bool:
        """Whether its arrays lie in several places."""
        return isinstance(self.contribution, (list, tuple)) or isinstance(self.target, (list, tuple))

    def flat(self) -> tuple[Claim, memoryview | None, memoryview | None]:
        """What a schedule needs that takes flat memory only."""
        assert not isinstance(self.contribution, (list, tuple))
        assert not isinstance(self.target, (list, tuple))
        return self.claim, self.contribution, self.target  # type: ignore[return-value]

    def packed(self) -> Prepared:
        """The same with flat memory, for a schedule that cannot gather and scatter: copied before and after."""
        if not self.in_pieces:
            return self
        contribution, target, room = self.contribution, self.target, None
        if isinstance(contribution, (list, tuple)):
            contribution = np.concatenate([np.frombuffer(each, np.uint8) for each in contribution]).data
        if isinstance(target, (list, tuple)):
            in_place = target is self.contribution
            room = contribution if in_place else np.empty(sum(each.nbytes for each in target), np.uint8).data

        def complete(result: memoryview) -> object:
            start = 0
            for piece in target if room is not None and target is not None else ():
                assert isinstance(piece, memoryview)
                if piece.nbytes:
                    piece[:] = result[start : start + piece.nbytes]
                start += piece.nbytes
            return self.complete(result)

        assert contribution is None or isinstance(contribution, memoryview)
        assert room is None or isinstance(room, memoryview)
        return replace(
            self,
            contribution=contribution,
            target=target if room is None else room,
            complete=complete,
            scratch=False,
        )


def claim_of(
    kind: CollectiveKind,
    array: Array,
    timeout_s: float,
    op: str | None = None,
    root: int | None = None,
    shape: tuple[int, ...] | None = None,
) -> Claim:
    """The claim of an operation on an array, or on one of its dtype and another shape."""
    try:
        reduce_op = None if op is None else ReduceOp(op)
    except ValueError as error:
        raise InvalidValue("op", op, f"is none of {', '.join(ReduceOp)}") from error
    shape = array.shape if shape is None else shape
    return Claim(kind, reduce_op, root, describe(array).dtype, shape, nanoseconds(timeout_s))


def nanoseconds(timeout_s: float) -> int:
    """A time limit as claims have it.

    Raises:
        InvalidValue: it is not above 0, or no number.
    """
    if time_limit("timeout_s", timeout_s) <= 0:
        raise InvalidValue("timeout_s", timeout_s, "must be above 0")
    return int(timeout_s * 1e9)


def typed(result: memoryview, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> Array:
    """The bytes of a result as an array."""
    whole = np.frombuffer(result, dtype) if len(result) else np.empty(0, dtype)
    return whole.reshape(shape)


def barrier(timeout_s: float) -> Prepared:
    """Only waits for all ranks."""
    return Prepared(Claim.barrier(nanoseconds(timeout_s)), None, None, lambda _: None)


class Destination:
    """Where a result belongs: an array of the caller's, through flat memory that may be the same."""

    __slots__ = ("array", "flat", "value")

    def __init__(self, value: object, what: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        """Raises:
        InvalidValue: the value is no array into which such a result fits.
        """
        self.value = value
        self.array = writable_array_of(value, what)
        check_out(self.array, what, shape, dtype)
        self.flat = room_for(self.array)

    @property
    def scratch(self) -> bool:
        """Whether the flat memory is not the caller's."""
        return self.flat is not self.array

    def complete(self, _: memoryview) -> object:
        """The result is in the flat memory: now it is where it belongs."""
        if self.scratch:
            self.array[...] = self.flat
        return self.value


def in_place(value: object, out: object, what: str) -> tuple[Array, Array, Destination]:
    """An operation whose result is like what is sent: the array, its flat memory, and where the result belongs.

    When that is the same array, the flat memory is the same too.
    """
    if out is None or out is value:
        array = writable_array_of(value, what)
        into = Destination(value, what, array.shape, array.dtype)
        into.flat = flat_of(array)
        return array, into.flat, into
    array = array_of(value, what)
    into = Destination(out, f"out of {what}", array.shape, array.dtype)
    if same_memory(into.array, array) and same_kind(array, into.array.dtype):
        into.flat = flat_of(into.array)
        return array, into.flat, into
    check_apart(into.array, array, f"out of {what}")
    return array, flat_of(array), into


@staged()
def all_reduce(member: Member, value: object, op: str, timeout_s: float, out: object = None) -> Prepared:
    """Reduces the arrays of all ranks; every rank's array, or `out`, becomes the result."""
    array, flat, into = in_place(value, out, "array for all_reduce")
    data = bytes_of(flat)
    target = data if into.flat is flat else bytes_of(into.flat)
    claim = claim_of(CollectiveKind.ALL_REDUCE, array, timeout_s, op)
    return Prepared(claim, data, target, into.complete, into.scratch)


@staged()
def reduce(member: Member, value: object, root: int, op: str, timeout_s: float, out: object = None) -> Prepared:
    """Reduces the arrays of all ranks; only the root's array, or its `out`, becomes the result."""
    root = whole_number("root", root)
    what = "array for reduce"
    if member.rank != root:
        array = array_of(value, what)
        claim = claim_of(CollectiveKind.REDUCE, array, timeout_s, op, root)
        return Prepared(claim, bytes_of(flat_of(array)), None, lambda _: None)
    array, flat, into = in_place(value, out, what)
    data = bytes_of(flat)
    target = data if into.flat is flat else bytes_of(into.flat)
    claim = claim_of(CollectiveKind.REDUCE, array, timeout_s, op, root)
    return Prepared(claim, data, target, into.complete, into.scratch)


@staged(broadcast_use)
def broadcast(member: Member, value: object, root: int, timeout_s: float, out: object = None) -> Prepared:
    """Copies the root's array into every rank's array, or `out`."""
    root = whole_number("root", root)
    what = "array for broadcast"
    if root == member.rank:
        array = array_of(value, what)
        claim = claim_of(CollectiveKind.BROADCAST, array, timeout_s, root=root)
        data = bytes_of(flat_of(array))
        if out is None or out is value:
            return Prepared(claim, data, None, lambda _: value)
        into = Destination(out, f"out of {what}", array.shape, array.dtype)

        def complete(_: memoryview) -> object:
            into.array[...] = array
            return out

        return Prepared(claim, data, None, complete)
    chosen = value if out is None else out
    array = writable_array_of(chosen, what)
    if out is not None and value is not None:
        check_out(array, f"out of {what}", array_of(value, what).shape, array_of(value, what).dtype)
    into = Destination(chosen, what, array.shape, array.dtype)
    claim = claim_of(CollectiveKind.BROADCAST, array, timeout_s, root=root)
    return Prepared(claim, None, bytes_of(into.flat), into.complete, into.scratch)


def _gathered(claim: Claim, flat: Array, count: int, out: object, what: str) -> Prepared:
    """The result is the arrays of all ranks, in new memory, in an array with one axis more, or in a list of arrays."""
    shape = (count, *flat.shape)
    data = bytes_of(flat)
    if out is None:
        return Prepared(claim, data, None, lambda result: list(typed(result, flat.dtype, shape)))
    if not isinstance(out, (list, tuple)):
        into = Destination(out, f"out of {what}", shape, flat.dtype)
        check_apart(into.array, flat, f"out of {what}")
        return Prepared(claim, data, bytes_of(into.flat), into.complete, into.scratch)
    return Prepared(claim, data, *_into_list(out, flat, count, what))


def _into_list(
    out: Sequence[object], flat: Array, count: int, what: str
) -> tuple[list[memoryview], Callable[[memoryview], object], bool]:
    """Target, completion and whether it is scratch, of a result of several arrays like one."""
    if len(out) != count:
        raise InvalidValue(f"out of {what} of arrays", len(out), f"must have one array for each of {count} ranks")
    parts = [Destination(each, f"out of {what}", flat.shape, flat.dtype) for each in out]
    for into in parts:
        check_apart(into.array, flat, f"out of {what}")

    def complete(result: memoryview) -> object:
        for into in parts:
            into.complete(result)
        return out

    return [bytes_of(into.flat) for into in parts], complete, all(into.scratch for into in parts)


@staged()
def all_gather(member: Member, value: object, timeout_s: float, out: object = None) -> Prepared:
    """The arrays of all present ranks, in the order of their ranks."""
    if out is not None:
        member.raise_change()
    flat = flat_of(array_of(value, "array for all_gather"))
    claim = claim_of(CollectiveKind.ALL_GATHER, flat, timeout_s)
    return _gathered(claim, flat, len(member.ranks), out, "all_gather")


@staged()
def gather(member: Member, value: object, root: int, timeout_s: float, out: object = None) -> Prepared:
    """The arrays of all present ranks, for the root."""
    root = whole_number("root", root)
    flat = flat_of(array_of(value, "array for gather"))
    claim = claim_of(CollectiveKind.GATHER, flat, timeout_s, root=root)
    if member.rank != root:
        return Prepared(claim, bytes_of(flat), None, lambda _: None)
    if out is not None:
        member.raise_change()
    return _gathered(claim, flat, len(member.ranks), out, "gather")


@staged()
def reduce_scatter(member: Member, value: object, op: str, timeout_s: float, out: object = None) -> Prepared:
    """This rank's share, along the first axis, of the reduced array."""
    flat = flat_of(array_of(value, "array for reduce_scatter"))
    shape = _share(flat, member, "reduce_scatter")
    claim = claim_of(CollectiveKind.REDUCE_SCATTER, flat, timeout_s, op)
    return _into_one(claim, bytes_of(flat), flat, shape, out, "reduce_scatter")


def _share(flat: Array, member: Member, what: str) -> tuple[int, ...]:
    """The shape of one rank's share of an array."""
    # What the caller has is for the members of which it knows.
    member.raise_change()
    count = len(member.ranks)
    if not flat.ndim or flat.shape[0] % count:
        raise InvalidValue(
            f"array for {what} of shape", flat.shape, f"the first axis is not divisible by the {count} ranks present"
        )
    return flat.shape[0] // count, *flat.shape[1:]


def _into_one(
    claim: Claim, data: FlatMemory | None, like: Array, shape: tuple[int, ...], out: object, what: str
) -> Prepared:
    """The result is one array, in new memory or in `out`; `like` is what must not overlap it."""
    if out is None:
        return Prepared(claim, data, None, lambda result: typed(result, like.dtype, shape))
    into = Destination(out, f"out of {what}", shape, like.dtype)
    check_apart(into.array, like, f"out of {what}")
    return Prepared(claim, data, bytes_of(into.flat), into.complete, into.scratch)


def _equal_parts(values: Sequence[object], member: Member, what: str) -> list[Array]:
    """One array for each rank, all alike."""
    member.raise_change()
    count = len(member.ranks)
    if len(values) != count:
        raise InvalidValue(f"arrays for {what}", len(values), f"must be one for each of the {count} ranks present")
    flats = [flat_of(array_of(each, f"array for {what}")) for each in values]
    if any(each.shape != flats[0].shape or each.dtype != flats[0].dtype for each in flats):
        told = [f"{each.dtype}{list(each.shape)}" for each in flats]
        raise InvalidValue(f"arrays for {what}", told, "must all have the same shape and dtype")
    return flats


@staged()
def scatter(member: Member, values: object, root: int, timeout_s: float, out: object = None) -> Prepared:
    """One of the root's arrays for each rank."""
    root, count = whole_number("root", root), len(member.ranks)
    if member.rank != root:
        if out is None:
            raise InvalidValue(
                "out", out, "is needed on all ranks but the root: an array like the part that is to come"
            )
        array = writable_array_of(out, "out of scatter")
        into = Destination(out, "out of scatter", array.shape, array.dtype)
        claim = claim_of(CollectiveKind.SCATTER, array, timeout_s, root=root, shape=(count, *array.shape))
        return Prepared(claim, None, bytes_of(into.flat), into.complete, into.scratch)
    if isinstance(values, (list, tuple)):
        flats = _equal_parts(values, member, "scatter")
        data: FlatMemory = [bytes_of(each) for each in flats]
        like, shape = flats[member.position], flats[0].shape
    else:
        like = flat_of(array_of(values, "array for scatter"))
        shape, data = _share(like, member, "scatter"), bytes_of(like)
    claim = claim_of(CollectiveKind.SCATTER, like, timeout_s, root=root, shape=(count, *shape))
    return _into_one(claim, data, like, shape, out, "scatter")


@staged()
def all_to_all(member: Member, values: object, timeout_s: float, out: object = None) -> Prepared:
    """One part from each rank to each rank."""
    count = len(member.ranks)
    if not isinstance(values, (list, tuple)):
        flat = flat_of(array_of(values, "array for all_to_all"))
        shape = _share(flat, member, "all_to_all")
        claim = claim_of(CollectiveKind.ALL_TO_ALL, flat, timeout_s, shape=(count, *shape))
        return _into_one(claim, bytes_of(flat), flat, flat.shape, out, "all_to_all")
    flats = _equal_parts(values, member, "all_to_all")
    data = [bytes_of(each) for each in flats]
    shape = (count, *flats[0].shape)
    claim = claim_of(CollectiveKind.ALL_TO_ALL, flats[0], timeout_s, shape=shape)
    if out is None:
        return Prepared(claim, data, None, lambda result: list(typed(result, flats[0].dtype, shape)))
    if not isinstance(out, (list, tuple)):
        raise InvalidValue("out of all_to_all", type(out).__name__, "must be a list of arrays, as what is sent is")
    for each in flats[1:]:
        _into_list(out, each, count, "all_to_all")
    return Prepared(claim, data, *_into_list(out, flats[0], count, "all_to_all"))
