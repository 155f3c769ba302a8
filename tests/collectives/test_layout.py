"""Which bytes travel in which round."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.collectives.layout import chunk_bounds, overlap, shard_bounds


def test_the_last_chunk_may_be_shorter() -> None:
    assert [chunk_bounds(number, 64, 150) for number in range(3)] == [(0, 64), (64, 128), (128, 150)]


def test_shards_follow_one_another() -> None:
    assert [shard_bounds(position, 3, 36) for position in range(3)] == [(0, 12), (12, 24), (24, 36)]


def test_stretches_that_do_not_meet_overlap_by_nothing_inside_the_second() -> None:
    assert overlap((0, 4), (8, 12)) == (8, 8)
    assert overlap((16, 20), (8, 12)) == (12, 12)


@given(st.integers(1, 5), st.integers(0, 60), st.integers(1, 40))
def test_the_parts_of_a_shard_make_up_the_shard(positions: int, shard_bytes: int, chunk_bytes: int) -> None:
    array_bytes = positions * shard_bytes
    rounds = max(1, -(-array_bytes // chunk_bytes))
    for position in range(positions):
        shard = shard_bounds(position, positions, array_bytes)
        parts = [overlap(chunk_bounds(number, chunk_bytes, array_bytes), shard) for number in range(rounds)]
        assert [byte for part in parts for byte in range(*part)] == list(range(*shard))
