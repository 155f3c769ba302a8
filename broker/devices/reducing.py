"""Reducing arrays on a device, in the memory of which all ranks have mapped those of the others.

The arithmetic is that of broker/collectives/kernels.h, element by element and in the order of the ranks, so a result
has the bits that the host's has: float16 and bfloat16 are widened to float32, folded there, divided for a mean and
rounded once; integers wrap; of min and max the first NaN wins, and of two equal zeros the later. The compiler fuses no
product with a sum. Complex sums are sums of their parts. Which of several NaNs comes out is left open here too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple, Protocol, cast

import numpy as np

from broker import devices
from broker.errors import InvalidValue

THREADS: Final = 256
"""Of a block of threads."""
BLOCKS_MAX: Final = 8192
"""Threads of so many blocks take what there is by turns."""
OPTIONS: Final = ("--fmad=false",)


class _Kernel(Protocol):
    """What is used of cupy.RawKernel."""

    def compile(self) -> None: ...

    def __call__(self, grid: tuple[int], block: tuple[int], arguments: tuple[object, ...]) -> None: ...


class _Lane(NamedTuple):
    """What a kernel sees of a dtype.

    Attributes:
        element: its type in memory.
        wide: the type in which it is folded.
        opened: an element `x` as that type.
        closed: what was folded, `x`, as an element.
        per_element: how many of these an element of the dtype is.
    """

    element: str
    wide: str
    opened: str = "x"
    closed: str = "x"
    per_element: int = 1


_HALVES: Final = {
    "float16": _Lane("unsigned short", "float", "from_float16(x)", "to_float16(x)"),
    "bfloat16": _Lane("unsigned short", "float", "__uint_as_float((unsigned int)x << 16)", "to_bfloat16(x)"),
}
_FLOATS: Final = {"float32": _Lane("float", "float"), "float64": _Lane("double", "double"), **_HALVES}
_PAIRS: Final = {
    "complex64": _Lane("float", "float", per_element=2),
    "complex128": _Lane("double", "double", per_element=2),
}
_NAMES: Final = {8: "char", 16: "short", 32: "int", 64: "long long"}
_ORDERED: Final = {
    "bool": _Lane("unsigned char", "unsigned char"),
    **{f"int{bits}": _Lane(f"signed {name}", f"signed {name}") for bits, name in _NAMES.items()},
    **{f"uint{bits}": _Lane(f"unsigned {name}", f"unsigned {name}") for bits, name in _NAMES.items()},
    **_FLOATS,
}
# Numbers with a sign wrap to the same bits, but only without one is that defined.
_WRAPPING: Final = {
    f"{kind}{bits}": _Lane(f"unsigned {name}", "unsigned long long" if bits == 64 else "unsigned int")
    for bits, name in _NAMES.items()
    for kind in ("int", "uint")
}
_COMPLEX: Final = {
    "complex64": _Lane("pair_of_float", "pair_of_float"),
    "complex128": _Lane("pair_of_double", "pair_of_double"),
}
_LANES: Final[dict[str, dict[str, _Lane]]] = {
    "sum": {**_WRAPPING, **_FLOATS, **_PAIRS},
    "mean": {**_FLOATS, **_PAIRS},
    "min": _ORDERED,
    "max": _ORDERED,
    "product": {**_WRAPPING, **_FLOATS, **_COMPLEX},
}
_COMBINED: Final = {
    "sum": "total + next",
    "mean": "total + next",
    "min": "total < next || total != total ? total : next",
    "max": "total > next || total != total ? total : next",
    "product": "total * next",
}
CONVERSIONS: Final = """
static __device__ float from_float16(unsigned short x)
{
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
    return wide;
}

static __device__ unsigned short to_float16(float x)
{
    unsigned short rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded) : "f"(x));
    return rounded;
}
"""
"""The part that is written in a device's own instructions."""
COMMON: Final = """
typedef unsigned long long size;
typedef struct { float real, imaginary; } pair_of_float;
typedef struct { double real, imaginary; } pair_of_double;

static __device__ unsigned short to_bfloat16(float x)
{
    unsigned int bits = __float_as_uint(x);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (unsigned short)(bits >> 16 | 0x40u);
    return (unsigned short)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
"""
_KERNEL: Final = """
extern "C" __global__ void NAME(const size *sources, int count, size offset, ELEMENT *out, size elements, int divisor)
{
    size step = (size)gridDim.x * blockDim.x;
    for (size at = (size)blockIdx.x * blockDim.x + threadIdx.x; at < elements; at += step) {
        ELEMENT x = ((const ELEMENT *)(sources[0] + offset))[at];
        WIDE total = OPENED;
        for (int source = 1; source < count; source++) {
            ELEMENT x = ((const ELEMENT *)(sources[source] + offset))[at];
            WIDE next = OPENED;
            COMBINED
        }
        CLOSED
    }
}
"""
_COMPLEX_PRODUCT: Final = (
    "WIDE was = total; total.real = was.real * next.real - was.imaginary * next.imaginary; "
    "total.imaginary = was.real * next.imaginary + was.imaginary * next.real;"
)


def reducible(op: str, dtype: str) -> bool:
    """Whether a device can reduce these."""
    return dtype in _LANES[op]


def kernel_name(op: str, dtype: str) -> str:
    """Of the function in `kernel_source`."""
    return f"reduce_{op}_{dtype}"


def kernel_source(op: str, dtype: str) -> str:
    """The kernel of an op and a dtype, to stand behind CONVERSIONS and COMMON."""
    lane = _LANES[op][dtype]
    combined = f"total = (WIDE)({_COMBINED[op]});" if dtype not in _COMPLEX or op != "product" else _COMPLEX_PRODUCT
    closed = "total = divisor > 1 ? total / (WIDE)divisor : total; " if op == "mean" else ""
    words = {
        "COMBINED": combined,
        "CLOSED": f"{{ {closed}WIDE x = total; out[at] = {lane.closed}; }}",
        "NAME": kernel_name(op, dtype),
        "OPENED": lane.opened,
        "ELEMENT": lane.element,
        "WIDE": lane.wide,
    }
    source = _KERNEL
    for word, text in words.items():
        source = source.replace(word, text)
    return source


@lru_cache(maxsize=128)
def _kernel(op: str, dtype: str) -> _Kernel:
    library = devices._cupy("reducing")
    source = CONVERSIONS + COMMON + kernel_source(op, dtype)
    return cast(_Kernel, library.RawKernel(source, kernel_name(op, dtype), options=OPTIONS))


def compile_kernel(op: str, dtype: str) -> None:
    """Makes the kernel of an op and a dtype for the current device, unless it is there.

    Raises:
        InvalidValue: the device's compiler is missing, or fails.
    """
    try:
        _kernel(op, dtype).compile()
    except InvalidValue:
        raise
    except Exception as error:
        # The library has errors of several kinds for it, and names them in modules that come and go.
        raise InvalidValue("kernel", kernel_name(op, dtype), f"cannot be compiled: {error}") from error


def reduce(op: str, dtype: str, sources: object, count: int, offset: int, out: object, elements: int) -> None:
    """Queues a reduction on the current stream of the current device.

    Args:
        op: of sum, mean, min, max and product; `reducible` has allowed it.
        dtype: of the elements, by its name on the wire.
        sources: an array on the device, of uint64: where each rank's memory begins, in the order of the ranks.
        count: of the sources.
        offset: where in each of them the elements are.
        out: an array on the device, of whatever dtype, for the result.
        elements: how many.
    """
    numbers = elements * _LANES[op][dtype].per_element
    blocks = min(BLOCKS_MAX, -(-numbers // THREADS))
    if blocks:
        arguments = sources, np.int32(count), np.uint64(offset), out, np.uint64(numbers), np.int32(count)
        _kernel(op, dtype)((blocks,), (THREADS,), arguments)
