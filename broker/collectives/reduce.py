"""The arithmetic of the collectives: contributions of all ranks in, one chunk out.

Contributions are taken in rank order, so a result has the same bits on every run. float16 and bfloat16 are accumulated
in float32 and rounded once, at the end: rounding after every addition would lose small gradients in large sums.
numpy has no bfloat16; its bits are the upper half of a float32, which is how it is widened and narrowed here.

Complex products are made of real ones: numpy multiplies complex numbers with or without fused operations depending on
the number of elements, their alignment and whether `out` is an input, so the last bit would depend on where a buffer
lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.buffers import Buffer
from broker.collectives.claims import ReduceOp

_UFUNCS: Final[dict[ReduceOp, np.ufunc]] = {
    ReduceOp.SUM: np.add,
    ReduceOp.MEAN: np.add,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
    ReduceOp.PRODUCT: np.multiply,
}
# Sums of complex numbers are sums of their parts, and so are means: dividing by a complex number would round twice.
_PART_DTYPES: Final = {"complex64": "float32", "complex128": "float64"}


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
    """
    if not len(out):
        return
    with np.errstate(all="ignore"):
        if dtype == "float16":
            _accumulate_float16(op, contributions, world_size, np.frombuffer(out, np.float16))
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
    op: ReduceOp, contributions: Sequence[Buffer], world_size: int, out: NDArray[np.float16]
) -> None:
    total = np.frombuffer(contributions[0], np.float16).astype(np.float32)
    for part in contributions[1:]:
        _UFUNCS[op](total, np.frombuffer(part, np.float16), out=total)
    if op is ReduceOp.MEAN:
        _divide(total, world_size)
    out[:] = total


def _accumulate_bfloat16(
    op: ReduceOp, contributions: Sequence[Buffer], world_size: int, out: NDArray[np.uint16]
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


def _widen(bfloat16: Buffer, float32_bits: NDArray[np.uint32]) -> None:
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
