"""Blocks of 8-bit numbers: their bits, what they lose, and that a sum of them loses nothing on the average."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.collectives import blocks
from broker.collectives.claims import INT8_BLOCKS, ReduceOp
from broker.collectives.reduce import accumulate

SIZES = [0, 1, 59, 60, 61, 1000]


def plain() -> ModuleType:
    """blocks.py as plain Python, though it may be compiled."""
    spec = importlib.util.spec_from_file_location("plain_blocks", Path(blocks.__file__).with_name("blocks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def decoded(encoded: np.ndarray, elements: int) -> np.ndarray:
    array = np.full(elements, 99, np.float32)
    blocks.decode(encoded, array)
    return array


def summed(op: ReduceOp, contributions: list[np.ndarray]) -> np.ndarray:
    out = np.empty_like(contributions[0])
    accumulate(op, [each.data for each in contributions], INT8_BLOCKS, len(contributions), out.data)
    return out


def test_a_block_is_a_scale_and_sixty_numbers() -> None:
    array = np.zeros(60, np.float32)
    array[0], array[1], array[59] = 127.0, -3.4, 0.6
    assert blocks.encode(array).tobytes() == struct.pack("<fbb57xb", 1.0, 127, -3, 1)


@pytest.mark.parametrize("elements", SIZES)
def test_every_float_comes_back_within_half_a_step_of_its_block(elements: int) -> None:
    array = np.random.default_rng(elements).normal(size=elements).astype(np.float32)
    encoded = blocks.encode(array)
    assert encoded.nbytes == 64 * blocks.blocks_of(elements)
    back = decoded(encoded, elements)
    for start in range(0, elements, blocks.BLOCK_ELEMENTS):
        part = slice(start, start + blocks.BLOCK_ELEMENTS)
        step = np.abs(array[part]).max() / 127
        assert np.abs(back[part] - array[part]).max() <= 0.5001 * step


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    size = draw(st.integers(1, 200))
    generator = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    array = generator.normal(size=size) * 10.0 ** generator.integers(-40, 38, size)
    special = draw(st.lists(st.sampled_from([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, 9e-31, 3e38]), max_size=4))
    for value in special:
        array[generator.integers(size)] = value
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


@given(array=arrays(), carried=arrays())
def test_compiled_and_plain_give_the_same_bits(array: np.ndarray, carried: np.ndarray) -> None:
    carried = np.resize(carried, array.size)
    losses = np.empty_like(array), np.empty_like(array)
    twin = plain()
    first, second = blocks.encode(array, carried, losses[0]), twin.encode(array, carried, losses[1])
    assert first.tobytes() == second.tobytes()
    assert losses[0].tobytes() == losses[1].tobytes()
    with np.errstate(all="ignore"):
        twin.decode(second, carried)
    assert decoded(first, array.size).view(np.uint32).tolist() == carried.view(np.uint32).tolist()


def test_what_is_lost_is_what_the_blocks_lack_and_may_lie_where_it_is_added_from() -> None:
    generator = np.random.default_rng(0)
    array, carried = (generator.normal(size=100).astype(np.float32) for _ in range(2))
    wanted = array + carried
    encoded = blocks.encode(array, carried, carried)
    assert np.allclose(decoded(encoded, 100) + carried, wanted, rtol=0, atol=1e-6)
    assert 0 < np.abs(carried).max() < 0.05


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_is_told_by_its_whole_block_and_not_carried_on(value: float) -> None:
    array = np.ones(120, np.float32)
    array[3] = value
    lost = np.empty_like(array)
    back = decoded(blocks.encode(array, None, lost), 120)
    assert np.isnan(back[:60]).all()
    assert (back[60:] == 1).all()
    assert (lost[:60] == 0).all()


def test_a_block_of_tiny_numbers_becomes_zeros_and_loses_nothing_of_them() -> None:
    array = np.full(60, 9e-31, np.float32)
    lost = np.empty_like(array)
    assert not blocks.encode(array, None, lost).any()
    assert (lost == array).all()


@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.MEAN])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_sum_is_within_a_step_of_the_exact_one(op: ReduceOp, ranks: int) -> None:
    generator = np.random.default_rng(ranks)
    contributions = [blocks.encode(generator.normal(size=600).astype(np.float32)) for _ in range(ranks)]
    exact = np.sum([decoded(each, 600).astype(np.float64) for each in contributions], axis=0)
    exact /= ranks if op is ReduceOp.MEAN else 1
    result = decoded(summed(op, contributions), 600)
    for start in range(0, 600, blocks.BLOCK_ELEMENTS):
        part = slice(start, start + blocks.BLOCK_ELEMENTS)
        assert np.abs(result[part] - exact[part]).max() <= 1.001 * np.abs(exact[part]).max() / 127


def test_small_numbers_come_through_a_sum_on_the_average() -> None:
    """One rank's hundredths beside another's ones: a sum that was rounded to the nearest would never have them."""
    generator = np.random.default_rng(0)
    total, steps = np.zeros(60), 400
    for _ in range(steps):
        large = np.zeros(60, np.float32)
        large[0] = generator.uniform(2, 3)
        small = np.full(60, 0.005, np.float32)
        small[0] = 0.05
        total += decoded(summed(ReduceOp.SUM, [blocks.encode(large), blocks.encode(small)]), 60)
    assert total[1:].mean() / steps == pytest.approx(0.005, rel=0.1)


def test_a_sum_has_the_same_bits_whenever_it_is_formed() -> None:
    contributions = [blocks.encode(np.random.default_rng(seed).normal(size=6000).astype(np.float32)) for seed in (1, 2)]
    assert summed(ReduceOp.SUM, contributions).tobytes() == summed(ReduceOp.SUM, contributions).tobytes()
