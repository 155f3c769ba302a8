"""Shorter dtypes: the same bits compiled and plain, what is kept of what is lost, and numbers that are none."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.collectives import encoding
from broker.collectives.claims import INT8_BLOCKS
from tests.thorough import rounds

DTYPES = ["float16", "bfloat16", INT8_BLOCKS]
SHORTS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@cache
def plain() -> ModuleType:
    """encoding.py as plain Python, though it may be compiled."""
    spec = importlib.util.spec_from_file_location("plain_encoding", Path(encoding.__file__).with_name("encoding.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def decoded(dtype: str, encoded: np.ndarray, elements: int) -> np.ndarray:
    array = np.full(elements, 99, np.float32)
    encoding.decode(dtype, encoded, array)
    return array


def one_nan(array: np.ndarray) -> list[int]:
    """The bits, of all NaN the same ones."""
    return np.where(np.isnan(array), np.float32(np.nan), array).view(np.uint32).tolist()


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    size = draw(st.integers(1, 200))
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    array = generator.normal(size=size) * 10.0 ** generator.integers(-40, 38, size)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, 9e-31, 3.4e38, 65504, 65519, 65520, 1e-8, -6e-8, 6.1e-5]
    for value in draw(st.lists(st.sampled_from(special), max_size=6)):
        array[generator.integers(size)] = value
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


# Hypothesis has the same examples for each case of a function, so each goes through all of them.
@settings(max_examples=rounds(150))
@given(array=arrays(), carried=arrays())
def test_compiled_and_plain_give_the_same_bits(array: np.ndarray, carried: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        carried = np.resize(carried, array.size)
    for dtype in DTYPES:
        check_same_bits(dtype, array, carried)


def check_same_bits(dtype: str, array: np.ndarray, carried: np.ndarray) -> None:
    losses = np.empty_like(array), np.empty_like(array)
    twin = plain()
    first = encoding.encode(dtype, array, carried, losses[0])
    second = twin.encode(dtype, array, carried, losses[1])
    back = np.empty_like(array)
    twin.decode(dtype, second, back)
    assert one_nan(decoded(dtype, first, array.size)) == one_nan(back), dtype
    assert losses[0].tobytes() == losses[1].tobytes(), dtype
    assert first.nbytes == second.nbytes, dtype


@settings(max_examples=rounds(100))
@given(array=arrays())
def test_a_short_float_is_the_nearest_one(array: np.ndarray) -> None:
    for dtype, short in SHORTS.items():
        largest = np.float32(ml_dtypes.finfo(short).max)
        within = np.where(np.isfinite(array), np.clip(array, -largest, largest), array)
        with np.errstate(all="ignore"):
            expected = within.astype(short).astype(np.float32)
        assert one_nan(decoded(dtype, encoding.encode(dtype, array), array.size)) == one_nan(expected), dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_lost_may_lie_where_it_is_added_from(dtype: str) -> None:
    generator = np.random.default_rng(0)
    array, carried = (generator.normal(size=100).astype(np.float32) for _ in range(2))
    wanted = array + carried
    encoded = encoding.encode(dtype, array, carried, carried)
    assert np.allclose(decoded(dtype, encoded, 100) + carried, wanted, rtol=0, atol=1e-6)
    assert 0 < np.abs(carried).max() < 0.05


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_may_lie_at_any_address_of_floats_and_end_anywhere(dtype: str) -> None:
    whole = np.random.default_rng(1).normal(size=300).astype(np.float32)
    for start, stop in ((0, 300), (1, 299), (3, 4), (7, 64), (5, 134)):
        part = whole[start:stop]
        lost = np.full(stop - start + 2, 7, np.float32)
        encoded = encoding.encode(dtype, part, None, lost[1:-1])
        back = decoded(dtype, encoded, part.size)
        assert np.allclose(back + lost[1:-1], part, rtol=0, atol=1e-6)
        assert lost[0] == lost[-1] == 7


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_becomes_nothing(dtype: str) -> None:
    empty = np.empty(0, np.float32)
    assert encoding.encode(dtype, empty).nbytes == 0
    encoding.decode(dtype, np.empty(0, np.uint8), empty)
