"""One state for all ranks: whose it is, what is filled in place, and what does not fit."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import clients
from clients.collectives.state_sync import fill, mismatch, snapshot
from tests.clients.conftest import Connect
from tests.clients.test_groups import PATIENCE_S, on_all_ranks, schedule  # noqa: F401 (a fixture)


def state_of(rank: int) -> dict[str, object]:
    """A state whose every number says whose it is."""
    return {
        "model": {"weight": np.full((3, 2), rank, np.float32), "bias": np.full(4, rank, ">f8")[::2]},
        "moments": [np.full(100_000, rank), np.full((), rank, np.int16)],
        "epoch": rank,
        "name": f"of rank {rank}",
    }


@pytest.mark.parametrize(("steps", "source"), [((5, 9, 9), 1), ((0, 0, 0), 0), ((1, 0, 7), 2)])
def test_all_get_the_state_of_the_furthest_and_of_several_of_the_lowest(
    connect: Connect, steps: tuple[int, ...], source: int
) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        state = state_of(group.rank)
        weight, bias, moment = state["model"]["weight"], state["model"]["bias"], state["moments"][0]
        synced = group.sync_state(state, steps[group.rank])
        assert synced.state is state
        assert state["model"]["weight"] is weight
        assert (weight == source).all()
        assert bias.tolist() == [source, source]
        assert (moment == source).all()
        return synced.step, synced.rank, state["epoch"], state["name"], int(state["moments"][1])

    expected = (max(steps), source, source, f"of rank {source}", source)
    assert on_all_ranks(connect, 3, work) == [expected] * 3


def test_a_rank_without_a_state_gets_one_whatever_the_steps_are(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        state = None if group.rank == 0 else {"weight": np.arange(3.0), "step": 0}
        synced = group.sync_state(state, 0 if group.rank else 99)
        return synced.step, synced.rank, synced.state["weight"].tolist(), synced.state["weight"].flags.writeable

    assert on_all_ranks(connect, 2, work) == [(0, 1, [0.0, 1.0, 2.0], True)] * 2


def test_when_nobody_has_a_state_all_are_told(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        with pytest.raises(clients.CollectiveError, match="no rank has a state"):
            group.sync_state(None)
        return group.all_reduce(np.ones(1)).tolist()

    assert on_all_ranks(connect, 2, work) == [[2.0]] * 2


def test_a_state_that_does_not_fit_is_named_where_it_does_not_and_changes_nothing(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank == 0:
            return group.sync_state({"a": np.ones(2), "model": {"weight": np.ones((2, 3))}}, 1).rank
        state = {"a": np.zeros(2), "model": {"weight": np.zeros((3, 2))}}
        with pytest.raises(clients.StateMismatchError, match=r"float64\[3, 2\] here and float64\[2, 3\]") as caught:
            group.sync_state(state)
        return caught.value.place, caught.value.rank, state["a"].tolist()

    assert on_all_ranks(connect, 2, work) == [0, ("state['model']['weight']", 0, [0.0, 0.0])]


def test_a_change_of_the_members_leaves_every_state_as_it_was(connect: Connect) -> None:
    def work(group: clients.Group, bus: clients.Client) -> object:
        group.barrier()
        if group.rank == 2:
            bus.close()
            return "closed"
        state = {"weight": np.full(2, group.rank)}
        with pytest.raises(clients.GenerationChangedError):
            group.sync_state(state, group.rank, timeout_s=PATIENCE_S)
        kept = state["weight"].tolist()
        return kept, group.sync_state(state, group.rank).step, state["weight"].tolist()

    assert on_all_ranks(connect, 3, work) == [([0, 0], 1, [1, 1]), ([1, 1], 1, [1, 1]), "closed"]


def test_one_rank_makes_all_meet_without_anybody_leaving(connect: Connect) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        group.barrier()
        if group.rank == 1:
            group.regroup()
        with pytest.raises(clients.GenerationChangedError) as caught:
            group.all_reduce(np.ones(1), timeout_s=PATIENCE_S)
        state = {"weight": np.full(1, group.rank)}
        return caught.value.lost_ranks, group.sync_state(state, group.rank).step, group.ranks

    assert on_all_ranks(connect, 3, work) == [([], 2, (0, 1, 2))] * 3


@pytest.mark.parametrize("step", [-1, 1.5, "1"])
def test_a_step_that_is_none_is_refused_before_anything_is_sent(connect: Connect, step: object) -> None:
    def work(group: clients.Group, _: clients.Client) -> object:
        with pytest.raises(clients.InvalidValue, match="step"):
            group.sync_state({}, step)
        return group.sync_state({"weight": np.ones(1)}, 3).step

    assert on_all_ranks(connect, 2, work) == [3, 3]


def test_late_ranks_are_named(connect: Connect) -> None:
    proceed = threading.Event()

    def work(group: clients.Group, _: clients.Client) -> object:
        if group.rank:
            proceed.wait(PATIENCE_S)
            return None
        with pytest.raises(clients.RankTimeoutError) as caught:
            group.sync_state({"weight": np.ones(1)}, timeout_s=0.2)
        proceed.set()
        return caught.value.missing_ranks

    assert on_all_ranks(connect, 2, work) == [[1], None]


# Pure: what fits where.


@pytest.mark.parametrize(
    ("own", "received", "place"),
    [
        ({"a": np.ones(2)}, {}, "state['a']"),
        ({"a": np.ones(2)}, None, "state['a']"),
        ([np.ones(2), np.ones(3)], [np.ones(2)], "state"),
        ([[np.ones(2)]], [[np.ones(2, np.float32)]], "state[0][0]"),
        ((np.ones(2), {"b": np.ones(1)}), [np.ones(2), {"b": 1.0}], "state[1]['b']"),
        (np.frombuffer(b"12345678"), np.ones(1), "state"),
    ],
)
def test_every_array_of_ones_own_has_to_be_filled(own: object, received: object, place: str) -> None:
    told = mismatch(own, received)
    assert told is not None
    assert told[0] == place


def test_what_is_new_or_no_array_needs_no_counterpart() -> None:
    own = {"a": np.zeros(2), "old": 1, "list": [1, 2]}
    received = {"a": np.ones(2), "new": {"b": np.ones(1)}, "list": [3]}
    assert mismatch(own, received) is None
    filled = fill(own, received)
    assert filled is own
    assert own["a"].tolist() == [1.0, 1.0]
    assert own["new"]["b"].tolist() == [1.0]
    assert (own["list"], "old" in own) == ([3], False)


def test_a_snapshot_shares_nothing_with_its_state_and_brings_it_back() -> None:
    state = {"a": np.zeros(2), "b": [np.ones(1), 5], "c": (np.ones(2),)}
    array, before = state["a"], snapshot(state)
    state["a"] += 1
    state["b"][1] = 6
    state["b"].append(7)
    state["c"][0][:] = 9
    state["d"] = "new"
    fill(state, before)
    assert state["a"] is array
    assert array.tolist() == [0.0, 0.0]
    assert (state["b"][1:], "d" in state, state["c"][0].tolist()) == ([5], False, [1.0, 1.0])


def test_torch_tensors_are_filled_in_place() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'tensorbus[torch]'")
    state = {"weight": torch.zeros(3)}
    tensor = state["weight"]
    fill(state, {"weight": np.arange(3, dtype=np.float32)})
    assert state["weight"] is tensor
    assert tensor.tolist() == [0.0, 1.0, 2.0]
