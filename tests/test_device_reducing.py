"""The kernels of devices, element by element, against what the host does; see kernel_stand_in.py."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest

from broker.collectives.claims import ITEM_BYTES, ReduceOp, op_problem
from broker.collectives.reduce import accumulate
from broker.devices import reducing
from tests import kernel_stand_in as kernels

DTYPES = [dtype for dtype in ITEM_BYTES if not dtype.endswith("blocks")]
PAIRS = [(op, dtype) for op in ReduceOp for dtype in DTYPES if op_problem(op, dtype) is None]
ELEMENTS = 1001
NVCC = shutil.which("nvcc")
OFFSET = 16


def launch_of(op: str, dtype: str) -> kernels.Launch:
    """All kernels are compiled at once, the first time."""
    code = reducing.CONVERSIONS + reducing.COMMON + "".join(reducing.kernel_source(*pair) for pair in PAIRS)
    return kernels.compiled(code, reducing.kernel_name(op, dtype), tuple(reducing.kernel_name(*pair) for pair in PAIRS))


def values_of(dtype: str, count: int) -> np.ndarray:
    """Ordinary numbers, and those at which something begins or ends, as the bits that they are."""
    random = np.random.default_rng(11)
    if dtype == "bool":
        return random.integers(0, 2, (count, ELEMENTS)).astype(bool)
    if dtype.startswith(("int", "uint")):
        return random.integers(0, 256, (count, ELEMENTS * ITEM_BYTES[dtype]), np.uint8)
    kind = {"bfloat16": "float32", "complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    numbers = random.standard_normal((count, ELEMENTS * (2 if dtype.startswith("complex") else 1))).astype(kind)
    edges = [0.0, -0.0, np.inf, -np.inf, 65504.0, 65520.0, 6e-8, -3e-5, 1e38, 1 + 2**-11, 1 + 2**-8]
    if not dtype.startswith("complex"):
        # Of the parts of a complex product, the bits of a NaN's neighbours would be as open as its own.
        edges.append(np.nan)
    with np.errstate(over="ignore"):
        numbers[random.random(numbers.shape) < 0.2] = 0
        places = random.integers(0, numbers.shape[1], (count, 300))
        np.put_along_axis(numbers, places, random.choice(edges, places.shape).astype(kind), 1)
    return (numbers.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else numbers


def without_nan_bits(data: np.ndarray, dtype: str) -> np.ndarray:
    """The same bytes, but for which NaN is which."""
    if dtype == "bfloat16":
        wide = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif dtype.startswith(("float", "complex")):
        wide = data.view({"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)).copy()
    else:
        return data
    wide[np.isnan(wide)] = np.nan
    return wide.view(np.uint8)


@pytest.mark.skipif(kernels.COMPILER is None, reason="there is no gcc to compile kernels with")
@pytest.mark.parametrize(("op", "dtype"), PAIRS)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_device_reduces_to_the_bits_of_the_host(op: ReduceOp, dtype: str, count: int) -> None:
    sources = [np.ascontiguousarray(each).view(np.uint8) for each in values_of(dtype, count)]
    size = ELEMENTS * ITEM_BYTES[dtype]
    expected = bytearray(size)
    accumulate(op, [each.data for each in sources], dtype, count, expected)
    memories = [np.concatenate([np.zeros(OFFSET, np.uint8), each]) for each in sources]
    addresses = np.array([each.ctypes.data for each in memories], np.uint64)
    found = np.full(size + 16, 0xEE, np.uint8)
    elements = ELEMENTS * (2 if dtype.startswith("complex") and op is not ReduceOp.PRODUCT else 1)
    launch_of(op, dtype)(2, 3, addresses, count, OFFSET, found, elements, count)
    assert (found[size:] == 0xEE).all(), "nothing is written behind the result"
    wanted = without_nan_bits(np.frombuffer(expected, np.uint8), dtype)
    assert np.array_equal(without_nan_bits(found[:size], dtype), wanted)


def test_what_the_host_cannot_reduce_neither_can_a_device() -> None:
    assert {(op, dtype) for op in ReduceOp for dtype in DTYPES if reducing.reducible(op, dtype)} == set(PAIRS)


@pytest.mark.skipif(NVCC is None, reason="there is no nvcc to compile kernels with")
def test_cudas_compiler_takes_them_and_fuses_and_flushes_nothing() -> None:
    code = reducing.CONVERSIONS + reducing.COMMON + "".join(reducing.kernel_source(*pair) for pair in PAIRS)
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "kernels.cu", Path(folder) / "kernels.ptx"
        source.write_text(code)
        assert NVCC is not None
        subprocess.run([NVCC, "-w", "-ptx", *reducing.OPTIONS, source, "-o", made], check=True)
        instructions = made.read_text()
    assert instructions.count(".entry") == len(PAIRS)
    assert not any(word in instructions for word in ("fma.", ".ftz", ".approx", ".full"))
