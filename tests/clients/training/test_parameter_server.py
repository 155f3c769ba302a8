"""A parameter server: its three paces, what it does when ranks come, die or repeat themselves, and bad pushes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import clients
from tests.clients.ranks import PATIENCE_S, all_together, bus_of, embedded_url, running, trainers
from tests.clients.serving import ServingThread
from tests.loopback import own_host

QUICKLY_S = 0.1
"""How long something is watched that must not happen."""


def start_parameters() -> dict[str, np.ndarray]:
    return {"weight": np.arange(4.0).reshape(2, 2), "bias": np.zeros(2)}


def gradients_of(value: float) -> dict[str, np.ndarray]:
    return {"weight": np.full((2, 2), value), "bias": np.full(2, value)}


def pushing(trainer: clients.Trainer, value: float, step: int, samples: int = 1) -> Callable[[], int]:
    return lambda: trainer.push(gradients_of(value), step=step, samples=samples)


@contextmanager
def job(
    count: int, staleness: int | None, *, url: str = "", optimizer: clients.Optimizer | None = None
) -> Iterator[tuple[clients.ParameterServer, list[clients.Trainer]]]:
    url = url or embedded_url()
    with clients.connect(url, name="server") as bus:
        server = clients.ParameterServer(bus, start_parameters(), optimizer or clients.SGD(1.0), staleness=staleness)
        members = trainers(url, count)
        try:
            yield server, members
        finally:
            for member in members:
                bus_of(member).close()
            server.close()


def still_waits(future: Future[int]) -> bool:
    try:
        future.result(QUICKLY_S)
    except TimeoutError:
        return True
    return False


def test_a_pull_gives_the_parameters_their_version_and_the_step_to_push() -> None:
    with job(1, 0) as (_, (member,)):
        pulled = member.pull()
        assert {name: array.tolist() for name, array in pulled.parameters.items()} == {
            "weight": [[0.0, 1.0], [2.0, 3.0]],
            "bias": [0.0, 0.0],
        }
        assert (pulled.version, pulled.step) == (0, 0)
        assert member.push(gradients_of(1.0), step=0) == 1
        pulled = member.pull()
        assert (pulled.version, pulled.step) == (1, 1)
        assert pulled.parameters["bias"].tolist() == [-1.0, -1.0]


def test_another_server_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def optimizer() -> clients.Optimizer:
        return clients.SGD(1.0, momentum=0.5)

    url = embedded_url()
    with job(1, 0, url=url, optimizer=optimizer()) as (server, (member,)):
        for step in range(2):
            member.push(gradients_of(1.0), step=step)
        np.savez(tmp_path / "saved.npz", **server.checkpoint())
        member.push(gradients_of(1.0), step=2)
        expected = server.parameters()
        server.close()
        with (
            np.load(tmp_path / "saved.npz") as saved,
            clients.connect(url, name="another") as bus,
            clients.ParameterServer(bus, start_parameters(), optimizer(), checkpoint=saved) as other,
        ):
            assert other.version == 2
            with pytest.raises(clients.RequestFailed, match="must push step 2: pull first"):
                member.push(gradients_of(1.0), step=3)
            pulled = member.pull()
            assert (pulled.version, pulled.step) == (2, 2)
            assert member.push(gradients_of(1.0), step=2) == 3
            assert [array.tolist() for array in other.parameters().values()] == [
                array.tolist() for array in expected.values()
            ]


def test_a_checkpoint_takes_no_push_that_is_to_come_for_one_that_came() -> None:
    url = embedded_url()
    with job(2, None, url=url) as (server, (fast, slow)):
        for step in range(3):
            fast.push(gradients_of(1.0), step=step)
        slow.push(gradients_of(1.0), step=0)
        saved = server.checkpoint()
        server.close()
        with (
            clients.connect(url, name="another") as bus,
            clients.ParameterServer(bus, start_parameters(), clients.SGD(1.0), staleness=None, checkpoint=saved),
        ):
            assert slow.push(gradients_of(1.0), step=1) == 5
            with pytest.raises(clients.RequestFailed, match="must push step 1: pull first"):
                fast.push(gradients_of(1.0), step=3)


@pytest.mark.parametrize("saved", ["saved.npz", {"version": 0}, [np.zeros(2)]])
def test_what_is_no_checkpoint_is_refused(saved: object) -> None:
    with clients.connect(embedded_url(), name="server") as bus, pytest.raises(clients.InvalidValue, match="checkpoint"):
        clients.ParameterServer(bus, start_parameters(), clients.SGD(1.0), checkpoint=saved)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parameters", "optimizer", "problem"),
    [
        ({"weight": np.zeros((2, 2))}, clients.SGD(1.0), "are not those of a checkpoint"),
        (start_parameters(), clients.SGD(1.0, momentum=0.5), "are not those of a checkpoint"),
        ({"weight": np.zeros((2, 2)), "bias": np.zeros(3)}, clients.SGD(1.0), r"'parameters.bias' 'float64\[2\]'"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    parameters: dict[str, np.ndarray], optimizer: clients.Optimizer, problem: str
) -> None:
    with clients.connect(embedded_url(), name="server") as bus:
        with clients.ParameterServer(bus, start_parameters(), clients.SGD(1.0)) as server:
            saved = server.checkpoint()
        with pytest.raises(clients.InvalidValue, match=problem):
            clients.ParameterServer(bus, parameters, optimizer, checkpoint=saved)


def test_pulled_arrays_are_the_callers_own() -> None:
    with job(1, 0) as (server, (member,)):
        member.pull().parameters["weight"][...] = 99.0
        assert server.parameters()["weight"].tolist() == [[0.0, 1.0], [2.0, 3.0]]


def test_pulled_arrays_are_the_callers_own_also_when_they_came_in_shared_memory() -> None:
    url = embedded_url()
    with clients.connect(url, name="server") as bus, clients.ParameterServer(
        bus, {"weight": np.ones((100, 200)), "bias": np.zeros(2)}, clients.SGD(1.0)
    ) as server:  # fmt: skip
        (member,) = trainers(url, 1)
        with bus_of(member):
            pulled = member.pull()
            pulled.parameters["weight"][...] = 99.0
            pulled.parameters["bias"] += 1
            assert (server.parameters()["weight"] == 1).all()
            assert (member.pull().parameters["weight"] == 1).all()


def test_synchronous_gradients_of_a_step_become_one_step_of_their_mean() -> None:
    with job(3, 0) as (server, members):
        assert all_together(*(pushing(member, 3.0 * member.rank, 0) for member in members)) == [1, 1, 1]
        assert server.parameters()["bias"].tolist() == [-3.0, -3.0]


def test_samples_weigh_the_synchronous_mean() -> None:
    with job(2, 0) as (server, members):
        all_together(pushing(members[0], 8.0, 0, samples=1), pushing(members[1], 0.0, 0, samples=3))
        assert server.parameters()["bias"].tolist() == [-2.0, -2.0]


def test_the_order_in_which_ranks_push_does_not_change_a_bit() -> None:
    results = []
    random = np.random.default_rng(3)
    values = [float(value) for value in random.normal(size=4)]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        with job(4, 0) as (server, members), running() as start:
            futures = []
            for rank in order:
                futures.append(start(pushing(members[rank], values[rank], 0, samples=rank + 1)))
                # All but the last wait, so each has arrived before the next one pushes.
                assert len(futures) == 4 or still_waits(futures[-1])
            assert [future.result(PATIENCE_S) for future in futures] == [1, 1, 1, 1]
            results.append(server.parameters()["weight"].tobytes())
    assert results[0] == results[1]


def test_a_synchronous_push_waits_for_the_others() -> None:
    with job(2, 0) as (server, members), running() as start:
        first = start(pushing(members[0], 1.0, 0))
        assert still_waits(first)
        assert server.version == 0
        assert members[1].push(gradients_of(1.0), step=0) == 1
        assert first.result(PATIENCE_S) == 1


def test_a_rank_that_dies_is_waited_for_no_longer() -> None:
    with job(3, 0) as (server, members), running() as start:
        waiting = [start(pushing(member, 2.0, 0)) for member in members[:2]]
        assert still_waits(waiting[0])
        bus_of(members[2]).close()
        assert [future.result(PATIENCE_S) for future in waiting] == [1, 1]
        assert server.ranks == (0, 1)
        assert server.parameters()["bias"].tolist() == [-2.0, -2.0]


def test_a_trainer_learns_of_a_lost_rank_with_its_next_push() -> None:
    with job(2, None) as (server, members):
        bus_of(members[1]).close()
        step = 0
        while members[0].ranks == (0, 1):
            members[0].push(gradients_of(0.0), step=step)
            step += 1
        assert members[0].ranks == (0,)
        assert server.ranks == (0,)


def test_a_rank_that_has_replaced_a_lost_one_unseen_is_no_latecomer_when_the_others_finish() -> None:
    url = embedded_url()
    with job(2, None, url=url) as (_, members):
        bus_of(members[1]).close()
        with clients.connect(url) as bus:
            late = clients.Trainer(bus, world_size=2, rank=1, timeout_s=PATIENCE_S)
            # Rank 0 reads of the loss and of the admission together: its ranks are what they were.
            bus_of(members[0]).flush()
            members[0].pull()
            members[0].finish()
            assert members[0].generation == late.generation
            late.pull()
            late.finish()


def test_gradients_of_a_rank_that_died_are_dropped() -> None:
    with job(3, 0) as (server, members), running() as start:
        dying = start(pushing(members[2], 1e9, 0))
        assert still_waits(dying)
        bus_of(members[2]).close()
        assert isinstance(dying.exception(PATIENCE_S), clients.ConnectionClosed)
        all_together(*(pushing(member, 1.0, 0) for member in members[:2]))
        assert server.parameters()["bias"].tolist() == [-1.0, -1.0]


def test_asynchronous_pushes_wait_for_nobody() -> None:
    with job(2, None) as (server, members):
        assert [members[0].push(gradients_of(1.0), step=step) for step in range(5)] == [1, 2, 3, 4, 5]
        assert server.parameters()["bias"].tolist() == [-5.0, -5.0]
        assert members[1].pull().step == 0


def test_a_bounded_rank_is_at_most_its_staleness_ahead_of_the_slowest() -> None:
    with job(2, 2) as (server, members), running() as start:
        assert [members[0].push(gradients_of(1.0), step=step) for step in range(2)] == [1, 2]
        third = start(pushing(members[0], 1.0, 2))
        assert still_waits(third)
        assert server.version == 3
        assert members[1].push(gradients_of(1.0), step=0) == 4
        assert third.result(PATIENCE_S) == 4


def test_a_late_rank_begins_with_the_step_of_the_slowest() -> None:
    url = embedded_url()
    with job(3, 1, url=url) as (_, members):
        bus_of(members[2]).close()
        all_together(*(pushing(member, 1.0, 0) for member in members[:2]))
        all_together(*(pushing(member, 1.0, 1) for member in members[:2]))
        members[1].push(gradients_of(1.0), step=2)
        with clients.connect(url) as bus:
            late = clients.Trainer(bus, world_size=3, timeout_s=PATIENCE_S)
            assert (late.rank, late.pull().step) == (2, 2)


def test_a_push_that_is_repeated_counts_once() -> None:
    with job(1, None) as (server, (member,)):
        assert member.push(gradients_of(1.0), step=0) == 1
        assert member.push(gradients_of(1.0), step=0) == 1
        assert server.parameters()["bias"].tolist() == [-1.0, -1.0]


def test_a_push_that_runs_ahead_is_refused() -> None:
    with job(1, None) as (server, (member,)):
        with pytest.raises(clients.RequestFailed, match="has completed 0 steps"):
            member.push(gradients_of(1.0), step=3)
        assert server.version == 0


def test_gradients_that_do_not_fit_are_refused_here_and_by_the_server() -> None:
    url = embedded_url()
    with job(1, 0, url=url) as (server, (member,)), clients.connect(url) as bus:
        with pytest.raises(clients.InvalidValue, match="bias"):
            member.push({"weight": np.zeros((2, 2)), "bias": np.zeros(3)}, step=0)
        with pytest.raises(clients.InvalidValue, match=r"float64\[6\]"):
            member.push(np.zeros(5), step=0)
        headers = {"rank": "0", "step": "0"}
        for value, wrong, problem in [
            (np.zeros(5), headers, "float64"),
            ({"weight": np.zeros((2, 2))}, headers, "names"),
            (np.zeros(6), {"rank": "0"}, "header step"),
            (np.zeros(6), {**headers, "samples": "-1"}, "header samples"),
        ]:
            with pytest.raises(clients.RequestFailed, match=problem):
                bus.request("parameters/train/push", value, headers=wrong)
        assert server.version == 0


def test_arrays_by_name_may_be_pushed_by_any_client() -> None:
    url = embedded_url()
    with job(1, 0, url=url) as (server, _), clients.connect(url) as bus:
        bus.request("parameters/train/push", gradients_of(2.0), headers={"rank": "0", "step": "0"})
        assert server.parameters()["weight"].tolist() == [[-2.0, -1.0], [0.0, 1.0]]


def test_an_optimizer_on_the_server_keeps_its_state_from_step_to_step() -> None:
    with job(1, 0, optimizer=clients.SGD(1.0, momentum=0.5)) as (server, (member,)):
        for step in range(2):
            member.push(gradients_of(1.0), step=step)
        assert server.parameters()["bias"].tolist() == [-2.5, -2.5]


def test_a_large_vector_travels_whole() -> None:
    url = embedded_url()
    with clients.connect(url) as bus, clients.connect(url, name="trainer") as other:
        vector = np.random.default_rng(5).normal(size=300_000)
        with clients.ParameterServer(bus, {"all": vector}, clients.SGD(1.0)):
            member = clients.Trainer(other, world_size=1)
            assert member.pull().parameters["all"].tobytes() == vector.tobytes()
            member.push(vector, step=0)
            assert not member.pull().parameters["all"].any()


def test_a_server_that_starts_later_than_the_trainers_is_waited_for() -> None:
    url = embedded_url()
    (member,) = trainers(url, 1)
    with running() as start, clients.connect(url) as bus:
        future = start(member.pull)
        with pytest.raises(TimeoutError):
            future.result(QUICKLY_S)
        with clients.ParameterServer(bus, start_parameters(), clients.SGD(1.0)) as server:
            assert future.result(PATIENCE_S).version == 0
            assert server.ranks == (0,)
    bus_of(member).close()


def test_trainers_and_server_go_on_with_a_new_broker() -> None:
    with ServingThread(f"tcp://{own_host()}:0") as broker:
        url = broker.url
        bus = clients.connect(url, name="server")
        server = clients.ParameterServer(bus, start_parameters(), clients.SGD(1.0))
        members = trainers(url, 2)
        all_together(*(pushing(member, 1.0, 0) for member in members))
    with ServingThread(url):
        assert all_together(*(pushing(member, 1.0, 1) for member in members)) == [2, 2]
        assert server.parameters()["bias"].tolist() == [-2.0, -2.0]
        for member in members:
            bus_of(member).close()
        bus.close()


def test_a_closed_server_tells_those_who_wait() -> None:
    with job(2, 0) as (server, members), running() as start:
        waiting = start(pushing(members[0], 1.0, 0))
        assert still_waits(waiting)
        server.close()
        assert isinstance(waiting.exception(PATIENCE_S), clients.RequestFailed)


@pytest.mark.parametrize(
    ("parameters", "staleness", "problem"),
    [
        ({}, 0, "dtypes"),
        ({"a": np.zeros(2), "b": np.zeros(2, np.float32)}, 0, "dtypes"),
        ({"a": np.zeros(2, np.int64)}, 0, "dtypes"),
        ({"a": np.zeros(2)}, -1, "staleness"),
    ],
)
def test_impossible_servers_are_refused(parameters: dict[str, np.ndarray], staleness: int, problem: str) -> None:
    with clients.connect(embedded_url()) as bus, pytest.raises(clients.InvalidValue, match=problem):
        clients.ParameterServer(bus, parameters, clients.SGD(1.0), staleness=staleness)
