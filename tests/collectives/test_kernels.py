"""The kernels in C against reduce.py's numpy, bit for bit, at every level that the processor has.

Which of several NaNs comes out, and whether it is a signalling one, is not compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.kernels import DTYPES, LEVELS, OPS, Bytes, Kernels, addresses, is_compiled, reduce_with_numpy
from broker.collectives.claims import ITEM_BYTES, ReduceOp, op_problem
from tests.conftest import ROOT
from tests.thorough import rounds

pytestmark = pytest.mark.skipif(not is_compiled(), reason="reduce.py is not compiled, so there are no kernels")

KERNELS = Kernels() if is_compiled() else None
HERE = KERNELS.levels if KERNELS else []
PAIRS = [(op, dtype) for op in OPS for dtype in DTYPES if op_problem(ReduceOp(op), dtype) is None]
BITS = {
    "float16": np.uint16,
    "bfloat16": np.uint16,
    "float32": np.uint32,
    "float64": np.uint64,
    "complex64": np.uint32,
    "complex128": np.uint64,
}
"""Unsigned integers as wide as the floats of a dtype."""
INFINITY = {
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float32": 0x7F800000,
    "float64": 0x7FF << 52,
    "complex64": 0x7F800000,
    "complex128": 0x7FF << 52,
}
MARGIN_BYTES = 64
plain_accumulate = reduce_with_numpy()


@dataclass(frozen=True)
class Shape:
    """Where arrays lie and what is in them: `offsets` from an aligned address, the result's first."""

    elements: int
    offsets: tuple[int, ...]
    seed: int
    special: bool
    streaming: bool
    alias: int | None


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    count = draw(st.integers(1, 9))
    offsets = draw(st.lists(st.integers(0, MARGIN_BYTES - 1), min_size=count + 1, max_size=count + 1))
    aligned = draw(st.booleans())
    return Shape(
        draw(st.integers(0, 700)),
        tuple(0 if aligned else offset for offset in offsets),
        draw(st.integers(0, 1 << 32)),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.none() | st.integers(0, count - 1)),
    )


def special_bits(dtype: str) -> np.ndarray:
    """Zeros, infinities, NaNs, the least and the largest numbers, and one, with both signs."""
    sign = 1 << (8 * BITS[dtype]().itemsize - 1)
    infinity = INFINITY[dtype]
    least_fraction = infinity & -infinity
    one = infinity // 2 & ~(least_fraction - 1)
    magnitudes = [0, 1, 2, least_fraction - 1, least_fraction, one, infinity - 1, infinity, infinity + 1]
    magnitudes.append(infinity + least_fraction // 2)
    return np.array([bits | side for bits in magnitudes for side in (0, sign)], BITS[dtype])


def filled(dtype: str, size: int, offset: int, generator: np.random.Generator, *, special: bool) -> Bytes:
    """Memory at an offset from an aligned address, with a margin at both ends."""
    memory = generator.integers(0, 256, size + 3 * MARGIN_BYTES, np.uint8)
    start = -memory.ctypes.data % MARGIN_BYTES + offset
    if special and dtype in BITS:
        bits = special_bits(dtype)
        memory[start : start + size] = generator.choice(bits, size // bits.itemsize).view(np.uint8)
    return memory[start : start + size]


def one_nan(content: bytes, dtype: str) -> bytes:
    """The same with every NaN replaced by one and the same."""
    if dtype not in BITS:
        return content
    bits = np.frombuffer(content, BITS[dtype]).copy()
    magnitude = bits & BITS[dtype]((1 << (8 * bits.itemsize - 1)) - 1)
    bits[magnitude > INFINITY[dtype]] = -1 & ((1 << 8 * bits.itemsize) - 1)
    return bits.tobytes()


def expected(op: str, dtype: str, sources: Sequence[Bytes]) -> bytes:
    out = bytearray(sources[0].nbytes)
    plain_accumulate(ReduceOp(op), [source.tobytes() for source in sources], dtype, len(sources), out)
    return one_nan(bytes(out), dtype)


def reduced(level: str, op: str, dtype: str, sources: Sequence[Bytes], out: Bytes, *, streaming: bool = False) -> bytes:
    assert KERNELS is not None
    kernel = KERNELS.of(level, op, dtype)
    assert kernel is not None
    divisor = len(sources) if op == "mean" else 1
    elements = out.nbytes // ITEM_BYTES[dtype]
    kernel(out.ctypes.data, addresses(sources), len(sources), elements, divisor, int(streaming), None)
    return one_nan(out.tobytes(), dtype)


def check_reduced(op: str, dtype: str, shape: Shape) -> None:
    """Reduces arrays that lie so, at each level."""
    generator = np.random.default_rng(shape.seed)
    size = shape.elements * ITEM_BYTES[dtype]
    out, *sources = (filled(dtype, size, offset, generator, special=shape.special) for offset in shape.offsets)
    if shape.alias is not None:
        out = sources[shape.alias]
    others = [source for source in sources if source is not out]
    wanted = expected(op, dtype, sources)
    before, filling = [source.tobytes() for source in others], out.copy()
    around = out.base
    assert around is not None
    start = out.ctypes.data - around.ctypes.data
    margins = around[:start].tobytes(), around[start + size :].tobytes()

    for level in HERE:
        # It may be one of the sources.
        out[:] = filling
        assert reduced(level, op, dtype, sources, out, streaming=shape.streaming) == wanted, (op, dtype, level)
        assert [source.tobytes() for source in others] == before, (op, dtype, level)
        assert (around[:start].tobytes(), around[start + size :].tobytes()) == margins, (op, dtype, level)


# Hypothesis has the same examples for each case of a function, and takes longer to find them than all kernels together
# take to reduce them: so each example goes through all of them.
@settings(max_examples=rounds(40))
@given(shape=shapes())
def test_a_kernel_gives_the_bits_of_numpy(shape: Shape) -> None:
    for op, dtype in PAIRS:
        check_reduced(op, dtype, shape)


@pytest.mark.parametrize(("op", "dtype"), PAIRS)
@pytest.mark.parametrize(("count", "streaming"), [(64, False), (17, True)])
def test_many_sources_that_fill_several_tiles_are_taken_in_order(
    op: str, dtype: str, count: int, streaming: bool
) -> None:
    generator = np.random.default_rng(count)
    size = 33_333 // ITEM_BYTES[dtype] * ITEM_BYTES[dtype]
    sources = [filled(dtype, size, 0, generator, special=False) for _ in range(count)]
    if dtype in BITS:
        for source in sources:
            floats = generator.normal(size=-(-size // 2)).astype(np.float16 if dtype == "float16" else np.float32)
            source[:] = floats.view(np.uint8)[-size:]
    wanted = expected(op, dtype, sources)
    out = sources[count // 2]
    filling = out.copy()
    for level in HERE:
        out[:] = filling
        assert reduced(level, op, dtype, sources, out, streaming=streaming) == wanted, level


def check_places(op: str, dtype: str, elements: int, offsets: list[int], together: bool, count: int) -> None:
    """Reduces so many arrays, at each level, to as many places as there are offsets."""
    assert KERNELS is not None
    generator = np.random.default_rng(elements)
    size = elements * ITEM_BYTES[dtype]
    sources = [filled(dtype, size, 0, generator, special=True) for _ in range(count)]
    # Where all lie alike beside the lines, they are written past the caches; else they are copied.
    places = [filled(dtype, size, offsets[0] if together else each, generator, special=False) for each in offsets]
    wanted = expected(op, dtype, sources)
    divisor = count if op == "mean" else 1
    for level in HERE:
        kernel = KERNELS.of(level, op, dtype)
        assert kernel is not None
        margins = []
        for place in places:
            place[:] = 7
            around = place.base
            assert around is not None
            start = place.ctypes.data - around.ctypes.data
            margins.append((around[:start], around[start + size :]))
        before = [(left.tobytes(), right.tobytes()) for left, right in margins]
        copies = addresses(places[1:])
        kernel(places[0].ctypes.data, addresses(sources), count, elements, divisor, len(places), copies)
        # Most often they are alike before that as well.
        contents = {place.tobytes() for place in places}
        assert {one_nan(content, dtype) for content in contents} == {wanted}, (op, dtype, level)
        assert [(left.tobytes(), right.tobytes()) for left, right in margins] == before, (op, dtype, level)


@settings(max_examples=20)
@given(
    elements=st.integers(0, 700),
    offsets=st.lists(st.sampled_from([0, 16, 24, 48, 63]), min_size=1, max_size=5),
    together=st.booleans(),
    count=st.sampled_from([1, 2, 3, 9]),
)
def test_a_result_is_written_to_several_places_alike(
    elements: int, offsets: list[int], together: bool, count: int
) -> None:
    for op, dtype in PAIRS:
        check_places(op, dtype, elements, offsets, together, count)


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("op", ["sum", "mean", "product"])
def test_every_short_float_is_widened_and_rounded_as_in_numpy(level: str, dtype: str, op: str) -> None:
    generator = np.random.default_rng(0)
    every = np.arange(1 << 16, dtype=np.uint16)
    for count in (1, 2, 3):
        sources = [every.view(np.uint8), *(generator.permutation(every).view(np.uint8) for _ in range(count - 1))]
        assert reduced(level, op, dtype, sources, np.empty(1 << 17, np.uint8)) == expected(op, dtype, sources)


@pytest.mark.parametrize("level", HERE)
def test_there_is_a_kernel_for_what_can_be_reduced_and_for_nothing_else(level: str) -> None:
    assert KERNELS is not None
    found = [(op, dtype) for op in OPS for dtype in DTYPES if KERNELS.of(level, op, dtype) is not None]
    assert found == PAIRS
    assert KERNELS.numbered(level, -1, 0) is None
    assert KERNELS.numbered(level, len(OPS), DTYPES["float32"]) is None
    assert KERNELS.numbered(level, OPS["sum"], len(DTYPES)) is None
    assert KERNELS.numbered(level, OPS["sum"], -1) is None


def test_an_unknown_level_has_no_kernel() -> None:
    assert KERNELS is not None
    assert KERNELS.of("abacus", "sum", "float32") is None


@pytest.mark.parametrize("asked", [*LEVELS, "abacus", ""])
def test_the_environment_caps_the_level(asked: str) -> None:
    program = "from bench.kernels import Kernels; print(Kernels().level)"
    environment = {**os.environ, "TENSORBUS_KERNELS": asked}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (asked if asked in HERE else HERE[0])
