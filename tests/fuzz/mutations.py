"""Inputs for parsers: what real peers send, changed in the ways in which things go wrong or are made to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

INPUT_BYTES_MAX: Final = 4096
"""Longer inputs say little more and take longer; a corpus may hold longer ones."""
CHANGES_MAX: Final = 6
_BYTES: Final = bytes(
    (0, 1, 0x0A, 0x20, 0x23, 0x2B, 0x2F, 0x7F, 0x80, 0x93, 0xC0, 0xC1, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xFF)
)
"""Ends of ranges, wildcards and separators, and the bytes by which MessagePack announces long things."""
_NUMBERS: Final = (
    0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x40000, 0x40001, 0x100000, 0x100001, 0x7FFFFFFF, 0xFFFFFFFF,
    1 << 62, (1 << 62) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
"""Ends of ranges, and the limits of frames and one more."""


def _flip(data: bytearray, random: Random, corpus: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(data: bytearray, random: Random, corpus: Sequence[bytes]) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice(_BYTES)


def _number(data: bytearray, random: Random, corpus: Sequence[bytes]) -> None:
    size = random.choice((2, 4, 8))
    if len(data) >= size:
        start = random.randrange(len(data) - size + 1)
        number = random.choice(_NUMBERS) & ((1 << 8 * size) - 1)
        data[start : start + size] = number.to_bytes(size, random.choice(("little", "big")))


def _insert(data: bytearray, random: Random, corpus: Sequence[bytes]) -> None:
    start = random.randrange(len(data) + 1)
    data[start:start] = random.randbytes(random.choice((1, 1, 2, 4, 16)))


def _delete(data: bytearray, random: Random, corpus: Sequence[bytes]) -> None:
    if data:
        start = random.randrange(len(data))
        del data[start : start + random.choice((1, 1, 2, 4, 16, 64))]


def _repeat(data: bytearray, random: Random, corpus: Sequence[bytes]) -> None:
    if data:
        start = random.randrange(len(data))
        part = bytes(data[start : start + random.choice((1, 2, 4, 16, 64))])
        data[start:start] = part * random.choice((1, 1, 2, 8, 64))


def _cut(data: bytearray, random: Random, corpus: Sequence[bytes]) -> None:
    if data:
        del data[random.randrange(len(data)) :]


def _splice(data: bytearray, random: Random, corpus: Sequence[bytes]) -> None:
    other = random.choice(corpus)
    if other:
        start = random.randrange(len(other))
        data[random.randrange(len(data) + 1) :] = other[start:]


_CHANGES: Final[Sequence[Callable[[bytearray, Random, Sequence[bytes]], None]]] = (
    _flip, _flip, _set, _set, _number, _number, _insert, _delete, _repeat, _cut, _splice,
)  # fmt: skip


def mutated(corpus: Sequence[bytes], random: Random) -> bytes:
    """One of the corpus, changed one to six times."""
    data = bytearray(random.choice(corpus))
    for _ in range(1 + int(random.random() * CHANGES_MAX)):
        random.choice(_CHANGES)(data, random, corpus)
    return bytes(data[:INPUT_BYTES_MAX])
