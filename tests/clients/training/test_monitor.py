"""A monitor: sessions, groups, what trainers report, stragglers, and what it has missed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

import clients
from tests.clients.ranks import PATIENCE_S, bus_of, embedded_url, trainers
from tests.clients.serving import ServingThread
from tests.loopback import own_host


def snapshot_when(monitor: clients.Monitor, holds: Callable[[clients.Snapshot], bool]) -> clients.Snapshot:
    """The first snapshot of which something holds, or the last one before patience ends."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not holds(snapshot := monitor.snapshot()) and time.monotonic() < deadline_s:
        continue
    return snapshot


def report(bus: clients.Client, rank: int, **numbers: float) -> None:
    bus.publish(f"metrics/{bus.name}", {"group": "train", "rank": rank, "loss": 1.0, "step": 1, **numbers})


def test_a_monitor_knows_who_is_connected() -> None:
    url = embedded_url()
    with clients.connect(url, name="earlier"), clients.connect(url, name="monitor") as bus:
        monitor = clients.Monitor(bus)
        with clients.connect(url, name="later"):
            snapshot = snapshot_when(monitor, lambda snapshot: len(snapshot.sessions) == 3)
            assert snapshot.sessions == ("earlier", "monitor", "later")
        assert snapshot_when(monitor, lambda snapshot: len(snapshot.sessions) == 2).sessions == ("earlier", "monitor")


def test_sessions_of_a_broker_that_is_gone_are_forgotten() -> None:
    with ServingThread(f"tcp://{own_host()}:0") as broker:
        url = broker.url
        bus = clients.connect(url, name="monitor", reconnect_timeout_s=PATIENCE_S)
        monitor = clients.Monitor(bus)
        gone = [clients.connect(url, name=f"gone-{number}", reconnect_timeout_s=0.0) for number in range(3)]
        assert len(snapshot_when(monitor, lambda snapshot: len(snapshot.sessions) == 4).sessions) == 4
    for client in gone:
        client.close()
    with ServingThread(url):
        bus.flush(timeout_s=PATIENCE_S)
        with clients.connect(url, name="new"):
            snapshot = snapshot_when(monitor, lambda snapshot: "new" in snapshot.sessions)
            assert snapshot.sessions == ("monitor", "new")
        bus.close()


def test_a_monitor_knows_the_ranks_of_a_group_and_who_is_lost() -> None:
    url = embedded_url()
    members = trainers(url, 3)
    with clients.connect(url) as bus:
        monitor = clients.Monitor(bus)
        group = snapshot_when(monitor, lambda snapshot: "train" in snapshot.groups).groups["train"]
        assert (group.generation, group.ranks, group.lost_ranks) == (1, (0, 1, 2), ())
        bus_of(members[1]).close()
        group = snapshot_when(monitor, lambda snapshot: snapshot.groups["train"].generation == 2).groups["train"]
        assert (group.ranks, group.lost_ranks) == ((0, 2), (1,))
        with clients.connect(url) as late:
            late.group("train", world_size=3)
            group = snapshot_when(monitor, lambda snapshot: snapshot.groups["train"].generation == 3).groups["train"]
            assert (group.ranks, group.lost_ranks) == ((0, 1, 2), ())
    for member in members:
        bus_of(member).close()


def test_reports_become_loss_throughput_and_times_of_each_rank() -> None:
    url = embedded_url()
    members = trainers(url, 2)
    with clients.connect(url) as bus:
        monitor = clients.Monitor(bus)
        for member in members:
            for step, time_s in enumerate((0.1, 0.2, 0.3)):
                member.report(step, loss=2.0 + member.rank, step_time_s=time_s, samples=30, compute_time_s=0.05)
            member.report(3, loss=1.0 + member.rank, step_time_s=0.2, samples=30, values={"accuracy": 0.5})
        snapshot = snapshot_when(
            monitor, lambda snapshot: [trainer.step for trainer in snapshot.trainers.values()] == [3, 3]
        )
        assert set(snapshot.trainers) == {"trainer-0", "trainer-1"}
        first = snapshot.trainers["trainer-0"]
        assert (first.group, first.rank, first.present, first.loss) == ("train", 0, True, 1.0)
        assert (first.step_time_s, first.compute_time_s) == (pytest.approx(0.2), 0.05)
        assert first.samples_per_s == pytest.approx(150.0)
        assert first.values == {"accuracy": 0.5}
        assert snapshot.groups["train"].loss == 1.5
        assert snapshot.groups["train"].samples_per_s == pytest.approx(300.0)
        assert snapshot.dropped == 0
    for member in members:
        bus_of(member).close()


@pytest.mark.parametrize(
    ("times_s", "stragglers"),
    [((0.1, 0.1), ()), ((0.1, 0.14), ()), ((0.1, 0.2), (1,)), ((0.3, 0.1, 0.1, 0.12), (0,)), ((0.5,), ())],
)
def test_a_straggler_is_slower_than_the_median_of_the_others(
    times_s: tuple[float, ...], stragglers: tuple[int, ...]
) -> None:
    url = embedded_url()
    members = trainers(url, len(times_s))
    with clients.connect(url) as bus:
        monitor = clients.Monitor(bus)
        for member, time_s in zip(members, times_s, strict=True):
            # In lockstep the whole step is equally long for all; what tells is the time without waiting.
            report(bus_of(member), member.rank, step_time_s=1.0, samples=1, compute_time_s=time_s)
        snapshot = snapshot_when(monitor, lambda snapshot: len(snapshot.trainers) == len(times_s))
        assert snapshot.groups["train"].stragglers == stragglers
    for member in members:
        bus_of(member).close()


def test_a_lost_rank_is_not_present_and_counts_no_longer() -> None:
    url = embedded_url()
    members = trainers(url, 2)
    with clients.connect(url) as bus:
        monitor = clients.Monitor(bus)
        for member in members:
            member.report(0, loss=1.0 + member.rank, step_time_s=0.1, samples=10)
        snapshot_when(monitor, lambda snapshot: len(snapshot.trainers) == 2)
        bus_of(members[1]).close()
        snapshot = snapshot_when(monitor, lambda snapshot: snapshot.groups["train"].ranks == (0,))
        assert not snapshot.trainers["trainer-1"].present
        assert snapshot.groups["train"].loss == 1.0
        assert snapshot.groups["train"].samples_per_s == pytest.approx(100.0)
    bus_of(members[0]).close()


def test_a_monitor_that_starts_later_gets_the_last_reports() -> None:
    url = embedded_url()
    with clients.connect(url, name="trainer") as bus, clients.connect(url) as other:
        report(bus, 0, loss=0.25)
        bus.flush()
        snapshot = snapshot_when(clients.Monitor(other), lambda snapshot: bool(snapshot.trainers))
        assert snapshot.trainers["trainer"].loss == 0.25


def test_metrics_of_other_forms_do_no_harm() -> None:
    url = embedded_url()
    with clients.connect(url, name="odd") as bus, clients.connect(url) as other:
        monitor = clients.Monitor(other)
        for value in (None, "text", [1, 2], {"loss": "low", "rank": None, "group": 3}, {"loss": 0.5, "note": "x"}):
            bus.publish("metrics/odd/loss", value)
        snapshot = snapshot_when(
            monitor, lambda snapshot: "odd" in snapshot.trainers and snapshot.trainers["odd"].loss == 0.5
        )
        trainer = snapshot.trainers["odd"]
        assert (trainer.group, trainer.rank, trainer.step_time_s, trainer.samples_per_s) == ("", None, None, 0.0)


def test_a_closed_monitor_keeps_what_it_knew() -> None:
    url = embedded_url()
    with clients.connect(url, name="trainer") as bus, clients.connect(url) as other:
        with clients.Monitor(other) as monitor:
            report(bus, 0)
            snapshot_when(monitor, lambda snapshot: bool(snapshot.trainers))
        report(bus, 0, loss=7.0)
        bus.flush()
        assert monitor.snapshot().trainers["trainer"].loss == 1.0
