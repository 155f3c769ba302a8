"""Payloads in several places."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from broker.buffers import JOINED_BYTES_MAX, Buffer, Gathered, Pieces

LENGTHS = st.one_of(st.integers(0, 70), st.integers(JOINED_BYTES_MAX - 2, JOINED_BYTES_MAX + 2), st.just(20_000))


@given(st.lists(LENGTHS, max_size=12), st.lists(st.integers(1, 9000), min_size=1))
def test_the_pieces_of_a_payload_are_its_bytes_wherever_it_is_cut(lengths: list[int], cuts: list[int]) -> None:
    random = np.random.default_rng(0)
    gathered = Gathered([random.bytes(length) for length in lengths])
    assert len(gathered) == sum(lengths)
    pieces, taken, rest = Pieces(gathered), b"", len(gathered)
    while rest:
        for cut in cuts:
            buffers: list[Buffer] = []
            pieces.take(min(cut, rest), buffers)
            assert sum(map(len, buffers)) == min(cut, rest)
            taken += b"".join(buffers)
            rest -= min(cut, rest)
    assert taken == bytes(gathered)


def test_long_pieces_are_not_copied_and_short_ones_are_joined() -> None:
    long = bytearray(JOINED_BYTES_MAX * 3)
    buffers: list[Buffer] = []
    Pieces(Gathered([b"ab", memoryview(long), b"c", b"d", b"e"])).take(len(long) + 4, buffers)
    assert [len(buffer) for buffer in buffers] == [2, len(long), 2]
    long[0] = 7
    assert buffers[1][0] == 7
    assert buffers[2] == b"cd"


def test_a_payload_in_one_place_is_cut_without_copies() -> None:
    data = bytearray(100_000)
    pieces = Pieces(data)
    for start in (0, 40_000, 80_000):
        buffers: list[Buffer] = []
        pieces.take(min(40_000, len(data) - start), buffers)
        (piece,) = buffers
        data[start] = 9
        assert piece[0] == 9
