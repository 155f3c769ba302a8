"""Many small arrays as few flat ones, so that reducing a model's gradients costs a few calls in place of hundreds.

After S. Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020, section 3.2:
buckets are filled in the reverse order of the arrays, because the backward pass finishes the gradients of the last
layers first, and so the first bucket is complete, and can be under way, while the others are still being computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker import limits
from broker.errors import InvalidValue


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one array lies in its bucket: elements `start` to `stop` of the flat array."""

    array_index: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Bucket:
    """A flat array that stands for several arrays of its dtype; it is reused by every `pack`."""

    index: int
    flat: NDArray[np.generic]
    slots: tuple[Slot, ...]


class Buckets:
    """A plan that maps arrays to buckets, made once for a model and used in every step.

    Every rank must plan over arrays of the same shapes and dtypes in the same order; then the buckets agree too.
    Iterating gives the buckets in the order in which the backward pass completes them.
    """

    def __init__(self, arrays: Sequence[NDArray[np.generic]], bucket_bytes: int = limits.BUCKET_BYTES) -> None:
        """Plan the buckets and reserve their memory.

        Args:
            arrays: in the order of the forward pass; they are kept, and read and written in place later.
            bucket_bytes: a bucket is full at this size; an array that is longer gets a bucket of its own.

        Raises:
            InvalidValue: a bucket size below 1, or an array that cannot be written to.
        """
        if bucket_bytes < 1:
            raise InvalidValue("bucket_bytes", bucket_bytes, "must be at least 1")
        for index, array in enumerate(arrays):
            if not array.flags.writeable:
                raise InvalidValue("arrays", index, "this array is read-only, so no result can be unpacked into it")
        self._arrays = tuple(arrays)
        self._buckets = tuple(
            self._make_bucket(number, indices) for number, indices in enumerate(plan_buckets(arrays, bucket_bytes))
        )

    def __repr__(self) -> str:
        total_bytes = sum(bucket.flat.nbytes for bucket in self._buckets)
        return f"<Buckets arrays={len(self._arrays)} buckets={len(self._buckets)} bytes={total_bytes}>"

    def __len__(self) -> int:
        return len(self._buckets)

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    def pack(self, bucket: Bucket) -> NDArray[np.generic]:
        """Copy the arrays of a bucket into its flat array and return that."""
        for slot in bucket.slots:
            array = self._arrays[slot.array_index]
            bucket.flat[slot.start : slot.stop].reshape(array.shape)[...] = array
        return bucket.flat

    def unpack(self, bucket: Bucket) -> None:
        """Copy the flat array of a bucket back into its arrays."""
        for slot in bucket.slots:
            array = self._arrays[slot.array_index]
            array[...] = bucket.flat[slot.start : slot.stop].reshape(array.shape)

    def _make_bucket(self, number: int, indices: Sequence[int]) -> Bucket:
        slots = []
        start = 0
        for index in indices:
            stop = start + self._arrays[index].size
            slots.append(Slot(index, start, stop))
            start = stop
        return Bucket(number, np.empty(start, self._arrays[indices[0]].dtype), tuple(slots))


def plan_buckets(arrays: Sequence[NDArray[np.generic]], bucket_bytes: int) -> list[list[int]]:
    """Indices of the arrays in each bucket, buckets in the order in which the backward pass completes them."""
    by_dtype: dict[np.dtype[np.generic], list[int]] = {}
    for index in reversed(range(len(arrays))):
        by_dtype.setdefault(arrays[index].dtype, []).append(index)
    planned = [filled for indices in by_dtype.values() for filled in _fill(arrays, indices, bucket_bytes)]
    # Each bucket is complete with its last entry, the array that the backward pass reaches last.
    return sorted(planned, key=lambda indices: -indices[-1])


def _fill(arrays: Sequence[NDArray[np.generic]], indices: Sequence[int], bucket_bytes: int) -> list[list[int]]:
    buckets: list[list[int]] = [[]]
    room_bytes = bucket_bytes
    for index in indices:
        if buckets[-1] and arrays[index].nbytes > room_bytes:
            buckets.append([])
            room_bytes = bucket_bytes
        buckets[-1].append(index)
        room_bytes -= arrays[index].nbytes
    return buckets
