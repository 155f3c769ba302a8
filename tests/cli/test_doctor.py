"""`tensorbus doctor` as a real process, and its judgement of ways and of systems that are not this one."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import clients
from broker.cli.doctor import collectives_finding, copies_finding, path_finding
from broker.cli.doctor_choice import address_finding, session_words
from broker.cli.doctor_links import link_finding
from broker.cli.doctor_measure import copy_bandwidth, loopback_bandwidth
from broker.cli.doctor_system import Finding, State, kernel_settings, versions
from broker.collectives import ring, shm
from broker.transport.addresses import parse
from clients.connection.choosing import Candidate
from clients.connection.views import Way
from tests.daemon import Daemon, run

UNIX = ["tcp://127.0.0.1:4870", "unix:///run/bus"]


def doctor(*arguments: str) -> tuple[int, dict[str, dict[str, object]]]:
    status, output, errors = run("doctor", *arguments, "--json")
    assert errors == ""
    return status, {finding["check"]: finding for finding in map(json.loads, output.splitlines())}


def test_a_broker_on_this_host_is_measured_and_nothing_is_bad(tmp_path: Path) -> None:
    with Daemon(listen=("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus")) as daemon:
        status, found = doctor(daemon.url)
        assert status == 0
        assert found["broker"]["state"] == "ok"
        assert str(daemon.process.pid if daemon.process else 0) in str(found["broker"]["text"])
        assert found["path"]["text"] == "unix, and shared memory for large messages"
        assert found["copies"]["values"] == {"copies": 1}
        trip, clock = found["round trip"]["values"], found["clock"]["values"]
        assert 0 < trip["p50_s"] <= trip["p99_s"]  # type: ignore[index]
        # Both ends read one clock: what is seen of an offset is the error.
        assert abs(clock["offset_s"]) <= clock["error_s"]  # type: ignore[index]
        rates = {**found["bandwidth"]["values"], **found["this machine"]["values"]}  # type: ignore[dict-item]
        assert all(rate > 0 for rate in rates.values())
        assert {
            "version",
            "compiled modules",
            "collectives",
            "links",
            "limits",
            "RLIMIT_NOFILE",
            "processors",
        } <= found.keys()


@pytest.mark.parametrize("same_host", [True, False])
def test_what_is_assumed_of_links_stands_beside_what_is_so(monkeypatch: pytest.MonkeyPatch, *, same_host: bool) -> None:
    found = link_finding(way(same_host=same_host), 0.0005)
    assert "20 us a hop and 1.25 GB/s assumed between hosts" in found.text
    assert found.values["assumed_hop_s"] == 20e-6
    assert ("250 us" in found.text) is ("broker_hop_s" in found.values) is (ring.AVAILABLE and not same_host)
    assert ("loopback_hop_s" in found.values) is ring.AVAILABLE
    assert all(value > 0 for value in found.values.values())
    monkeypatch.setattr(ring, "AVAILABLE", False)
    assert "not compiled" in link_finding(way(same_host=same_host), 0.0005).text


def test_without_a_unix_socket_it_says_how_to_have_one() -> None:
    with Daemon() as daemon:
        status, output, _ = run("doctor", daemon.url)
        lines = output.splitlines()
        (place,) = [number for number, line in enumerate(lines) if line.startswith("! path ")]
        assert "the broker has no Unix-domain socket" in lines[place]
        assert lines[place + 1].strip().startswith("-> tensorbus serve --listen")
        assert status == 0


def test_without_a_broker_it_says_how_to_start_one_and_fails() -> None:
    status, found = doctor("--url", "tcp://127.0.0.1:1")
    assert status == 1
    assert found["broker"]["state"] == "bad"
    assert str(found["broker"]["fix"]).startswith("tensorbus serve")
    assert {"version", "vm.overcommit_memory"} <= found.keys()
    assert "round trip" not in found


def way(scheme: str = "tcp", *, same_host: bool = True, shared: bool = False) -> Way:
    return Way(scheme, f"{scheme}://there", same_host, shared, 30.0, 2 << 20)


@pytest.mark.parametrize(
    ("found", "shares", "listeners", "state", "words", "fix"),
    [
        (way("unix", shared=True), True, UNIX, State.OK, "shared memory for large", ""),
        (way("inproc"), False, [], State.OK, "this process", ""),
        (way(same_host=False), True, UNIX, State.OK, "another host", ""),
        (way("tls", same_host=False), True, UNIX, State.OK, "encrypted", ""),
        (way(), False, UNIX, State.WARNING, "does not share any", "--shared-memory true"),
        (way(), True, UNIX[:1], State.WARNING, "no Unix-domain socket", "--listen unix://"),
        (way(), True, UNIX, State.WARNING, "another container", "unix:///run/bus"),
        (way("unix"), True, UNIX, State.WARNING, "cannot pass or seal", "log of the broker"),
    ],
)
def test_why_a_client_has_no_better_way(
    found: Way, shares: bool, listeners: list[str], state: State, words: str, fix: str
) -> None:
    finding = path_finding(found, shares, listeners)
    assert finding.state is state
    assert words in finding.text
    assert fix in finding.fix


def test_by_which_schedule_and_with_how_many_copies() -> None:
    assert "star" in collectives_finding(way(same_host=False)).text
    assert collectives_finding(way()).state is State.WARNING
    shared = collectives_finding(way("unix", shared=True))
    assert shared.state is (State.OK if shm.AVAILABLE else State.WARNING)
    assert copies_finding(way()).values == {"copies": 4}


def written(folder: Path, settings: dict[str, str]) -> Path:
    for name, text in settings.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return folder


def of_system(folder: Path) -> dict[str, Finding]:
    return {finding.check: finding for finding in kernel_settings(folder, folder)}


def test_settings_that_are_worth_changing_come_with_the_command(tmp_path: Path) -> None:
    found = of_system(
        written(
            tmp_path,
            {
                "net/core/rmem_max": "212992\n",
                "net/core/wmem_max": "8388608\n",
                "net/core/somaxconn": "128\n",
                "vm/overcommit_memory": "2\n",
                "transparent_hugepage/shmem_enabled": "always within_size advise [never] deny force\n",
            },
        )
    )
    assert found["net.core.rmem_max"].fix == "sudo sysctl -w net.core.rmem_max=4194304"
    assert found["net.core.wmem_max"].state is State.OK
    assert found["net.core.somaxconn"].fix == "sudo sysctl -w net.core.somaxconn=1024"
    assert found["vm.overcommit_memory"].fix == "sudo sysctl -w vm.overcommit_memory=0"
    assert found["huge pages"].fix == f"echo advise | sudo tee {tmp_path}/transparent_hugepage/shmem_enabled"


def test_settings_that_cannot_be_read_are_no_fault(tmp_path: Path) -> None:
    found = of_system(written(tmp_path, {"net/core/rmem_max": "rubbish"}))
    assert found["net.core.rmem_max"].state is found["huge pages"].state is State.INFO


def test_plain_modules_are_told_with_what_compiles_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.cli.doctor_system.compiled_modules", lambda: 0)
    finding = versions()[1]
    assert (finding.state, "build_ext" in finding.fix) == (State.WARNING, True)


def test_what_a_machine_can_do_is_more_than_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.cli.doctor_measure.TIME_S", 0.02)
    assert copy_bandwidth() > 0
    assert loopback_bandwidth() > 0


# Which way each pair has got.


def candidate(scheme: str, *, taken: bool = False, better: bool = False, hindrance: str = "") -> Candidate:
    return Candidate(parse(f"{scheme}://h:1"), taken, better, hindrance)


@pytest.mark.parametrize(
    ("seen", "hindrance", "taken", "ordered", "state", "words"),
    [
        (candidate("tcp", taken=True), "", "tcp", True, State.OK, "in use"),
        (
            candidate("ucx", better=True),
            "",
            "tcp",
            True,
            State.WARNING,
            "works from here; tcp was asked for by its name",
        ),
        (
            candidate("ucx", better=True),
            "missing package: x",
            "tcp",
            True,
            State.INFO,
            "not to be had: missing package",
        ),
        (candidate("zmq+tcp"), "", "tcp", True, State.INFO, "not better than tcp"),
        (candidate("tls"), "", "tcp", False, State.INFO, "only who asks for tls gets it"),
    ],
)
def test_each_address_of_the_broker_with_why_it_is_not_in_use(
    seen: Candidate, hindrance: str, taken: str, ordered: bool, state: State, words: str
) -> None:
    finding = address_finding(seen, hindrance, taken, ordered=ordered)
    assert finding.state is state
    assert words in finding.text


@pytest.mark.parametrize(
    ("peer", "shared", "words"),
    [
        ("unix:pid=17", True, "unix, with shared memory"),
        ("unix:pid=17", False, "no shared memory"),
        ("tcp://127.0.0.1:5", False, "tcp on one host; not unix"),
        ("tcp://10.0.0.7:5", False, "other host"),
        ("tls://10.0.0.7:5", False, "who encrypts is not moved"),
        ("zmq+tcp://peer", False, "ZeroMQ was asked for"),
        ("inproc://x", False, "in the broker's process"),
    ],
)
def test_how_each_client_reaches_the_broker_and_why_not_better(peer: str, shared: bool, words: str) -> None:
    assert words in session_words(peer, shared=shared)


def test_a_better_address_than_the_one_that_was_asked_for_is_shown_and_so_is_every_pair(tmp_path: Path) -> None:
    with (
        Daemon(listen=("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus", "zmq+tcp://127.0.0.1:0")) as daemon,
        clients.connect(daemon.url, name="trainer-0") as near,
        clients.connect(daemon.url, name="trainer-1", shared_memory=False) as far,
        ThreadPoolExecutor(2) as pool,
    ):
        for joined in [pool.submit(bus.group, "dp", world_size=2) for bus in (near, far)]:
            joined.result(60.0)
        (zmq,) = [text for text in daemon.urls if text.startswith("zmq")]
        status, output, _ = run("doctor", zmq)
        assert status == 0
        lines = output.splitlines()
        assert any(line.startswith(f"! address unix://{tmp_path}/bus") and "works from here" in line for line in lines)
        assert any("'trainer-0'" in line and "unix, with shared memory" in line for line in lines)
        assert any("'trainer-1'" in line and "not unix with shared memory" in line for line in lines)
        (group,) = [line for line in lines if "group" in line and "'dp', 2 ranks" in line]
        # Without compiled engines there is no board for anybody.
        reason = "no memory shared with the broker" if shm.AVAILABLE else "the broker makes none"
        assert f"not better: no board: {reason}" in group
        status, found = doctor(daemon.url.replace("tcp://", "auto://"))
        assert found[f"address unix://{tmp_path}/bus"]["text"] == "in use"
        assert "devices" in found
