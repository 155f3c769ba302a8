"""Trainers: reducing through losses, late ranks and a new broker; the state that everybody gets; stopping, reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

import clients
from tests.clients.ranks import PATIENCE_S, all_together, bus_of, embedded_url, running, trainers
from tests.clients.serving import ServingThread
from tests.loopback import own_host


@contextmanager
def group_of(url: str, count: int, **options: object) -> Iterator[list[clients.Trainer]]:
    members = trainers(url, count, **options)
    try:
        yield members
    finally:
        for member in members:
            bus_of(member).close()


def gradients_of(rank: int) -> list[np.ndarray]:
    return [np.full(3, rank + 1.0), np.full((2, 2), 10.0 * (rank + 1), np.float32)]


def reduce(trainer: clients.Trainer, op: str = "mean") -> Callable[[], list[np.ndarray]]:
    def call() -> list[np.ndarray]:
        gradients = gradients_of(trainer.rank)
        trainer.all_reduce_gradients(gradients, op)
        return gradients

    return call


def synchronise(trainer: clients.Trainer, step: int, array: np.ndarray) -> Callable[[], int]:
    return lambda: trainer.synchronise(step, [array])


def test_gradients_become_their_mean_in_place_on_every_rank() -> None:
    with group_of(embedded_url(), 3) as members:
        for first, second in all_together(*(reduce(member) for member in members)):
            assert first.tolist() == [2.0, 2.0, 2.0]
            assert second.tolist() == [[20.0, 20.0], [20.0, 20.0]]


def test_positions_are_the_indices_of_the_present_ranks() -> None:
    with group_of(embedded_url(), 3) as members:
        assert [(member.rank, member.position, member.ranks) for member in members] == [
            (rank, rank, (0, 1, 2)) for rank in range(3)
        ]


def test_survivors_of_a_lost_rank_carry_on_in_the_same_call_and_learn_who_is_lost() -> None:
    told: list[tuple[int, list[int]]] = []
    with group_of(embedded_url(), 3, on_change=lambda rank, change: told.append((rank, change.lost_ranks))) as members:
        with running() as start:
            waiting = [start(reduce(member, "sum")) for member in (members[0], members[2])]
            bus_of(members[1]).close()
            for future in waiting:
                assert future.result(PATIENCE_S)[0].tolist() == [4.0, 4.0, 4.0]
        assert sorted(told) == [(0, [1]), (2, [1])]
        assert [member.ranks for member in (members[0], members[2])] == [(0, 2), (0, 2)]
        assert members[2].position == 1


def test_a_rank_that_leaves_is_lost_to_the_others() -> None:
    with group_of(embedded_url(), 2) as members:
        members[1].leave()
        assert reduce(members[0])()[0].tolist() == [1.0, 1.0, 1.0]
        assert members[0].ranks == (0,)


@pytest.mark.parametrize(
    ("steps", "source"),
    [([0, 0, 0], 0), ([3, 7, 7], 1), ([4, 4, 9], 2)],
)
def test_everybody_gets_the_state_of_the_lowest_of_the_ranks_that_have_come_furthest(
    steps: list[int], source: int
) -> None:
    with group_of(embedded_url(), 3) as members:
        arrays = [np.full(4, 100.0 * rank) for rank in range(3)]
        calls = [synchronise(*each) for each in zip(members, steps, arrays, strict=True)]
        assert all_together(*calls) == [max(steps)] * 3
        assert [array.tolist() for array in arrays] == [[100.0 * source] * 4] * 3


def test_a_late_rank_gets_the_state_of_the_others_and_all_go_on() -> None:
    url = embedded_url()
    with group_of(url, 2) as members:
        bus_of(members[1]).close()
        reduce(members[0])()
        with clients.connect(url) as bus:
            late = clients.Trainer(bus, world_size=2, timeout_s=PATIENCE_S)
            assert (late.rank, late.ranks) == (1, (0, 1))
            gradients = gradients_of(0)
            with pytest.raises(clients.GenerationChangedError):
                members[0].all_reduce_gradients(gradients)
            assert gradients[0].tolist() == [1.0, 1.0, 1.0]
            arrays = [np.full(4, 5.0), np.zeros(4)]
            calls = [synchronise(members[0], 12, arrays[0]), synchronise(late, 0, arrays[1])]
            assert all_together(*calls) == [12, 12]
            assert arrays[1].tolist() == [5.0] * 4
            for reduced in all_together(reduce(members[0]), reduce(late)):
                assert reduced[0].tolist() == [1.5, 1.5, 1.5]


def test_whoever_comes_after_the_training_is_told_so_and_does_not_train_alone() -> None:
    url = embedded_url()
    with group_of(url, 2) as members:
        bus_of(members[1]).close()
        reduce(members[0])()
        members[0].finish()
        with clients.connect(url) as bus, pytest.raises(clients.GroupFinishedError):
            clients.Trainer(bus, world_size=2, timeout_s=PATIENCE_S)


def test_a_rank_that_was_lost_and_replaced_unseen_is_not_mistaken_for_a_loss() -> None:
    url = embedded_url()
    with group_of(url, 2) as members:
        bus_of(members[1]).close()
        with clients.connect(url) as bus:
            late = clients.Trainer(bus, world_size=2, rank=1, timeout_s=PATIENCE_S)
            # With everything read that the broker has said, rank 0 sees loss and admission as one change.
            bus_of(members[0]).flush()
            with pytest.raises(clients.GenerationChangedError) as caught:
                members[0].all_reduce_gradients(gradients_of(0))
            assert (caught.value.lost_ranks, caught.value.ranks) == ([1], [0, 1])
            arrays = [np.ones(2), np.zeros(2)]
            assert all_together(synchronise(members[0], 3, arrays[0]), synchronise(late, 0, arrays[1])) == [3, 3]
            assert arrays[1].tolist() == [1.0, 1.0]


def test_a_rank_that_is_lost_while_all_synchronise_is_left_out() -> None:
    with group_of(embedded_url(), 3) as members:
        arrays = [np.full(2, float(rank)) for rank in range(3)]
        with running() as start:
            waiting = [start(synchronise(members[rank], rank, arrays[rank])) for rank in (0, 1)]
            bus_of(members[2]).close()
            assert [future.result(PATIENCE_S) for future in waiting] == [1, 1]
        assert arrays[0].tolist() == [1.0, 1.0]


def test_trainers_go_on_with_a_new_broker() -> None:
    with ServingThread(f"tcp://{own_host()}:0") as broker:
        url = broker.url
        members = trainers(url, 2)
        all_together(*(reduce(member) for member in members))
    for member in members:
        # Over links they could go on without the broker until they hear of its end.
        while bus_of(member).connected:
            with pytest.raises((clients.ConnectionClosed, clients.TimeoutError)):
                bus_of(member).flush(timeout_s=0.1)

    def go_on(trainer: clients.Trainer) -> tuple[int, list[np.ndarray]]:
        # The broker died after one rank had its result and before the other had.
        step, array = trainer.rank, np.array([float(trainer.rank)])
        with pytest.raises(clients.GenerationChangedError):
            trainer.all_reduce_gradients(gradients_of(trainer.rank))
        return trainer.synchronise(step, [array]), [array, *reduce(trainer)()]

    with ServingThread(url):
        for step, arrays in all_together(*(lambda member=member: go_on(member) for member in members)):
            assert step == 1
            assert arrays[0].tolist() == [1.0]
            assert arrays[1].tolist() == [1.5, 1.5, 1.5]
        for member in members:
            bus_of(member).close()


def test_a_place_that_the_broker_still_holds_for_the_old_connection_is_waited_for() -> None:
    with ServingThread(f"tcp://{own_host()}:0") as broker:
        url = broker.url
        (member,) = trainers(url, 1)
    with ServingThread(url), clients.connect(url) as bus:
        stranger = bus.group("train", world_size=1, rank=0)
        with running() as start:
            future = start(reduce(member))
            with pytest.raises(TimeoutError):
                future.result(0.3)
            stranger.leave()
            with pytest.raises(clients.GenerationChangedError):
                future.result(PATIENCE_S)
        assert reduce(member)()[0].tolist() == [1.0, 1.0, 1.0]
        bus_of(member).close()


def test_a_closed_client_ends_every_call() -> None:
    with group_of(embedded_url(), 1) as (member,):
        bus_of(member).close()
        with pytest.raises(clients.ConnectionClosed):
            member.all_reduce_gradients(gradients_of(0))
        with pytest.raises(clients.ConnectionClosed):
            member.synchronise(0, gradients_of(0))


@pytest.mark.parametrize("topic", ["control/stop", "control/train/stop", "control/trainer-0/stop"])
def test_a_trainer_is_told_to_stop(topic: str) -> None:
    url = embedded_url()
    with group_of(url, 2) as members, clients.connect(url) as bus:
        bus.publish("control/trainer-9/stop", None, ack="accepted")
        bus.publish("control/pace", 3, ack="accepted")
        all_together(*(reduce(member) for member in members))
        assert not members[0].stopping
        bus.publish(topic, None, ack="accepted")
        # Over links no step waits for what the broker sends, so it may be seen in a later one.
        for _ in range(1000):
            all_together(*(reduce(member) for member in members))
            if members[0].stopping:
                break
        assert members[0].stopping


def test_a_report_is_published_below_metrics() -> None:
    url = embedded_url()
    with group_of(url, 1) as (member,), clients.connect(url) as bus, bus.subscribe("metrics/#") as subscription:
        member.report(4, loss=0.5, step_time_s=0.02, samples=64, compute_time_s=0.01, values={"accuracy": 0.9})
        message = subscription.next(timeout_s=PATIENCE_S)
        assert message.topic == "metrics/trainer-0"
        assert message.value == {
            "group": "train",
            "rank": 0,
            "step": 4,
            "loss": 0.5,
            "step_time_s": 0.02,
            "samples": 64,
            "compute_time_s": 0.01,
            "accuracy": 0.9,
        }
