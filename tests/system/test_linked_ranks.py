"""Ranks in processes of their own over links: killed, stopped, and with their links cut, on one host and on several."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import clients
from bench.network import Network, Unavailable, run
from broker.collectives import ring
from tests.daemon import Daemon, Process

pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine of links is not compiled")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    # Long enough for a busy machine: a rank that is only slow is not to be given up.
    with Daemon("--heartbeat-interval-s", "0.5", "--heartbeat-timeout-s", "4.0", admin="off") as serving:
        yield serving


@pytest.fixture
def network() -> Iterator[Network]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(Network(3))
        except Unavailable as problem:
            pytest.skip(str(problem))
        yield made


class Ranks:
    """Ranks of a group, and a broker."""

    def __init__(self, url: str, world_size: int, elements: int, network: Network | None = None) -> None:
        self.url = url
        words = [(url, str(rank), str(world_size), str(elements)) for rank in range(world_size)]
        if network is None:
            self.all = [Process(*each, module="tests.system.linked_rank") for each in words]
        else:
            self.all = [on_host(network, rank, "tests.system.linked_rank", *each) for rank, each in enumerate(words)]

    def begin(self, schedule: str = "ring") -> None:
        for rank, process in enumerate(self.all):
            assert process.read_line() == f"joined {rank} {schedule}"
            assert process.read_line() == "running"

    def change(self, processes: list[Process], lost_ranks: list[int]) -> None:
        """All are told of the same loss after the same operations, and go on."""
        told = {process.read_line() for process in processes}
        assert len(told) == 1
        assert told.pop().startswith(f"changed lost={lost_ranks} done=")
        for process in processes:
            assert process.read_line() == "running"

    def stop(self, processes: list[Process], expected: str, publisher: Process | None = None) -> None:
        """Has them end, and checks what they say last."""
        if publisher is None:
            with clients.connect(self.url, name="control") as bus:
                bus.publish("control/stop", True, ack="accepted")
        else:
            assert publisher.wait() == 0, publisher.errors
            publisher.close()
        for process in processes:
            assert process.read_line() == expected
            assert process.wait() == 0, process.errors

    def close(self) -> None:
        for process in self.all:
            process.close()


def on_host(network: Network, host: int, module: str, *arguments: str) -> Process:
    return Process(network.namespace(host), module, *arguments, module="tests.system.on_host")


@pytest.mark.parametrize("elements", [10, 1_000_000], ids=["small", "large"])
def test_a_killed_rank_is_named_and_the_others_go_on_over_links(daemon: Daemon, elements: int) -> None:
    ranks = Ranks(daemon.url, 3, elements)
    try:
        ranks.begin()
        ranks.all[1].kill()
        survivors = [ranks.all[0], ranks.all[2]]
        ranks.change(survivors, [1])
        ranks.stop(survivors, "stopped ring ranks=[0, 2]")
    finally:
        ranks.close()


@pytest.mark.parametrize("elements", [10, 1_000_000], ids=["small", "large"])
def test_links_that_are_cut_are_made_again_and_nobody_is_lost(daemon: Daemon, elements: int) -> None:
    ranks = Ranks(daemon.url, 3, elements)
    try:
        ranks.begin()
        for _ in range(3):
            ranks.all[2].signal(signal.SIGUSR1)
            ranks.change(ranks.all, [])
        ranks.stop(ranks.all, "stopped ring ranks=[0, 1, 2]")
    finally:
        ranks.close()


@pytest.mark.parametrize("elements", [10, 1_000_000], ids=["small", "large"])
def test_a_stopped_rank_is_given_up_after_the_heartbeat_timeout(daemon: Daemon, elements: int) -> None:
    ranks = Ranks(daemon.url, 3, elements)
    try:
        ranks.begin()
        ranks.all[0].signal(signal.SIGSTOP)
        ranks.change(ranks.all[1:], [0])
        ranks.all[0].signal(signal.SIGCONT)
        ranks.stop(ranks.all[1:], "stopped ring ranks=[1, 2]")
    finally:
        ranks.close()


class Hosts:
    """Three hosts, with the broker on the first."""

    def __init__(self, network: Network) -> None:
        self.network = network
        listen = f"tcp://{network.address(0)}:0"
        self.broker = on_host(network, 0, "broker", "serve", "--listen", listen, "--admin", "off", "--insecure")
        self.url = self.broker.read_line().removeprefix("listening on ")

    def stop(self) -> Process:
        return on_host(self.network, 0, "broker", "pub", "control/stop", "true", "--url", self.url)


@pytest.fixture
def hosts(network: Network) -> Iterator[Hosts]:
    found = Hosts(network)
    yield found
    found.broker.close()


def test_ranks_of_several_hosts_are_linked_and_survive_a_killed_one(hosts: Hosts) -> None:
    ranks = Ranks(hosts.url, 3, 100_000, hosts.network)
    try:
        ranks.begin()
        ranks.all[1].kill()
        survivors = [ranks.all[0], ranks.all[2]]
        ranks.change(survivors, [1])
        ranks.stop(survivors, "stopped ring ranks=[0, 2]", hosts.stop())
    finally:
        ranks.close()


def test_two_hosts_that_cannot_reach_one_another_take_all_to_star_and_are_named(hosts: Hosts) -> None:
    network = hosts.network
    run("ip", "-n", network.namespace(1), "route", "add", "unreachable", f"{network.address(2)}/32")
    ranks = Ranks(hosts.url, 3, 1000, network)
    try:
        ranks.begin("star")
        assert "rank 1 cannot reach rank 2: 10.77.0.3" in hosts.broker.errors
        ranks.stop(ranks.all, "stopped star ranks=[0, 1, 2]", hosts.stop())
    finally:
        ranks.close()
