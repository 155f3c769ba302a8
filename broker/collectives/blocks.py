"""Floats as blocks of 8-bit numbers: what gradients become to cross a slow link in a quarter of the bytes.

    0        4                                               64
    +--------+-----------------------------------------------+
    | scale  | 60 numbers from -127 to 127, int8             |      each float is its number times the scale, a float32
    +--------+-----------------------------------------------+

A block is one element of the dtype `int8_blocks`, which is reduced like any other: its floats are added in float32, in
the order of the ranks, and what comes out is a block again. So every schedule can carry it, and a sum crosses a link as
short as a contribution does. Two roundings are made:

- A rank rounds its array to the nearest. What that takes away it can keep, and add to the next array: error feedback
  (Seide and others 2014, "1-Bit Stochastic Gradient Descent"), with which small gradients come through in the end.
- Whoever adds blocks rounds the sum up or down by chance, in proportion, so that the expected sum is the exact one (as
  QSGD does, Alistarh and others 2017). The chance comes out of the numbers' own bits: the same in every run.

A block in which something is infinite or NaN becomes 60 NaN. A block of numbers below 1e-30 becomes zeros. What is
written here with numpy runs where nothing was compiled; kernels_blocks.h does the same, to the bit.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK_ELEMENTS: Final = 60
BLOCK_BYTES: Final = 64
_LIMIT: Final = np.float32(127)
_LEAST_LARGEST: Final = np.float32(1e-30)
_SCALE_BYTES: Final = 4

Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]


def blocks_of(elements: int) -> int:
    """How many blocks so many floats need."""
    return -(-elements // BLOCK_ELEMENTS)


def encode(array: Floats, lost: Floats | None, out: Blocks) -> None:
    """Fills the blocks of a flat array, and `lost` with what they lack."""
    with np.errstate(all="ignore"):
        padded = np.zeros((blocks_of(array.size), BLOCK_ELEMENTS), np.float32)
        padded.reshape(-1)[: array.size] = array
        scales, inverses = _scalings(padded)
        _close(scales, np.rint(padded * inverses), inverses, out)
        if lost is not None:
            lacking = np.where(np.isnan(scales), np.float32(0), padded - opened(out))
            lost[:] = lacking.reshape(-1)[: array.size]


def add(contributions: list[Blocks], divisor: int, out: Blocks) -> None:
    """Blocks of the sum, or of the mean with a divisor above 1."""
    if len(contributions) == 1 and divisor == 1:
        out[:] = contributions[0]
        return
    with np.errstate(all="ignore"):
        total = opened(contributions[0])
        for contribution in contributions[1:]:
            total += opened(contribution)
        if divisor > 1:
            total /= np.float32(divisor)
        scales, inverses = _scalings(total)
        scaled = np.where(inverses, total * inverses, np.float32(0))
        whole = np.floor(scaled)
        whole += scaled - whole > _chances(scaled)
        _close(scales, np.minimum(whole, _LIMIT), inverses, out)


def opened(blocks: Blocks) -> Floats:
    """The floats, a row for each block."""
    rows = blocks.reshape(-1, BLOCK_BYTES)
    scales = rows[:, :_SCALE_BYTES].copy().view(np.float32)
    with np.errstate(all="ignore"):
        return rows[:, _SCALE_BYTES:].view(np.int8) * scales


def _scalings(rows: Floats) -> tuple[Floats, Floats]:
    """For each row, the scale by which its largest number becomes 127, and the inverse, or 0 where there is none."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    finite, usual = np.isfinite(largest), largest >= _LEAST_LARGEST
    scales = np.where(finite, np.where(usual, largest / _LIMIT, np.float32(0)), np.float32(np.nan))
    return scales, np.where(finite & usual, _LIMIT / largest, np.float32(0))


def _chances(scaled: Floats) -> Floats:
    """A number from 0 to 1 for each, which its bits and its place decide."""
    places = np.arange(_SCALE_BYTES, BLOCK_BYTES, dtype=np.uint32)
    mixed = (scaled.view(np.uint32) + places) * np.uint32(0x9E3779B1)
    mixed = (mixed ^ mixed >> np.uint32(15)) * np.uint32(0x85EBCA77)
    mixed ^= mixed >> np.uint32(13)
    return (mixed >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _close(scales: Floats, numbers: Floats, inverses: Floats, out: Blocks) -> None:
    rows = out.reshape(-1, BLOCK_BYTES)
    rows[:, :_SCALE_BYTES] = scales.view(np.uint8)
    rows[:, _SCALE_BYTES:] = np.where(inverses, numbers, np.float32(0)).astype(np.int8).view(np.uint8)
