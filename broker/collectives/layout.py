"""Which bytes of an array travel in which round, and where each rank's shard lies. Both ends compute it from the claim.

An array of `array_bytes` moves in rounds of `chunk_bytes`. With three members and reduce_scatter, the shards lie across
the chunks; a rank receives in every round the part where the chunk and its shard meet, which may be empty:

    array    |<------------------- array_bytes ------------------->|
    rounds   |     0     |     1     |     2     |     3     |  4  |
    shards   |    position 0    |    position 1    |  position 2   |

A position is a rank's index among the ranks present, ascending: with ranks 0, 2 and 3 present, rank 3 has position 2.
"""

from __future__ import annotations


def chunk_bounds(round_number: int, chunk_bytes: int, array_bytes: int) -> tuple[int, int]:
    """The first byte of a round's chunk and the byte after its last, in the array; of no length beyond its end."""
    start = min(round_number * chunk_bytes, array_bytes)
    return start, min(start + chunk_bytes, array_bytes)


def shard_bounds(position: int, positions: int, array_bytes: int) -> tuple[int, int]:
    """The first byte of a position's shard and the byte after its last, in the array."""
    shard_bytes = array_bytes // positions
    return position * shard_bytes, (position + 1) * shard_bytes


def overlap(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    """Where two stretches of an array meet; of no length, and inside the second one, when they do not."""
    start = min(max(first[0], second[0]), second[1])
    return start, max(start, min(first[1], second[1]))
