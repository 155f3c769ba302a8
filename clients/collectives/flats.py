"""Arrays of the application as flat memory: what lies as it must is used where it lies, everything else is copied.

An operation works on bytes in C order and native byte order. A slice, a transposed or a byte-swapped array is copied
into such memory before it, and what becomes of it is copied back after it, in the moment in which the operation has
succeeded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from broker.errors import InvalidValue
from broker.protocol.tensors import Array, as_array, describe


def array_of(value: object, what: str) -> Array:
    """The memory of anything that is an array.

    Raises:
        InvalidValue: it is none, or of a dtype that cannot travel.
    """
    array = as_array(value)
    if array is None:
        raise InvalidValue(what, value, "is not an array: pass a numpy array or a torch tensor")
    describe(array)
    return array


def writable_array_of(value: object, what: str) -> Array:
    """As `array_of`, of something that is to be changed.

    Raises:
        InvalidValue: it cannot be changed in place.
    """
    array = array_of(value, what)
    if not array.flags.writeable:
        raise InvalidValue(what, f"{array.dtype}{list(array.shape)}", "is read-only, so no result fits in; pass a copy")
    if not isinstance(value, np.ndarray) and not np.may_share_memory(array, array_of(value, what)):
        raise InvalidValue(what, type(value).__name__, "is not in host memory as it lies; pass a contiguous host copy")
    return array


def flat_of(array: Array) -> Array:
    """The same elements in C order and native byte order: the array itself, or a copy."""
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def room_for(array: Array) -> Array:
    """Flat memory for what is to become of an array: its own, or as much."""
    if array.flags.c_contiguous and array.dtype.isnative:
        return array
    return np.empty(array.shape, array.dtype.newbyteorder("="))


def bytes_of(flat: Array) -> memoryview:
    """The bytes of flat memory."""
    return flat.reshape(-1).view(np.uint8).data if flat.size else memoryview(b"")


def same_kind(array: Array, dtype: np.dtype[np.generic]) -> bool:
    """Whether an array has elements of a dtype, in whatever byte order."""
    return array.dtype.newbyteorder("=") == dtype.newbyteorder("=")


def check_out(out: Array, what: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
    """Refuses an `out` into which a result does not fit.

    Raises:
        InvalidValue: it has another shape or dtype.
    """
    if out.shape != shape or not same_kind(out, dtype):
        problem = f"must be {dtype.newbyteorder('=')}{list(shape)}, as the result is"
        raise InvalidValue(what, f"{out.dtype}{list(out.shape)}", problem)


def check_apart(out: Array, array: Array, what: str) -> None:
    """Refuses an `out` that overlaps what it is made of.

    Raises:
        InvalidValue: they may share memory.
    """
    if np.may_share_memory(out, array):
        raise InvalidValue(
            what, f"{out.dtype}{list(out.shape)}", "overlaps the array that is sent; pass memory of its own, or no out"
        )


def same_memory(first: Array, second: Array) -> bool:
    """Whether two arrays are the same elements in the same places."""
    return first is second or (
        first.__array_interface__["data"][0] == second.__array_interface__["data"][0]
        and first.strides == second.strides
        and first.shape == second.shape
    )


class ArrayList:
    """Several arrays that go as one, end to end.

    Attributes:
        arrays: as the caller has them.
        parts: for the claim: how many, and in short which shapes, dtypes and names.
    """

    def __init__(self, value: object, what: str, *, writable: bool) -> None:
        """Args:
            value: a list or tuple of arrays, or a dict of them.
            what: the argument, in words.
            writable: whether they are to be changed.

        Raises:
            InvalidValue: there is none, one is no array, or two of them overlap that are to be changed.
        """
        names = tuple(str(name) for name in value) if isinstance(value, Mapping) else ()
        values: Iterable[object] = value.values() if isinstance(value, Mapping) else value  # type: ignore[assignment]
        take = writable_array_of if writable else array_of
        self.arrays = [take(each, what) for each in values]
        if not self.arrays:
            raise InvalidValue(what, value, "is empty; pass at least one array")
        if writable:
            _check_disjoint(self.arrays, what)
        self.parts = parts_of(tuple((each.dtype.newbyteorder("="), each.shape) for each in self.arrays), names)

    @property
    def dtypes(self) -> list[np.dtype[np.generic]]:
        """Each dtype once, in native byte order, in the order of their coming."""
        return list(dict.fromkeys(each.dtype.newbyteorder("=") for each in self.arrays))

    def matches(self, other: ArrayList) -> bool:
        """Whether the arrays of both have the same shapes and dtypes."""
        return self.parts == other.parts


def _check_disjoint(arrays: Sequence[Array], what: str) -> None:
    """Only of those that are used where they lie; the others are copied."""
    lying = [(int(each.__array_interface__["data"][0]), each.nbytes) for each in arrays if each.flags.c_contiguous]
    end = 0
    for start, size in sorted(lying):
        if size and start < end:
            raise InvalidValue(what, len(arrays), "has two arrays that share memory; pass each memory once")
        end = max(end, start + size)


@lru_cache(maxsize=256)
def parts_of(shapes: tuple[tuple[np.dtype[np.generic] | str, tuple[int, ...]], ...], names: tuple[str, ...]) -> str:
    """In short, how many arrays there are, and of which dtypes, shapes and names."""
    words = [f"{dtype}{list(shape)}" for dtype, shape in shapes]
    digest = hashlib.blake2b("\n".join([*words, *names]).encode(), digest_size=6).hexdigest()
    return f"{len(shapes)} arrays {digest}"
