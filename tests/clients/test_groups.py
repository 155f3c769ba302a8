"""Collectives with both kinds of client, over every transport."""

from __future__ import annotations

import threading
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

import clients
from tests.clients.conftest import Connect

PATIENCE_S = 60.0


@pytest.fixture(params=["star", "auto", "ring", "halving"], autouse=True)
def schedule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the groups of `on_all_ranks` carry out their operations: auto is shm where the ranks share memory."""
    if request.param in ("ring", "halving"):
        request.getfixturevalue("links")
    monkeypatch.setitem(OPTIONS, "schedule", request.param)
    return str(request.param)


OPTIONS = {"schedule": "auto"}


def on_all_ranks(
    connect: Connect, world_size: int, work: Callable[[clients.Group, clients.Client], object], name: str = "dp"
) -> list[object]:
    """What `work` returned or raised on each rank. What pytest itself raises there, as `fail` does, is raised here."""
    outcomes: list[object] = [None] * world_size
    verdicts: list[BaseException] = []
    buses = [connect(f"rank-{rank}") for rank in range(world_size)]

    def run(rank: int) -> None:
        try:
            group = buses[rank].group(name, world_size=world_size, rank=rank, timeout_s=PATIENCE_S, **OPTIONS)
            outcomes[rank] = work(group, buses[rank])
        except Exception as error:
            outcomes[rank] = error
        except BaseException as verdict:
            verdicts.append(verdict)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive(), "a rank hangs"
    if verdicts:
        raise verdicts[0]
    return outcomes


def test_a_reduce_scatter_for_members_that_are_gone_is_told_of_the_change(connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        group.barrier()
        if group.rank == 2:
            group.leave()
            return "left"
        # The change is here, and nobody has been told of it.
        while len(group.ranks) == 3:
            bus.flush()
        with pytest.raises(clients.GenerationChangedError):
            group.reduce_scatter(np.ones(3), timeout_s=PATIENCE_S)
        with pytest.raises(clients.InvalidValue, match="not divisible by the 2 ranks"):
            group.reduce_scatter(np.ones(3), timeout_s=PATIENCE_S)
        return "told"

    assert on_all_ranks(connect, 3, work) == ["told", "told", "left"]


@pytest.mark.parametrize("op", ["sum", "mean", "min", "max", "product"])
@pytest.mark.parametrize("elements", [1, 100_000])
def test_all_reduce_gives_all_ranks_the_same_bits(connect: Connect, op: str, elements: int) -> None:
    inputs = [np.random.default_rng(rank).standard_normal(elements) for rank in range(3)]
    expected = {
        "sum": inputs[0] + inputs[1] + inputs[2],
        "mean": (inputs[0] + inputs[1] + inputs[2]) / 3,
        "min": np.minimum.reduce(inputs),
        "max": np.maximum.reduce(inputs),
        "product": inputs[0] * inputs[1] * inputs[2],
    }[op]
    work = lambda group, _: (group.schedule, group.all_reduce(inputs[group.rank].copy(), op=op))  # noqa: E731
    results = on_all_ranks(connect, 3, work)
    for used, result in results:
        # Over links each part of the array is summed in an order of its own, which is the same on all ranks.
        assert np.array_equal(result, expected if used in ("shm", "star") else results[0][1])
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-13)


def test_every_kind_of_collective(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        rank = group.rank
        broadcast = group.broadcast(np.full((3, 2), rank), root=1)
        gathered = group.all_gather(np.array([rank, -rank]))
        shard = group.reduce_scatter(np.arange(8.0).reshape(4, 2))
        group.barrier()
        return broadcast.tolist(), [part.tolist() for part in gathered], shard.tolist()

    assert on_all_ranks(connect, 2, work) == [
        ([[1, 1]] * 3, [[0, 0], [1, -1]], [[0.0, 2.0], [4.0, 6.0]]),
        ([[1, 1]] * 3, [[0, 0], [1, -1]], [[8.0, 10.0], [12.0, 14.0]]),
    ]


def test_all_reduce_changes_strided_and_big_endian_arrays_in_place(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        strided = np.ones((6, 6))[::2, 1:4]
        swapped = np.ones(5, ">f4")
        half = np.full(7, 1.5, np.float16)
        brain = np.full(7, 1.5, ml_dtypes.bfloat16)
        for array in (strided, swapped, half, brain):
            assert group.all_reduce(array) is array
        return [array.astype(float).ravel().tolist() for array in (strided, swapped, half, brain)]

    assert on_all_ranks(connect, 2, work) == [[[2.0] * 9, [2.0] * 5, [3.0] * 7, [3.0] * 7]] * 2


def test_works_overlap_and_may_be_waited_for_in_any_order(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        arrays = [np.full(200_000, group.rank + number) for number in range(6)]
        works = [group.all_reduce(array, async_op=True) for array in arrays]
        for pending in reversed(works):
            pending.wait(timeout_s=PATIENCE_S)
        assert all(pending.done for pending in works)
        return [int(array[-1]) for array in arrays]

    assert on_all_ranks(connect, 2, work) == [[1, 3, 5, 7, 9, 11]] * 2


def test_a_mismatch_fails_on_every_rank_and_names_each_claim(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        array = np.ones(4 + group.rank)
        with pytest.raises(clients.CollectiveMismatchError) as caught:
            group.all_reduce(array)
        assert (array == 1).all()
        total = group.all_reduce(np.ones(2))
        return caught.value.claims, total.tolist()

    claims = {0: "all_reduce sum float64 (4,)", 1: "all_reduce sum float64 (5,)"}
    assert on_all_ranks(connect, 2, work) == [(claims, [2.0, 2.0])] * 2


def test_a_rank_that_does_not_come_is_named_at_the_deadline(connect: Connect) -> None:
    proceed = threading.Event()

    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank == 1:
            proceed.wait(PATIENCE_S)
        # On a busy machine one of the other two may be late as well, and is named to all; then they try again.
        missing: list[int] = []
        while missing != [1]:
            with pytest.raises(clients.RankTimeoutError) as caught:
                group.all_reduce(np.ones(3), timeout_s=PATIENCE_S if group.rank == 1 else 0.2)
            missing = caught.value.missing_ranks
            assert 1 in missing
        proceed.set()
        return missing, isinstance(caught.value, TimeoutError)

    assert on_all_ranks(connect, 3, work) == [([1], True)] * 3


def test_survivors_learn_of_a_lost_rank_and_go_on(connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        group.barrier()
        if group.rank == 1:
            bus.close()
            return "closed"
        with pytest.raises(clients.GenerationChangedError) as caught:
            group.all_reduce(np.ones(100_000), timeout_s=PATIENCE_S)
        total = group.all_reduce(np.ones(3))
        return caught.value.lost_ranks, caught.value.generation, group.ranks, total.tolist()

    survivor = ([1], 2, (0, 2), [2.0, 2.0, 2.0])
    assert on_all_ranks(connect, 3, work) == [survivor, "closed", survivor]


def test_a_newcomer_is_let_in_between_operations(connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        if group.rank == 1:
            group.leave()
            # Over tls:// whoever asks for nothing is not linked.
            again = bus.group("dp", world_size=2, timeout_s=PATIENCE_S, schedule=OPTIONS["schedule"])
            return again.rank, again.all_reduce(np.ones(1), timeout_s=PATIENCE_S).tolist()
        changes = 0
        while True:
            try:
                total = group.all_reduce(np.ones(1), timeout_s=PATIENCE_S)
            except clients.GenerationChangedError:
                changes += 1
                continue
            if total[0] == 2:
                return changes, total.tolist()

    outcomes = on_all_ranks(connect, 2, work)
    assert outcomes[1] == (1, [2.0])
    assert outcomes[0][1] == [2.0]


def test_a_group_that_does_not_form_names_the_missing_ranks(bus: clients.Client) -> None:
    with pytest.raises(clients.RankTimeoutError) as caught:
        bus.group("lonely", world_size=3, rank=1, timeout_s=0.2)
    assert caught.value.missing_ranks == [0, 2]


def test_wrong_world_sizes_and_duplicate_ranks_are_refused(connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        group.barrier()
        if group.rank == 0:
            with pytest.raises(clients.CollectiveError, match="world_size 3 differs"):
                connect("wrong").group("dp", world_size=3, rank=2, timeout_s=PATIENCE_S)
            with pytest.raises(clients.CollectiveError, match="rank 1 is held"):
                connect("duplicate").group("dp", world_size=2, rank=1, timeout_s=PATIENCE_S)
        group.barrier()
        return "fine"

    assert on_all_ranks(connect, 2, work) == ["fine", "fine"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"world_size": 0}, "must be from 1"),
        ({"world_size": 2, "rank": 2}, "must be from 0 to 1"),
        ({}, "is needed"),
    ],
)
def test_impossible_places_are_refused_at_once(bus: clients.Client, arguments: dict[str, int], problem: str) -> None:
    with pytest.raises(clients.InvalidValue, match=problem):
        bus.group("dp", **arguments)


def test_arrays_that_cannot_be_reduced_are_refused_at_once(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        for array, problem in [
            ([1, 2], "not an array"),
            (np.array([object()]), "pickle"),
            (np.frombuffer(b"12345678", np.float64), "read-only"),
            (np.ones(3, bool), "bool has no arithmetic"),
        ]:
            with pytest.raises(clients.InvalidValue, match=problem):
                group.all_reduce(array)
        with pytest.raises(clients.InvalidValue, match="none of sum"):
            group.all_reduce(np.ones(2), op="median")
        return group.all_reduce(np.ones(1)).tolist()

    assert on_all_ranks(connect, 2, work) == [[2.0], [2.0]]


def test_bucketed_gradients_are_reduced_in_place(connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        gradients = [np.full(shape, float(group.rank)) for shape in ((3, 4), (5,), (300, 400))]
        if isinstance(group, clients.Group):
            group.all_reduce_many(gradients, op="mean")
        else:
            for gradient in gradients:
                group.all_reduce(gradient, op="mean")
        return [float(gradient.mean()) for gradient in gradients]

    assert on_all_ranks(connect, 2, work) == [[0.5, 0.5, 0.5]] * 2
