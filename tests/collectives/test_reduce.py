"""The kernels against numpy and ml_dtypes, bit for bit."""

from __future__ import annotations

from functools import reduce

import ml_dtypes
import numpy as np
import pytest

from broker.collectives.claims import INT8_BLOCKS, ITEM_BYTES, ReduceOp, op_problem
from broker.collectives.reduce import accumulate

FUNCTIONS = {
    ReduceOp.SUM: np.add,
    ReduceOp.MEAN: np.add,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
    ReduceOp.PRODUCT: np.multiply,
}
DTYPES = [dtype for dtype in ITEM_BYTES if dtype != INT8_BLOCKS]
"""Those that numpy or ml_dtypes has."""
PAIRS = [(op, dtype) for op in ReduceOp for dtype in DTYPES if op_problem(op, dtype) is None]


def numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def random_arrays(dtype: str, elements: int, count: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    arrays = []
    for _ in range(count):
        if dtype == "bool":
            array = generator.integers(0, 2, elements).astype(bool)
        elif "int" in dtype:
            array = generator.integers(0, 256, elements * ITEM_BYTES[dtype], np.uint8).view(dtype)
        elif dtype.startswith("complex"):
            array = (generator.normal(size=elements) + 1j * generator.normal(size=elements)).astype(dtype)
        else:
            array = generator.normal(size=elements).astype(np.float32).astype(numpy_dtype(dtype))
        arrays.append(array)
    return arrays


def complex_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Each part from real products that are rounded on their own."""
    real = first.real * second.real - first.imag * second.imag
    imaginary = first.real * second.imag + first.imag * second.real
    return np.stack([real, imaginary], axis=-1).view(first.dtype).reshape(first.shape)


def expected(op: ReduceOp, arrays: list[np.ndarray]) -> np.ndarray:
    """A fold in rank order; the short floats in float32, rounded once."""
    dtype = arrays[0].dtype
    short = dtype in (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
    with np.errstate(all="ignore"):
        function = complex_product if op is ReduceOp.PRODUCT and np.iscomplexobj(arrays[0]) else FUNCTIONS[op]
        total = reduce(function, [array.astype(np.float32) if short else array for array in arrays])
        if op is ReduceOp.MEAN and np.iscomplexobj(total):
            parts = [part / total.real.dtype.type(len(arrays)) for part in (total.real, total.imag)]
            total = parts[0] + 1j * parts[1]
        elif op is ReduceOp.MEAN:
            total = total / total.dtype.type(len(arrays))
        return total.astype(dtype)


def accumulated(op: ReduceOp, arrays: list[np.ndarray], dtype: str) -> np.ndarray:
    out = bytearray(b"\xaa" * arrays[0].nbytes)
    accumulate(op, [array.tobytes() for array in arrays], dtype, len(arrays), out)
    return np.frombuffer(bytes(out), np.uint8).view(numpy_dtype(dtype))


@pytest.mark.parametrize(("op", "dtype"), PAIRS)
@pytest.mark.parametrize("elements", [0, 1, 7, 64, 1001])
def test_every_op_and_dtype_gives_the_bits_of_numpy(op: ReduceOp, dtype: str, elements: int) -> None:
    for ranks in (1, 2, 5):
        arrays = random_arrays(dtype, elements, ranks)
        assert accumulated(op, arrays, dtype).tobytes() == expected(op, arrays).tobytes()


@pytest.mark.parametrize(("op", "dtype"), PAIRS)
def test_views_at_any_address_are_reduced(op: ReduceOp, dtype: str) -> None:
    arrays = random_arrays(dtype, 33, 3)
    shifted = [memoryview(b"\x00" + array.tobytes())[1:] for array in arrays]
    out = memoryview(bytearray(1 + arrays[0].nbytes))[1:]
    accumulate(op, shifted, dtype, 3, out)
    assert bytes(out) == expected(op, arrays).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_short_floats_are_rounded_once_so_small_terms_add_up(dtype: str) -> None:
    one = np.ones(1, numpy_dtype(dtype))
    small = np.full(1, 2**-12, numpy_dtype(dtype))
    total = accumulated(ReduceOp.SUM, [one, *[small] * 512], dtype)
    assert float(total[0]) == 1.125


def test_bfloat16_rounds_ties_to_even() -> None:
    # 1 + 2**-8 lies halfway between 1 and 1 + 2**-7, and 1 + 2**-7 + 2**-8 halfway between 1 + 2**-7 and 1 + 2**-6.
    base = np.array([1, 1 + 2**-7], ml_dtypes.bfloat16)
    half = np.full(2, 2**-8, ml_dtypes.bfloat16)
    total = accumulated(ReduceOp.SUM, [base, half], "bfloat16")
    assert total.astype(np.float32).tolist() == [1.0, 1 + 2**-6]


@pytest.mark.parametrize("bits", [0x7F81, 0xFFFF, 0x7FFF, 0xFF81, 0x7FC0])
@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.MEAN, ReduceOp.MIN, ReduceOp.MAX])
def test_bfloat16_keeps_a_nan_whatever_its_bits(op: ReduceOp, bits: int) -> None:
    arrays = [np.array([bits, 0x3F80], np.uint16).view(ml_dtypes.bfloat16), np.ones(2, ml_dtypes.bfloat16)]
    total = accumulated(op, arrays, "bfloat16").astype(np.float32)
    assert np.isnan(total).tolist() == [True, False]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_min_and_max_pass_nan_on_from_any_rank(dtype: str) -> None:
    plain = np.array([1, 2, 3], numpy_dtype(dtype))
    for op in (ReduceOp.MIN, ReduceOp.MAX):
        for rank in range(3):
            arrays = [plain.copy() for _ in range(3)]
            arrays[rank][1] = np.nan
            assert np.isnan(accumulated(op, arrays, dtype)).tolist() == [False, True, False]


def test_a_long_contribution_is_reduced_while_other_threads_may_run() -> None:
    arrays = random_arrays("float32", 1 << 18, 3)
    assert accumulated(ReduceOp.SUM, arrays, "float32").tobytes() == expected(ReduceOp.SUM, arrays).tobytes()


@pytest.mark.parametrize("contributions", [[], [bytes(8), bytes(4)], [bytes(12)] * 2, [bytes(1)] * 2])
def test_contributions_of_another_length_than_the_result_are_refused(contributions: list[bytes]) -> None:
    with pytest.raises(ValueError, match="8 bytes of float32"):
        accumulate(ReduceOp.SUM, contributions, "float32", 2, bytearray(8))


def test_half_an_element_is_refused() -> None:
    with pytest.raises(ValueError, match="6 bytes of float32"):
        accumulate(ReduceOp.SUM, [bytes(6)] * 2, "float32", 2, bytearray(6))


def test_a_result_that_cannot_be_written_is_refused() -> None:
    with pytest.raises((BufferError, ValueError)):
        accumulate(ReduceOp.SUM, [bytes(8)] * 2, "float32", 2, memoryview(bytes(8)))


def test_integers_wrap_and_floats_overflow_without_a_warning() -> None:
    assert accumulated(ReduceOp.SUM, [np.array([127], np.int8)] * 2, "int8").tolist() == [-2]
    assert accumulated(ReduceOp.SUM, [np.array([60000], np.float16)] * 2, "float16").tolist() == [np.inf]
    assert accumulated(ReduceOp.PRODUCT, [np.array([1e38], np.float32)] * 2, "float32").tolist() == [np.inf]


def test_min_and_max_of_bool_are_and_and_or() -> None:
    arrays = [np.array([False, False, True]), np.array([False, True, True])]
    assert accumulated(ReduceOp.MIN, arrays, "bool").tolist() == [False, False, True]
    assert accumulated(ReduceOp.MAX, arrays, "bool").tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_a_complex_product_is_that_of_numpy_but_for_the_last_bits(dtype: str) -> None:
    arrays = random_arrays(dtype, 100, 4)
    epsilon = float(np.finfo(dtype).eps)
    product = accumulated(ReduceOp.PRODUCT, arrays, dtype)
    assert np.allclose(product, np.prod(arrays, axis=0), rtol=16 * epsilon, atol=0.0)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("elements", [1, 2, 33])
def test_a_complex_product_does_not_depend_on_where_the_buffers_lie(dtype: str, elements: int) -> None:
    for seed in range(20):
        arrays = random_arrays(dtype, elements, 3, seed)
        results = set()
        for offset in (0, 1, 4, 8):
            shifted = [memoryview(bytes(offset) + array.tobytes())[offset:] for array in arrays]
            out = memoryview(bytearray(offset + arrays[0].nbytes))[offset:]
            accumulate(ReduceOp.PRODUCT, shifted, dtype, 3, out)
            results.add(bytes(out))
        assert len(results) == 1


def test_a_complex_mean_keeps_infinite_parts_apart() -> None:
    total = accumulated(ReduceOp.MEAN, [np.array([complex(np.inf, 2)], np.complex64)] * 2, "complex64")
    assert (total.real[0], total.imag[0]) == (np.inf, 2)
