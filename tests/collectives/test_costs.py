"""Which schedule the cost model takes."""

from __future__ import annotations

import pytest

from broker.collectives.costs import Wire, choose, halving_s, ring_s

MIB = 1 << 20


@pytest.mark.parametrize("ranks", [4, 8, 16, 64])
def test_short_arrays_go_by_halving_and_long_ones_by_the_ring(ranks: int) -> None:
    assert choose(1, ranks) == "halving"
    assert choose(64 * MIB, ranks) == "ring"


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("size_bytes", [1, 64 * MIB])
def test_two_or_three_ranks_are_a_ring(ranks: int, size_bytes: int) -> None:
    assert choose(size_bytes, ranks) == "ring"


@pytest.mark.parametrize("ranks", [5, 6, 7, 12])
def test_ranks_over_a_power_of_two_cost_halving_two_hops_and_the_array_twice(ranks: int) -> None:
    power = 1 << (ranks.bit_length() - 1)
    wire = Wire(hop_s=1.0, bytes_per_s=1.0, crowding=1.0)
    assert halving_s(100, ranks, wire) == pytest.approx(halving_s(100, power, wire) + 2 + 200)


def test_once_the_ring_is_quicker_it_stays_so() -> None:
    for ranks in range(2, 65):
        choices = [choose(1 << exponent, ranks) for exponent in range(34)]
        assert choices == sorted(choices), ranks


def test_a_ring_sends_each_byte_about_twice() -> None:
    wire = Wire(hop_s=0.0, bytes_per_s=1000.0)
    assert ring_s(4000, 4, wire) == pytest.approx(6.0)
