"""Collectives of lists of arrays: they go as one operation, end to end, and succeed or fail as a whole.

What is reduced has one dtype, so a list with several becomes an operation for each; their results wait in memory of
their own until all have succeeded. Everything else moves bytes, whatever they are. Nothing is packed where the
schedule can take arrays from where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from broker.collectives.claims import Claim, CollectiveKind
from broker.collectives.member import Member
from broker.errors import InvalidValue
from broker.protocol.tensors import Array
from clients.collectives.collective import Prepared, claim_of, typed
from clients.collectives.flats import ArrayList, bytes_of, check_apart, flat_of, room_for, same_memory
from clients.collectives.staging import broadcast_use, staged
from clients.connection.checks import whole_number

_BYTES = np.empty(0, np.uint8)


@dataclass(frozen=True, slots=True)
class PreparedList:
    """Operations that are started together.

    Attributes:
        operations: to be started, in this order.
        complete: called once all have succeeded, with what each has returned; returns what the caller gets.
        staged: see Prepared.
    """

    operations: list[Prepared]
    complete: Callable[[Sequence[object]], object]
    staged: bool = False


def is_list(value: object) -> bool:
    """Whether a value stands for several arrays."""
    return isinstance(value, (list, tuple, dict))


def _claim(
    kind: CollectiveKind, elements: int, like: Array, timeout_s: float, parts: str, op: str | None, root: int | None
) -> Claim:
    claim = claim_of(kind, like, timeout_s, op, root, shape=(elements,))
    return msgspec.structs.replace(claim, parts=parts)


def _wanted(value: object, out: object, what: str) -> tuple[ArrayList, ArrayList]:
    """What is sent, and where the result belongs: the same when nothing else is said."""
    if out is None or out is value:
        arrays = ArrayList(value, what, writable=True)
        return arrays, arrays
    arrays, places = ArrayList(value, what, writable=False), ArrayList(out, f"out of {what}", writable=True)
    if not arrays.matches(places):
        raise InvalidValue(
            f"out of {what}", len(places.arrays), "must have arrays of the shapes and dtypes of the list"
        )
    for array, place in zip(arrays.arrays, places.arrays, strict=True):
        if not same_memory(array, place):
            check_apart(place, array, f"out of {what}")
    return arrays, places


@staged()
def all_reduce(member: Member, value: object, op: str, timeout_s: float, out: object = None) -> PreparedList:
    """Reduces each array of the list."""
    arrays, places = _wanted(value, out, "arrays for all_reduce")
    returned = value if out is None else out
    apart = len(arrays.dtypes) > 1
    operations = []
    for dtype in arrays.dtypes:
        chosen = [
            (array, place)
            for array, place in zip(arrays.arrays, places.arrays, strict=True)
            if array.dtype.newbyteorder("=") == dtype
        ]
        elements = sum(array.size for array, _ in chosen)
        claim = _claim(CollectiveKind.ALL_REDUCE, elements, chosen[0][0], timeout_s, arrays.parts, op, None)
        operations.append(_reducing(claim, chosen, apart=apart))

    def complete(results: Sequence[object]) -> object:
        for result in results:
            if callable(result):
                result()
        return returned

    return PreparedList(operations, complete)


def _reducing(claim: Claim, chosen: list[tuple[Array, Array]], *, apart: bool) -> Prepared:
    """One operation; when `apart`, its results stay in memory of its own until what it returns is called."""
    flats = [flat_of(array) for array, _ in chosen]
    data = [bytes_of(flat) for flat in flats]
    in_place = all(place is array for array, place in chosen)
    if apart:
        rooms = [np.empty_like(flat) for flat in flats]
    elif in_place:
        rooms = flats
    else:
        rooms = [
            flat if same_memory(place, array) else room_for(place)
            for flat, (array, place) in zip(flats, chosen, strict=True)
        ]

    def write_back() -> None:
        for room, (_, place) in zip(rooms, chosen, strict=True):
            if room is not place:
                place[...] = room

    def complete(_: memoryview) -> object:
        if apart:
            return write_back
        write_back()
        return None

    target = data if rooms is flats else [bytes_of(room) for room in rooms]
    lying = any(room is place for room, (_, place) in zip(rooms, chosen, strict=True))
    return Prepared(claim, data, target, complete, scratch=not lying)


@staged(broadcast_use)
def broadcast(member: Member, value: object, root: int, timeout_s: float, out: object = None) -> PreparedList:
    """Copies each array of the root's list."""
    root, what = whole_number("root", root), "arrays for broadcast"
    sends = member.rank == root
    returned = value if out is None else out
    if sends:
        arrays = ArrayList(value, what, writable=False)
        places = arrays if out is None or out is value else ArrayList(out, f"out of {what}", writable=True)
    else:
        places = ArrayList(returned, what, writable=True)
        arrays = places if out is None or value is None else ArrayList(value, what, writable=False)
    if not arrays.matches(places):
        raise InvalidValue(
            f"out of {what}", len(places.arrays), "must have arrays of the shapes and dtypes of the list"
        )
    total = sum(array.nbytes for array in arrays.arrays)
    claim = _claim(CollectiveKind.BROADCAST, total, _BYTES, timeout_s, arrays.parts, None, root)
    rooms = [flat_of(array) for array in arrays.arrays] if sends else [room_for(place) for place in places.arrays]

    def complete(_: memoryview) -> object:
        for room, place in zip(rooms, places.arrays, strict=True):
            if room is not place and not (sends and places is arrays):
                place[...] = room
        return returned

    data = [bytes_of(room) for room in rooms]
    lying = any(room is place for room, place in zip(rooms, places.arrays, strict=True))
    operation = Prepared(claim, data if sends else None, None if sends else data, complete, scratch=not lying)
    return PreparedList([operation], lambda results: results[0])


@staged()
def all_gather(member: Member, value: object, timeout_s: float) -> PreparedList:
    """For each rank the list of its arrays."""
    arrays = ArrayList(value, "arrays for all_gather", writable=False)
    flats, count = [flat_of(array) for array in arrays.arrays], len(member.ranks)
    total = sum(flat.nbytes for flat in flats)
    claim = _claim(CollectiveKind.ALL_GATHER, total, _BYTES, timeout_s, arrays.parts, None, None)

    def complete(result: memoryview) -> object:
        return [_lists(result[rank * total : (rank + 1) * total], flats, value) for rank in range(count)]

    operation = Prepared(claim, [bytes_of(flat) for flat in flats], None, complete)
    return PreparedList([operation], lambda results: results[0])


def _lists(memory: memoryview, flats: list[Array], value: object) -> object:
    """One rank's arrays in the caller's form."""
    found, start = [], 0
    for flat in flats:
        # An element starts wherever the one before it has ended; numpy can read it there, but not everybody else.
        part = memory[start : start + flat.nbytes]
        array = typed(part, flat.dtype, flat.shape)
        found.append(array if array.flags.aligned else array.copy())
        start += flat.nbytes
    return dict(zip(value, found, strict=True)) if isinstance(value, dict) else found
