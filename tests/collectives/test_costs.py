"""Which schedule the cost model takes."""

from __future__ import annotations

import pytest

from broker.collectives.costs import Wire, choose, halving_s, has_hierarchy, hierarchical_s, ring_s

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


def test_only_several_hosts_of_which_one_has_several_ranks_are_a_hierarchy() -> None:
    assert has_hierarchy("AABB")
    assert has_hierarchy("ABBC")
    assert not any(has_hierarchy(hosts) for hosts in ("", "A", "AA", "AB", "ABCD"))


@pytest.mark.parametrize("hosts", ["AABB", "ABAB", "AAB", "AABBCC", "ABCABCABC", "A" * 8 + "B" * 8])
def test_long_arrays_go_by_hosts_where_there_is_a_hierarchy(hosts: str) -> None:
    assert choose(64 * MIB, len(hosts), hosts) == "hierarchical"
    choices = [choose(1 << exponent, len(hosts), hosts) for exponent in range(34)]
    assert choices == sorted(choices, key=["halving", "ring", "hierarchical"].index)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 64])
def test_hosts_with_one_rank_each_and_one_host_are_as_ranks_of_which_nothing_is_known(ranks: int) -> None:
    for exponent in range(34):
        known = choose(1 << exponent, ranks)
        assert choose(1 << exponent, ranks, range(ranks)) == known
        assert choose(1 << exponent, ranks, [0] * ranks) == known


def test_by_hosts_each_byte_leaves_a_host_once() -> None:
    wire = Wire(hop_s=0.0, bytes_per_s=1000.0)
    assert hierarchical_s(4000, 2, 4, wire) == pytest.approx(4.0, rel=1e-3)
    assert ring_s(4000, 8, wire, sharing=4) == pytest.approx(28.0)


def test_inside_a_host_bytes_take_their_time_too() -> None:
    slow = Wire(hop_s=0.0, bytes_per_s=100.0)
    assert hierarchical_s(4000, 2, 2, Wire(), slow) == pytest.approx(40.0, rel=1e-3)
