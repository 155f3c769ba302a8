"""Kernels of devices on the host: what broker/devices/reducing.py writes for a device, compiled by gcc as C.

Only what is an instruction of the device (CONVERSIONS) is replaced. A launch calls the kernel once for each thread of
each block, so it shows what becomes of each element, and nothing of speed.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from broker.devices.reducing import CONVERSIONS

COMPILER = shutil.which("gcc")
_PRELUDE = """
#include <string.h>
#define __device__
#define __global__
struct place { unsigned x; };
static __thread struct place gridDim, blockDim, blockIdx, threadIdx;

static inline unsigned __float_as_uint(float x) { unsigned bits; memcpy(&bits, &x, 4); return bits; }
static inline float __uint_as_float(unsigned bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline float from_float16(unsigned short bits) { _Float16 x; memcpy(&x, &bits, 2); return x; }
static inline unsigned short to_float16(float wide)
{
    _Float16 x = (_Float16)wide;
    unsigned short bits;
    memcpy(&bits, &x, 2);
    return bits;
}
"""
_LAUNCH = """
void launch_NAME(unsigned blocks, unsigned threads, const size *sources, int count, size offset, void *out,
                 size elements, int divisor)
{
    gridDim.x = blocks, blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
            NAME(sources, count, offset, out, elements, divisor);
}
"""
_INT, _SIZE, _POINTER = ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p
_TYPES = ctypes.c_uint, ctypes.c_uint, _POINTER, _INT, _SIZE, _POINTER, _SIZE, _INT
Launch = Callable[..., None]


_lock = threading.Lock()
"""So that ranks that are threads of one process do not all compile the same."""


@lru_cache
def library(code: str, names: tuple[str, ...]) -> ctypes.CDLL:
    """What gcc makes of kernels."""
    source = _PRELUDE + code.replace(CONVERSIONS, "").replace('extern "C" ', "")
    source += "".join(_LAUNCH.replace("NAME", name) for name in names)
    assert COMPILER is not None, "the stand-in for kernels needs gcc"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "kernels.so"
        flags = ("-w", "-shared", "-fPIC", "-ffp-contract=off", "-fexcess-precision=standard")
        subprocess.run([COMPILER, *flags, "-x", "c", "-", "-o", made], input=source.encode(), check=True)
        return ctypes.CDLL(str(made))


def compiled(code: str, name: str, names: tuple[str, ...] = ()) -> Launch:
    """A kernel, to be called with blocks, threads and its arguments; arrays are numpy's."""
    with _lock:
        function = library(code, names or (name,))[f"launch_{name}"]
    function.argtypes, function.restype = _TYPES, None

    def launch(blocks: int, threads: int, *arguments: object) -> None:
        plain = [each.ctypes.data if isinstance(each, np.ndarray) else int(each) for each in arguments]  # type: ignore[call-overload]
        function(blocks, threads, *plain)

    return launch
