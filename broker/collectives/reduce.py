"""The arithmetic of the collectives: contributions of all ranks in, one chunk out.

Contributions are taken in rank order, so a result has the same bits on every run. float16 and bfloat16 are accumulated
in float32 and rounded once, at the end: rounding after every addition would lose small gradients in large sums.
numpy has no bfloat16; its bits are the upper half of a float32, which is how it is widened and narrowed here.

Complex products are made of real ones: numpy multiplies complex numbers with or without fused operations depending on
the number of elements, their alignment and whether `out` is an input, so the last bit would depend on where a buffer
lies.

Compiled, the kernels of kernels.h do all of this, several times as fast and with the same bits; what is written here
with numpy runs where nothing was compiled, and is what they are tested against. Only which of several NaNs comes out is
left open, and whether it is a signalling one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.buffers import Buffer
from broker.collectives import blocks
from broker.collectives.claims import INT8_BLOCKS, ITEM_BYTES, ReduceOp

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

_UFUNCS: Final[dict[ReduceOp, np.ufunc]] = {
    ReduceOp.SUM: np.add,
    ReduceOp.MEAN: np.add,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
    ReduceOp.PRODUCT: np.multiply,
}
# Sums of complex numbers are sums of their parts, and so are means: dividing by a complex number would round twice.
_PART_DTYPES: Final = {"complex64": "float32", "complex128": "float64"}
# The numbers of kernels.h.
_OP_NUMBERS: Final = {op: number for number, op in enumerate(ReduceOp)}
_DTYPE_NUMBERS: Final = {dtype: number for number, dtype in enumerate(ITEM_BYTES)}
_UNLOCKED_BYTES_MIN: Final = 1 << 20
"""From so many bytes in, other threads run meanwhile: it takes tens of microseconds, and getting the interpreter's lock
back may take as many."""


def accumulate(
    op: ReduceOp, contributions: Sequence[Buffer], dtype: str, world_size: int, out: bytearray | memoryview
) -> None:
    """Reduce the contributions, in their order, into `out`.

    Integers wrap and floats overflow to infinity, as in numpy, without warnings; min and max pass NaN on.

    Args:
        op: how to reduce; `claims.op_problem` has allowed it for this dtype.
        contributions: at least one; all as long as `out`, of any alignment.
        dtype: of the elements, by its name on the wire.
        world_size: by what a mean divides.
        out: receives the result; it must not overlap a contribution.

    Raises:
        ValueError: there is no contribution, one is not as long as `out`, or `out` is no whole number of elements.
    """
    size = len(out)
    if not size:
        return
    # Nobody can resize or release what a view is held of.
    views, target = [memoryview(part) for part in contributions], memoryview(out)
    if {len(view) for view in views} != {size} or size % ITEM_BYTES[dtype]:
        lengths = sorted({len(view) for view in views})
        raise ValueError(f"cannot reduce contributions of {lengths} bytes to {size} bytes of {dtype}")
    if cython.compiled:
        _accumulate_with_kernel(op, views, dtype, world_size, target)
    else:
        _accumulate_with_numpy(op, views, dtype, world_size, target)


def _accumulate_with_kernel(
    op: ReduceOp, contributions: Sequence[memoryview], dtype: str, world_size: int, out: memoryview
) -> None:
    kernel = tb_reduce_kernel(_OP_NUMBERS[op], _DTYPE_NUMBERS[dtype])  # type: ignore[name-defined]  # noqa: F821
    if not kernel:
        raise ValueError(f"{dtype} has no {op}; ask op_problem first")
    target, size, count = out, len(out), len(contributions)
    addresses = np.empty(count, np.uintp)
    for index in range(count):
        source = contributions[index]
        addresses[index] = cython.cast(cython.size_t, cython.address(source[0]))
    sources = cython.cast(Sources, cython.address(addresses[0]))  # type: ignore[name-defined]  # noqa: F821
    elements, divisor = size // ITEM_BYTES[dtype], world_size if op is ReduceOp.MEAN else 1
    if size * count < _UNLOCKED_BYTES_MIN:
        kernel(cython.address(target[0]), sources, count, elements, divisor, 0, cython.NULL)
        return
    with cython.nogil:
        kernel(cython.address(target[0]), sources, count, elements, divisor, 0, cython.NULL)


def _accumulate_with_numpy(
    op: ReduceOp, contributions: Sequence[memoryview], dtype: str, world_size: int, out: memoryview
) -> None:
    with np.errstate(all="ignore"):
        if dtype == "float16":
            _accumulate_float16(op, contributions, world_size, np.frombuffer(out, np.float16))
        elif dtype == INT8_BLOCKS:
            encoded = [np.frombuffer(part, np.uint8) for part in contributions]
            blocks.add(encoded, world_size if op is ReduceOp.MEAN else 1, np.frombuffer(out, np.uint8))
        elif dtype == "bfloat16":
            _accumulate_bfloat16(op, contributions, world_size, np.frombuffer(out, np.uint16))
        else:
            total = np.frombuffer(out, dtype)
            arrays = [np.frombuffer(part, dtype) for part in contributions]
            if op is ReduceOp.PRODUCT and dtype in _PART_DTYPES:
                _multiply_complex(arrays, total)
            else:
                _fold(_UFUNCS[op], arrays, total)
            if op is ReduceOp.MEAN:
                _divide(total.view(_PART_DTYPES.get(dtype, dtype)), world_size)


def _fold(ufunc: np.ufunc, arrays: Sequence[NDArray[np.generic]], total: NDArray[np.generic]) -> None:
    if len(arrays) == 1:
        total[:] = arrays[0]
        return
    ufunc(arrays[0], arrays[1], out=total)
    for array in arrays[2:]:
        ufunc(total, array, out=total)


def _multiply_complex(arrays: Sequence[NDArray[np.complexfloating]], total: NDArray[np.complexfloating]) -> None:
    total[:] = arrays[0]
    for array in arrays[1:]:
        real = total.real * array.real - total.imag * array.imag
        total.imag = total.real * array.imag + total.imag * array.real
        total.real = real


def _divide(total: NDArray[np.generic], world_size: int) -> None:
    np.divide(total, total.dtype.type(world_size), out=total)


def _accumulate_float16(
    op: ReduceOp, contributions: Sequence[memoryview], world_size: int, out: NDArray[np.float16]
) -> None:
    total = np.frombuffer(contributions[0], np.float16).astype(np.float32)
    for part in contributions[1:]:
        _UFUNCS[op](total, np.frombuffer(part, np.float16), out=total)
    if op is ReduceOp.MEAN:
        _divide(total, world_size)
    out[:] = total


def _accumulate_bfloat16(
    op: ReduceOp, contributions: Sequence[memoryview], world_size: int, out: NDArray[np.uint16]
) -> None:
    total = np.empty(out.size, np.uint32)
    widened = np.empty(out.size, np.uint32)
    _widen(contributions[0], total)
    for part in contributions[1:]:
        _widen(part, widened)
        _UFUNCS[op](total.view(np.float32), widened.view(np.float32), out=total.view(np.float32))
    if op is ReduceOp.MEAN:
        _divide(total.view(np.float32), world_size)
    _narrow(total, widened, out)


def _widen(bfloat16: memoryview, float32_bits: NDArray[np.uint32]) -> None:
    bits = np.frombuffer(bfloat16, np.uint16)
    np.left_shift(bits, np.uint32(16), out=float32_bits, dtype=np.uint32)


def _narrow(float32_bits: NDArray[np.uint32], scratch: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    """Round to nearest, ties to even: add just under half of the last kept bit, and that bit itself, then cut.

    A NaN stays one: it was widened, or the processor made it, so its lower half is zero and nothing is carried.
    """
    np.right_shift(float32_bits, np.uint32(16), out=scratch)
    np.bitwise_and(scratch, np.uint32(1), out=scratch)
    np.add(scratch, np.uint32(0x7FFF), out=scratch)
    np.add(scratch, float32_bits, out=scratch)
    np.right_shift(scratch, np.uint32(16), out=scratch)
    np.copyto(out, scratch, casting="same_kind")
