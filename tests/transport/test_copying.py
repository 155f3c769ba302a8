"""Copies into shared memory, short ones and those that go past the caches."""

from __future__ import annotations

import numpy as np
import pytest

from broker.limits import STREAMED_BYTES_MIN
from broker.transport.copying import copy


@pytest.mark.parametrize("offset", [0, 1, 63])
@pytest.mark.parametrize(
    "size",
    [0, 1, 4096, STREAMED_BYTES_MIN - 1, STREAMED_BYTES_MIN, STREAMED_BYTES_MIN + 77, 2 * STREAMED_BYTES_MIN - 1],
)
def test_every_byte_is_copied_and_no_other_is_touched(size: int, offset: int) -> None:
    source = np.random.default_rng(size).integers(0, 255, size + offset, np.uint8)[offset:]
    source.flags.writeable = False
    memory = np.full(size + 200, 7, np.uint8)
    copy(memory[100 - offset : 100 - offset + size], source)
    assert np.array_equal(memory[100 - offset : 100 - offset + size], source)
    assert (memory[: 100 - offset] == 7).all()
    assert (memory[100 - offset + size :] == 7).all()


@pytest.mark.parametrize("after", [1, 16, 31])
@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 2048, 5000])
def test_a_target_a_little_after_its_source_pages_aside_gets_every_byte_and_nothing_else(size: int, after: int) -> None:
    memory = np.random.default_rng(size).integers(0, 255, 6 * 4096, np.uint8)
    wanted = memory.copy()
    wanted[3 * 4096 + after :][:size] = memory[:size]
    copy(memory[3 * 4096 + after :][:size], memory[:size])
    assert np.array_equal(memory, wanted)


def test_different_lengths_are_refused() -> None:
    for size in (10, STREAMED_BYTES_MIN):
        with pytest.raises(ValueError, match=r"copy|broadcast"):
            copy(np.zeros(size - 1, np.uint8), np.ones(size, np.uint8))
