"""Two ranks on each of two hosts, in network namespaces: what crosses between these, and ranks that are killed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench.network import Network, Unavailable
from broker.collectives import ring
from tests.daemon import Process
from tests.system.test_linked_ranks import Ranks, on_host

pytestmark = pytest.mark.skipif(not ring.AVAILABLE, reason="the engine of links is not compiled")

HOSTS, RANKS = 2, 4
ELEMENTS, TIMES = 1 << 20, 4
WORDS = ("--admin", "off", "--insecure", "--heartbeat-interval-s", "0.5", "--heartbeat-timeout-s", "4.0")


class Hosts:
    """Hosts, with the broker on the first one."""

    def __init__(self, network: Network) -> None:
        self.network = network
        listen = f"tcp://{network.address(0)}:0"
        self.broker = on_host(network, 0, "broker", "serve", "--listen", listen, *WORDS)
        try:
            self.url = self.broker.read_line().removeprefix("listening on ")
        except BaseException:
            self.broker.close()
            raise

    def start(self, rank: int, module: str, *words: object) -> Process:
        """A rank, on the hosts in turn."""
        return on_host(self.network, rank % HOSTS, module, self.url, str(rank), str(RANKS), *map(str, words))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with ExitStack() as stack:
        try:
            found = Hosts(stack.enter_context(Network(HOSTS)))
        except Unavailable as problem:
            pytest.skip(str(problem))
        stack.callback(found.broker.close)
        yield found


@pytest.mark.parametrize(
    ("asked", "used"), [("auto", "hierarchical"), ("hierarchical", "hierarchical"), ("ring", "ring")]
)
def test_each_byte_crosses_between_hosts_once(hosts: Hosts, asked: str, used: str) -> None:
    ranks = [hosts.start(rank, "tests.system.counted_rank", ELEMENTS, TIMES, asked) for rank in range(RANKS)]
    try:
        told = [rank.read_line().split() for rank in ranks]
    finally:
        for rank in ranks:
            rank.close()
    assert {each[0] for each in told} == {used}
    assert len({each[1] for each in told}) == 1
    # Of a ring of ranks that alternate, every rank sends 1.5 times its array to the other host. Heads are a twentieth.
    sent = [int(each[2]) / (4 * ELEMENTS * TIMES) for each in told]
    assert all(1.0 <= each < 1.2 for each in sent) if used == "hierarchical" else all(each > 2.9 for each in sent), sent


class Placed(Ranks):
    """Ranks as in test_linked_ranks, two on each host."""

    def __init__(self, hosts: Hosts, elements: int) -> None:
        self.url = hosts.url
        self.all = [hosts.start(rank, "tests.system.linked_rank", elements) for rank in range(RANKS)]


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
@pytest.mark.parametrize("elements", [100_000, 1_000_000])
def test_a_rank_that_is_gone_is_named_and_the_others_go_on_by_hosts(
    hosts: Hosts, elements: int, fault: signal.Signals
) -> None:
    ranks = Placed(hosts, elements)
    stop = None
    try:
        ranks.begin("hierarchical")
        ranks.all[2].signal(fault)
        survivors = [ranks.all[rank] for rank in (0, 1, 3)]
        ranks.change(survivors, [2])
        stop = on_host(hosts.network, 0, "broker", "pub", "control/stop", "true", "--url", hosts.url)
        ranks.stop(survivors, "stopped hierarchical ranks=[0, 1, 3]", stop)
    finally:
        if stop is not None:
            stop.close()
        ranks.close()


@pytest.mark.parametrize("elements", [100_000, 1_000_000])
def test_links_that_are_cut_are_made_again_and_nobody_is_lost(hosts: Hosts, elements: int) -> None:
    ranks = Placed(hosts, elements)
    try:
        ranks.begin("hierarchical")
        for _ in range(3):
            ranks.all[1].signal(signal.SIGUSR1)
            ranks.change(ranks.all, [])
        stop = on_host(hosts.network, 0, "broker", "pub", "control/stop", "true", "--url", hosts.url)
        ranks.stop(ranks.all, "stopped hierarchical ranks=[0, 1, 2, 3]", stop)
    finally:
        ranks.close()
