"""Which of a broker's addresses a client takes that dials auto://, and why not a better one."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.errors import InvalidValue
from broker.transport import registry
from clients import aio
from clients.connection import choosing
from clients.connection.choosing import Candidate
from clients.connection.views import candidates, way
from tests.clients.serving import ServingThread

PATIENCE_S = 60.0
ALL = ["zmq+tcp://0.0.0.0:3", "tcp://0.0.0.0:1", "ucx://10.0.0.7:2", "unix:///run/bus", "tls://0.0.0.0:4"]


def loads(scheme: str) -> object:
    return scheme


def lacks_ucx(scheme: str) -> object:
    if scheme == "ucx":
        raise InvalidValue("scheme", scheme, "its transport cannot be loaded here: No module named 'ucxx'")
    return scheme


def seen(
    offered: list[str],
    taken: str = "tcp",
    *,
    host: str = "broker.example",
    same_host: bool = False,
    load: Callable[[str], object] = loads,
) -> dict[str, tuple[bool, bool, str]]:
    found = choosing.candidates(offered, taken, host=host, same_host=same_host, load=load)
    return {str(each.address): (each.taken, each.better, each.hindrance) for each in found}


def test_the_best_comes_first_and_what_is_known_to_be_in_the_way_is_said() -> None:
    found = seen(ALL)
    assert list(found) == [
        "unix:///run/bus",
        "ucx://10.0.0.7:2",
        "tcp://broker.example:1",
        "zmq+tcp://broker.example:3",
        "tls://broker.example:4",
    ]
    assert found["tcp://broker.example:1"] == (True, False, "")
    assert found["zmq+tcp://broker.example:3"] == (False, False, "")
    assert found["ucx://10.0.0.7:2"] == (False, True, "")
    assert found["unix:///run/bus"][:2] == (False, True)
    assert found["unix:///run/bus"][2].startswith("other host")


def test_a_missing_package_is_named() -> None:
    assert seen(ALL, load=lacks_ucx)["ucx://10.0.0.7:2"][2] == (
        "missing package: its transport cannot be loaded here: No module named 'ucxx'"
    )


def test_encryption_is_neither_left_nor_entered() -> None:
    for taken in ("tcp", "zmq+tcp", "ucx", "unix"):
        assert not seen(["tls://h:1"], taken, same_host=True)["tls://h:1"][1]
    for offered in ALL:
        assert not any(better for _, better, _ in seen([offered], "tls", same_host=True).values())


def test_an_address_of_the_brokers_own_host_is_for_that_host() -> None:
    assert seen(["ucx://127.0.0.1:2"])["ucx://127.0.0.1:2"][2].startswith("other host")
    assert seen(["ucx://127.0.0.1:2"], same_host=True)["ucx://127.0.0.1:2"][2] == ""


def test_a_socket_that_is_not_there_or_is_somebody_elses_is_not_dialled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bus"
    address = f"unix://{path}"
    assert seen([address], same_host=True)[address][2].startswith("cannot be reached: No such file")
    path.touch()
    assert seen([address], same_host=True)[address][2] == ""
    os.chown(path, 65534, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: -1)
    assert "belongs to user" in seen([address], same_host=True)[address][2]


def test_what_a_newer_broker_offers_is_left_out_if_it_is_not_known_here() -> None:
    assert list(seen(["quic://h:1", "rubbish", "tcp://h:1"])) == ["tcp://h:1"]


# With a broker.


def auto(broker: ServingThread) -> str:
    return broker.url.replace("tcp://", "auto://")


def offered(broker: ServingThread) -> list[str]:
    return broker.call(lambda: list(broker.server.state.addresses))


def peers(broker: ServingThread) -> list[str]:
    return broker.call(lambda: [record.peer.partition(":")[0] for record in broker.server.state.sessions.values()])


def test_on_one_host_it_is_shared_memory(tmp_path: Path) -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus", "zmq+tcp://127.0.0.1:0") as broker,
        clients.connect(auto(broker)) as bus,
        bus.subscribe("a") as subscription,
    ):
        bus.publish("a", np.arange(100_000))
        assert np.array_equal(subscription.next(PATIENCE_S).value, np.arange(100_000))
        found = way(bus)
        assert (found.scheme, found.shared_memory) == ("unix", True)
        assert [(each.address.scheme, each.taken, each.better) for each in found.candidates] == [
            ("unix", True, False),
            ("tcp", False, False),
            ("zmq+tcp", False, False),
        ]
        assert peers(broker) == ["unix"]


def test_without_shared_memory_it_is_the_unix_socket_all_the_same(tmp_path: Path) -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus") as broker,
        clients.connect(auto(broker), shared_memory=False) as bus,
    ):
        assert (way(bus).scheme, way(bus).shared_memory) == ("unix", False)
        bus.publish("a", b"there", ack="accepted")


def test_a_better_address_that_does_not_work_is_left_with_the_reason(tmp_path: Path) -> None:
    with ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus") as broker:
        os.unlink(tmp_path / "bus")
        with clients.connect(auto(broker)) as bus:
            assert bus.publish("a", b"there", ack="accepted") == 1
            unix, tcp = way(bus).candidates
            assert (unix.better, tcp.taken) == (True, True)
            assert "No such file" in unix.hindrance


def test_another_broker_at_the_better_address_is_not_taken_for_this_one(tmp_path: Path) -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/first") as first,
        ServingThread(f"unix://{tmp_path}/second") as second,
    ):
        first.call(setattr, first.server.state, "addresses", [first.url, f"unix://{tmp_path}/second"])
        first.call(setattr, first.server.state, "local_path", "")
        with clients.connect(auto(first)) as bus:
            assert way(bus).scheme == "tcp"
            assert [each.hindrance for each in way(bus).candidates] == ["another broker is there", ""]
            bus.publish("a", b"here", ack="accepted")
            assert first.call(lambda: "a" in first.server.state.router.topics)
        second.wait_until_idle()


def test_a_scheme_that_is_named_is_an_order(tmp_path: Path) -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus", "zmq+tcp://127.0.0.1:0") as broker,
        clients.connect(offered(broker)[2]) as bus,
        clients.connect(broker.url, shared_memory=False) as plain,
    ):
        assert way(bus).scheme == "zmq+tcp"
        assert way(plain).scheme == "tcp"
        assert way(bus).candidates == ()
        # Where better ones are is known all the same, for who asks.
        assert [each.address.scheme for each in candidates(plain, offered(broker)) if each.better] == ["unix"]


def test_tls_is_never_left_for_an_address_in_the_clear(certificates: Path, tmp_path: Path) -> None:
    folder = f"{certificates}/broker"
    with (
        ServingThread(f"tls://127.0.0.1:0?certificates={folder}", f"unix://{tmp_path}/bus") as broker,
        clients.connect(broker.url, tls=folder) as bus,
    ):
        assert way(bus).scheme == "tls"
        assert not any(each.better for each in candidates(bus, offered(broker)))
        assert not any("certificates" in text for text in offered(broker))


def test_certificates_do_not_go_with_auto() -> None:
    with pytest.raises(clients.InvalidValue, match="none of the addresses is at tls://"):
        clients.connect("auto://127.0.0.1:1", tls="/somewhere")


def test_who_does_not_ask_is_not_told_where_the_broker_listens(tmp_path: Path) -> None:
    with ServingThread("tcp://127.0.0.1:0") as broker:
        with clients.connect(broker.url) as bus:
            assert bus._driver._link.welcome.offers == []
        with clients.connect(auto(broker)) as bus:
            assert bus._driver._link.welcome.offers == [broker.url]


def test_auto_may_stand_among_several_addresses_and_names_the_reason_when_nobody_is_there(tmp_path: Path) -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus") as broker,
        clients.connect(f"auto://127.0.0.1:1,{auto(broker)}") as bus,
    ):
        assert way(bus).scheme == "unix"
    with pytest.raises(clients.ConnectError, match="auto://127.0.0.1:1"):
        clients.connect("auto://127.0.0.1:1", connect_timeout_s=1.0)


def test_a_broker_cannot_listen_at_auto() -> None:
    with pytest.raises(InvalidValue, match="no transport serves it"):
        registry.listen("auto://127.0.0.1:0")


def test_the_asynchronous_client_chooses_alike(tmp_path: Path) -> None:
    async def choose(url: str) -> tuple[Candidate, ...]:
        async with await aio.connect(url) as bus:
            await bus.publish("a", b"there", ack="accepted")
            return tuple(bus._driver._link.candidates)

    with ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus") as broker:
        found = asyncio.run(choose(auto(broker)))
    assert [(each.address.scheme, each.taken) for each in found] == [("unix", True), ("tcp", False)]


def test_after_a_lost_connection_it_chooses_again(tmp_path: Path) -> None:
    with ServingThread("tcp://127.0.0.1:0", f"unix://{tmp_path}/bus") as broker:
        os.rename(tmp_path / "bus", tmp_path / "away")
        with clients.connect(auto(broker)) as bus:
            assert way(bus).scheme == "tcp"
            os.rename(tmp_path / "away", tmp_path / "bus")
            with bus._driver.lock:
                bus._driver._lose(clients.ConnectionClosed("the test has cut it"))
            bus.flush(PATIENCE_S)
            assert way(bus).scheme == "unix"


def test_a_better_address_where_nobody_answers_costs_half_of_the_time_and_not_the_connection(tmp_path: Path) -> None:
    with (
        ServingThread("tcp://127.0.0.1:0") as broker,
        socket.socket(socket.AF_UNIX) as silent,
    ):
        silent.bind(f"{tmp_path}/silent")
        silent.listen()
        broker.call(setattr, broker.server.state, "addresses", [broker.url, f"unix://{tmp_path}/silent"])
        with clients.connect(auto(broker), connect_timeout_s=2.0) as bus:
            assert way(bus).scheme == "tcp"
            assert "no tensorbus broker answered" in way(bus).candidates[0].hindrance
            assert bus.publish("a", b"there", ack="accepted") == 1
