"""all_reduce with a quorum, with both kinds of client: who took part, what late ranks get, learned deadlines."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import clients
from broker.collectives.claims import Quorum
from broker.collectives.member import Member
from clients.collectives.partial import Terms
from tests.clients.conftest import Connect
from tests.clients.test_groups import PATIENCE_S, on_all_ranks, schedule  # noqa: F401 (a fixture)

LONG_S = 60.0
"""A deadline that no test waits out, unless it fails."""


def test_when_all_come_everybody_is_in_the_result(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array = np.full(100_000, group.rank + 1.0)
        part = group.all_reduce(array, "mean", quorum=0.6, deadline=LONG_S)
        assert part.array is array
        assert (array == 2).all()
        return part.ranks, part.carried_ranks, part.behind, part.late, part.contributions

    assert on_all_ranks(connect, 3, work) == [((0, 1, 2), (), 0, False, 3)] * 3


@pytest.mark.parametrize("elements", [3, 300_000])
def test_a_late_rank_ends_with_the_same_bits_and_is_in_the_next_result(connect: Connect, elements: int) -> None:
    over = threading.Barrier(3)

    def work(group: clients.Group, _: clients.Client) -> object:
        array = np.full(elements, 10.0**group.rank)
        if group.rank == 2:
            over.wait(PATIENCE_S)
        first = group.all_reduce(array, quorum=2, deadline=0.05)
        if group.rank != 2:
            over.wait(PATIENCE_S)
        told = first.array[-1], first.ranks, first.late
        # Only now is the late one's array in the broker.
        group.barrier()
        array[:] = 1.0
        second = group.all_reduce(array, quorum=3, deadline=LONG_S)
        return told, (second.array[0], second.ranks, second.carried_ranks, second.contributions)

    in_time, late = (11.0, (0, 1), False), (11.0, (0, 1), True)
    after = (103.0, (0, 1, 2), (2,), 4)
    assert on_all_ranks(connect, 3, work) == [(in_time, after), (in_time, after), (late, after)]


def test_a_late_rank_may_want_its_array_to_be_dropped(connect: Connect) -> None:
    over = threading.Barrier(2)

    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank:
            over.wait(PATIENCE_S)
        group.all_reduce(np.full(3, 100.0), quorum=1, deadline=0.02, late="drop")
        if not group.rank:
            over.wait(PATIENCE_S)
        group.barrier()
        part = group.all_reduce(np.ones(3), quorum=1.0, deadline=LONG_S)
        return part.array[0], part.carried_ranks

    assert on_all_ranks(connect, 2, work) == [(2.0, ())] * 2


def test_a_rank_catches_up_without_contributing(connect: Connect) -> None:
    over = threading.Barrier(3)

    def work(group: clients.Group, _: clients.Client) -> object:
        seen = []
        if group.rank == 2:
            over.wait(PATIENCE_S)
        for step in range(4):
            catching_up = group.rank == 2
            part = group.all_reduce(np.full(2, step + 1.0), quorum=2, deadline=0.02, contribute=not catching_up)
            seen.append((part.array[0], part.ranks, part.behind))
        if group.rank != 2:
            over.wait(PATIENCE_S)
        return seen

    first, second, third = on_all_ranks(connect, 3, work)
    assert first == second == [(2.0 * (step + 1), (0, 1), 0) for step in range(4)]
    assert third == [(2.0 * (step + 1), (0, 1), 3 - step) for step in range(4)]


def test_with_a_learned_deadline_the_others_go_on_without_a_rank_that_stays_away(connect: Connect) -> None:
    over = threading.Barrier(3)

    def work(group: clients.Group, _: clients.Client) -> object:
        for _ in range(8):
            group.all_reduce(np.ones(2), quorum=3, timeout_s=PATIENCE_S)
        if group.rank == 2:
            over.wait(PATIENCE_S)
        part = group.all_reduce(np.ones(2), quorum=2, timeout_s=PATIENCE_S)
        if group.rank != 2:
            over.wait(PATIENCE_S)
        return part.ranks

    assert on_all_ranks(connect, 3, work) == [(0, 1)] * 3


def test_works_finish_in_any_order_and_say_who_took_part(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        arrays = [np.full(50_000, float(number)) for number in range(4)]
        works = [
            group.all_reduce(array, async_op=True, quorum=1.0, deadline=LONG_S, name=str(number))
            for number, array in enumerate(arrays)
        ]
        parts = [pending.wait(timeout_s=PATIENCE_S) for pending in reversed(works)]
        assert all(part.ranks == (0, 1) for part in parts)
        return [int(array[0]) for array in arrays]

    assert on_all_ranks(connect, 2, work) == [[0, 2, 4, 6]] * 2


def test_calls_with_and_without_a_quorum_keep_their_order(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        values = []
        for step in range(10):
            partial = group.all_reduce(np.full(2, step), quorum=2, deadline=LONG_S)
            values += [int(partial.array[0]), int(group.all_reduce(np.full(2, step))[0])]
        return values

    expected = [2 * step for step in range(10) for _ in range(2)]
    assert on_all_ranks(connect, 2, work) == [expected] * 2


def test_a_lost_rank_ends_the_call_and_the_survivors_go_on(connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        group.barrier()
        if group.rank == 1:
            bus.close()
            return "closed"
        with pytest.raises(clients.GenerationChangedError) as caught:
            group.all_reduce(np.ones(3), quorum=3, deadline=LONG_S, timeout_s=PATIENCE_S)
        part = group.all_reduce(np.ones(3), quorum=0.5, deadline=LONG_S)
        return caught.value.lost_ranks, part.ranks, part.array.tolist()

    survivor = ([1], (0, 2), [2.0, 2.0, 2.0])
    assert on_all_ranks(connect, 3, work) == [survivor, "closed", survivor]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"quorum": 0}, "quorum"),
        ({"quorum": 1.5}, "is a share over 1"),
        ({"quorum": True}, "quorum"),
        ({"quorum": "all"}, "quorum"),
        ({"quorum": 5}, "from 1 to 1 ranks"),
        ({"quorum": 1, "deadline": "soon"}, "deadline"),
        ({"quorum": 1, "deadline": 0}, "deadline"),
        ({"quorum": 1, "deadline": float("nan")}, "deadline"),
        ({"quorum": 1, "late": "keep"}, "late"),
        ({"quorum": 1, "name": 3}, "name"),
        ({"quorum": 1, "op": "max"}, "sum or mean only"),
    ],
)
def test_arguments_that_cannot_be_are_refused_at_once(
    connect: Connect, options: dict[str, object], problem: str
) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        with pytest.raises(clients.InvalidValue, match=problem):
            group.all_reduce(np.ones(2), **options)
        return group.all_reduce(np.ones(2), quorum=1).array.tolist()

    assert on_all_ranks(connect, 1, work) == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("quorum", "present", "ranks"),
    [(0.75, 4, 3), (0.75, 3, 3), (0.5, 3, 2), (1.0, 7, 7), (0.01, 5, 1), (0.7, 10, 7), (3, 4, 3)],
)
def test_a_share_is_rounded_up_to_ranks(quorum: float, present: int, ranks: int) -> None:
    member = Member("dp", 0, present, 1, range(present))
    terms = Terms(quorum, 0.25, "drop", "layer.0", contribute=False)
    assert terms.of(member) == Quorum(ranks, 250_000_000, carry=False, abstains=True, name="layer.0")
