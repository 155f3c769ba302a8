"""Blocks of 8-bit numbers: their bits, what they lose, and that a sum of them loses nothing on the average."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from broker.collectives import encoding
from broker.collectives.blocks import BLOCK_ELEMENTS
from broker.collectives.claims import INT8_BLOCKS, ReduceOp
from broker.collectives.reduce import accumulate

SIZES = [0, 1, 59, 60, 61, 1000]


def decoded(encoded: np.ndarray, elements: int) -> np.ndarray:
    array = np.full(elements, 99, np.float32)
    encoding.decode(INT8_BLOCKS, encoded, array)
    return array


def summed(op: ReduceOp, contributions: list[np.ndarray]) -> np.ndarray:
    out = np.empty_like(contributions[0])
    accumulate(op, [each.data for each in contributions], INT8_BLOCKS, len(contributions), out.data)
    return out


def test_a_block_is_a_scale_and_sixty_numbers() -> None:
    array = np.zeros(60, np.float32)
    array[0], array[1], array[59] = 127.0, -3.4, 0.6
    assert encoding.encode(INT8_BLOCKS, array).tobytes() == struct.pack("<fbb57xb", 1.0, 127, -3, 1)


@pytest.mark.parametrize("elements", SIZES)
def test_every_float_comes_back_within_half_a_step_of_its_block(elements: int) -> None:
    array = np.random.default_rng(elements).normal(size=elements).astype(np.float32)
    encoded = encoding.encode(INT8_BLOCKS, array)
    assert encoded.nbytes == 64 * encoding.items_of(INT8_BLOCKS, elements)
    back = decoded(encoded, elements)
    for start in range(0, elements, BLOCK_ELEMENTS):
        part = slice(start, start + BLOCK_ELEMENTS)
        step = np.abs(array[part]).max() / 127
        assert np.abs(back[part] - array[part]).max() <= 0.5001 * step


def test_what_is_lost_is_what_the_blocks_lack_and_may_lie_where_it_is_added_from() -> None:
    generator = np.random.default_rng(0)
    array, carried = (generator.normal(size=100).astype(np.float32) for _ in range(2))
    wanted = array + carried
    encoded = encoding.encode(INT8_BLOCKS, array, carried, carried)
    assert np.allclose(decoded(encoded, 100) + carried, wanted, rtol=0, atol=1e-6)
    assert 0 < np.abs(carried).max() < 0.05


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_no_number_is_told_by_its_whole_block_and_not_carried_on(value: float) -> None:
    array = np.ones(120, np.float32)
    array[3] = value
    lost = np.empty_like(array)
    back = decoded(encoding.encode(INT8_BLOCKS, array, None, lost), 120)
    assert np.isnan(back[:60]).all()
    assert (back[60:] == 1).all()
    assert (lost[:60] == 0).all()


def test_a_block_of_tiny_numbers_becomes_zeros_and_loses_nothing_of_them() -> None:
    array = np.full(60, 9e-31, np.float32)
    lost = np.empty_like(array)
    assert not encoding.encode(INT8_BLOCKS, array, None, lost).any()
    assert (lost == array).all()


@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.MEAN])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_sum_is_within_a_step_of_the_exact_one(op: ReduceOp, ranks: int) -> None:
    generator = np.random.default_rng(ranks)
    contributions = [encoding.encode(INT8_BLOCKS, generator.normal(size=600).astype(np.float32)) for _ in range(ranks)]
    exact = np.sum([decoded(each, 600).astype(np.float64) for each in contributions], axis=0)
    exact /= ranks if op is ReduceOp.MEAN else 1
    result = decoded(summed(op, contributions), 600)
    for start in range(0, 600, BLOCK_ELEMENTS):
        part = slice(start, start + BLOCK_ELEMENTS)
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
        total += decoded(
            summed(ReduceOp.SUM, [encoding.encode(INT8_BLOCKS, large), encoding.encode(INT8_BLOCKS, small)]), 60
        )
    assert total[1:].mean() / steps == pytest.approx(0.005, rel=0.1)


def test_a_sum_has_the_same_bits_whenever_it_is_formed() -> None:
    contributions = [
        encoding.encode(INT8_BLOCKS, np.random.default_rng(seed).normal(size=6000).astype(np.float32))
        for seed in (1, 2)
    ]
    assert summed(ReduceOp.SUM, contributions).tobytes() == summed(ReduceOp.SUM, contributions).tobytes()
