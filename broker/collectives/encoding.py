"""Arrays of float32 as arrays of a dtype of fewer bytes, and back: float16, bfloat16 and `int8_blocks` (blocks.py).

To nearest, ties to even. A finite number that is too large for the short float becomes the largest that it has.
Infinity and NaN stay what they are, but for `int8_blocks`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from broker.collectives import blocks
from broker.collectives.blocks import BLOCK_ELEMENTS
from broker.collectives.claims import INT8_BLOCKS, ITEM_BYTES

try:
    import cython
except ModuleNotFoundError:
    from broker import uncompiled as cython

_DTYPES: Final = tuple(ITEM_BYTES)
"""In the order of kernels.h."""
_LARGEST: Final = {"float16": np.float32(65504.0), "bfloat16": np.uint32(0x7F7F0000).view(np.float32)}

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]


def items_of(dtype: str, elements: int) -> int:
    """How many elements of a dtype so many floats become."""
    return -(-elements // BLOCK_ELEMENTS) if dtype == INT8_BLOCKS else elements


def encode(dtype: str, array: Floats, carried: Floats | None = None, lost: Floats | None = None) -> Bytes:
    """An array of the dtype, as bytes.

    Args:
        dtype: float16, bfloat16 or int8_blocks.
        array: flat.
        carried: as long: what is to be added to it first.
        lost: as long: receives what the encoded array lacks, 0 where it is not finite.
    """
    out = np.empty(items_of(dtype, array.size) * ITEM_BYTES[dtype], np.uint8)
    if not array.size:
        return out
    if cython.compiled:
        _encode_with_kernel(dtype, array, carried, lost, out)
    else:
        _encode_with_numpy(dtype, array, carried, lost, out)
    return out


def decode(dtype: str, encoded: Bytes, array: Floats) -> None:
    """Fills a flat array with the floats of an encoded one."""
    if not array.size:
        return
    if cython.compiled:
        _decode_with_kernel(dtype, encoded, array)
    elif dtype == INT8_BLOCKS:
        array[:] = blocks.opened(encoded).reshape(-1)[: array.size]
    else:
        array[:] = _widened(dtype, encoded)


def _encode_with_kernel(dtype: str, array: Floats, carried: Floats | None, lost: Floats | None, out: Bytes) -> None:
    source, target, elements = array, out, array.size
    nothing = np.empty(1, np.float32)
    before = nothing if carried is None else carried
    added = cython.NULL if carried is None else cython.address(before[0])
    after = nothing if lost is None else lost
    kept = cython.NULL if lost is None else cython.address(after[0])
    codec = tb_codec_for(_DTYPES.index(dtype))  # type: ignore[name-defined]  # noqa: F821
    with cython.nogil:
        codec.encode(cython.address(target[0]), cython.address(source[0]), added, kept, elements)


def _decode_with_kernel(dtype: str, encoded: Bytes, array: Floats) -> None:
    source, target, elements = encoded, array, array.size
    codec = tb_codec_for(_DTYPES.index(dtype))  # type: ignore[name-defined]  # noqa: F821
    with cython.nogil:
        codec.decode(cython.address(target[0]), cython.address(source[0]), elements)


def _encode_with_numpy(dtype: str, array: Floats, carried: Floats | None, lost: Floats | None, out: Bytes) -> None:
    with np.errstate(all="ignore"):
        wanted = array if carried is None else array + carried
        if dtype == INT8_BLOCKS:
            blocks.encode(wanted, lost, out)
            return
        _narrow(dtype, wanted, out)
        if lost is not None:
            lost[:] = np.where(np.isfinite(wanted), wanted - _widened(dtype, out), np.float32(0))


def _narrow(dtype: str, wanted: Floats, out: Bytes) -> None:
    largest = _LARGEST[dtype]
    within = np.where(np.isfinite(wanted), np.clip(wanted, -largest, largest), wanted)
    if dtype == "float16":
        out.view(np.float16)[:] = within
        return
    bits = within.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    out.view(np.uint16)[:] = np.where(np.isnan(wanted), np.uint32(0x7FC0), rounded)


def _widened(dtype: str, encoded: Bytes) -> Floats:
    if dtype == "float16":
        return encoded.view(np.float16).astype(np.float32)
    return (encoded.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
