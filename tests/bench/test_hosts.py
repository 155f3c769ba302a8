"""The benchmark between hosts: its words, and that it measures what it says."""

from __future__ import annotations

import os
import signal

import pytest

from bench import hosts
from bench.network import Network, Unavailable, run
from broker.collectives import ring


def test_a_row_has_the_words_of_nccl_tests() -> None:
    line = hosts.row("some", 4, 1, "1gbit", 100_000_000, hosts.Told("ring", [1.0, 0.5, 2.0], 150_000_000.0, 0.25), 0.5)
    assert "algbw  0.100 GB/s  busbw  0.150 GB/s  wire  1.20" in line
    assert "median  1000.000 ms  best   500.000 ms" in line
    assert " 4 hosts   4 ranks " in line
    assert "limit  0.50  cpu  250.000 ms" in line
    assert line.endswith("sent  1.50")


def test_who_takes_longer_is_behind_by_the_medians() -> None:
    names = ("tensorbus ring", "gloo (torch)", "the bare wire")
    found = {
        name: [hosts.Told("ring", times_s, 0, 0)]
        for name, times_s in zip(names, ([1, 2, 9], [5, 4, 3], [1, 1, 1]), strict=True)
    }
    assert hosts.ahead("tensorbus ring", found) == "tensorbus ring is ahead of gloo (torch) 2.00"
    del found["gloo (torch)"]
    assert "nobody" in hosts.ahead("tensorbus ring", found)


def test_peers_that_are_missing_are_named_with_the_reason() -> None:
    assert set(hosts.missing()) <= {"gloo", "openmpi"}
    assert all("not installed" in reason for reason in hosts.missing().values())


def test_without_root_there_is_no_network_and_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Unavailable, match="need root"), Network(2):
        pass


def test_a_command_that_fails_is_told_with_its_words() -> None:
    with pytest.raises(Unavailable, match="no-such-host"):
        run("sh", "-c", "echo no-such-host >&2; exit 1")


def test_hosts_are_there_and_are_gone_afterwards() -> None:
    try:
        with Network(2, "1gbit") as network:
            assert network.namespace(1) in run("ip", "netns", "list")
            assert "rate 1Gbit" in run("tc", "-n", network.namespace(1), "qdisc", "show", "dev", "eth0")
    except Unavailable as problem:
        pytest.skip(str(problem))
    assert network.namespace(1) not in run("ip", "netns", "list")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_process_leaves_no_host_behind(number: int) -> None:
    network = Network(1)
    # Under nohup it is ignored, and then by a network as well.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            _be_ended_in(network, number)
        assert network.namespace(0) not in run("ip", "netns", "list")
        assert signal.getsignal(number) == signal.SIG_DFL
    except Unavailable as problem:
        pytest.skip(str(problem))
    finally:
        signal.signal(number, before)


def _be_ended_in(network: Network, number: int) -> None:
    with network:
        assert network.namespace(0) in run("ip", "netns", "list")
        try:
            os.kill(os.getpid(), number)
        finally:
            # `timeout` sends it to the process, and once more to its group.
            os.kill(os.getpid(), number)


@pytest.mark.skipif(not ring.AVAILABLE, reason="the engine of links is not compiled")
@pytest.mark.parametrize(("per_host", "schedule"), [(1, "ring"), (2, "hierarchical")])
def test_tensorbus_is_measured_over_links(per_host: int, schedule: str) -> None:
    try:
        with Network(2, "1gbit") as network:
            found = hosts.run_tensorbus(network, 1 << 20, 2, "auto", per_host)
    except Unavailable as problem:
        pytest.skip(str(problem))
    assert (found.schedule, len(found.times_s)) == (schedule, 2)
    assert 1 << 20 <= found.sent_bytes < 1.5 * (1 << 20)
