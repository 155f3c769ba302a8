"""The daemon and its clients over ZeroMQ and UCX, in processes of their own that are killed, stopped, started again."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import clients
from tests.daemon import Daemon, Process
from tests.loopback import own_host
from tests.system.nursery import TOPIC, large
from tests.thorough import rounds
from tests.ucxx import NEEDS_UCXX

PATIENCE_S = 150.0
"""As long as dozens of kills may take where others have the processors too."""
KILLS = {"zmq+tcp": rounds(40), "ucx": 3}
"""Each client over UCX loads UCXX in a process of its own, and dies with it."""
HELD = 24
MESSAGE_BYTES = 1 << 20


@pytest.fixture(params=["zmq+tcp", pytest.param("ucx", marks=NEEDS_UCXX)])
def daemon(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    host = "127.0.0.1" if request.param == "ucx" else own_host()
    with Daemon(listen=[f"{request.param}://{host}:0"], admin="off") as serving:
        yield serving


def pid_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{pid_of(daemon)}/fd"))


def threads(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{pid_of(daemon)}/task"))


@pytest.mark.parametrize("role", ["publish", "read"])
def test_clients_that_are_killed_in_the_middle_of_messages_leave_nothing_and_tear_nothing(
    daemon: Daemon, role: str
) -> None:
    kills = KILLS[daemon.url.partition("://")[0]]
    with clients.connect(daemon.url, name="watching") as bus, clients.connect(daemon.url, name="other") as other:
        subscription = bus.subscribe(TOPIC, overflow="drop_oldest")
        bus.flush(PATIENCE_S)
        files, tasks = descriptors(daemon), threads(daemon)
        stop = threading.Event()

        def feed() -> None:
            number = 0
            while not stop.is_set():
                other.publish(TOPIC, large(number))
                number += 1

        feeding = threading.Thread(target=feed) if role == "read" else None
        if feeding is not None:
            feeding.start()
        with Process(daemon.url, role, str(kills), "7", module="tests.system.nursery") as nursery:
            assert nursery.read_line(PATIENCE_S) == f"killed {kills}", nursery.errors
            assert nursery.errors == ""
        stop.set()
        if feeding is not None:
            feeding.join(PATIENCE_S)
        other.publish(TOPIC, "end")
        for message in subscription:
            if isinstance(message.value, str):
                break
            if isinstance(message.value, np.ndarray):
                assert np.array_equal(message.value, large(int(message.value[0])))
        while descriptors(daemon) > files or threads(daemon) > tasks:
            # The daemon notices a killed client when its link ends, and ZeroMQ's thread closes what it had.
            bus.flush(PATIENCE_S)


def test_a_killed_broker_that_comes_back_finds_its_clients_again(daemon: Daemon) -> None:
    heard = threading.Event()
    with (
        clients.connect(daemon.url, on_reconnect=lambda event: heard.set()) as bus,
        bus.subscribe("news") as subscription,
    ):
        bus.publish("news", 1, ack="accepted")
        assert subscription.next(PATIENCE_S).value == 1
        daemon.kill()
        daemon.start()
        assert heard.wait(PATIENCE_S)
        bus.publish("news", 2, ack="accepted", timeout_s=PATIENCE_S)
        assert subscription.next(PATIENCE_S).value == 2


def test_a_stopped_client_harms_nobody_and_goes_on_when_it_is_continued(daemon: Daemon) -> None:
    with (
        clients.connect(daemon.url) as bus,
        bus.subscribe("other") as other,
        Process("sub", "held", "--url", daemon.url, "--count", str(HELD), "--raw") as stopped,
    ):
        while not bus.pressure("held", timeout_s=PATIENCE_S).subscribers:
            bus.flush(PATIENCE_S)
        stopped.signal(signal.SIGSTOP)

        def publish() -> None:
            for _ in range(HELD):
                bus.publish("held", bytes(MESSAGE_BYTES), timeout_s=PATIENCE_S)

        publishing = threading.Thread(target=publish)
        publishing.start()
        with clients.connect(daemon.url) as second:
            second.publish("other", "through", ack="accepted", timeout_s=PATIENCE_S)
        assert other.next(PATIENCE_S).value == "through"
        stopped.signal(signal.SIGCONT)
        assert len(stopped.read_rest(PATIENCE_S)) >= HELD * MESSAGE_BYTES
        assert stopped.wait() == 0
        publishing.join(PATIENCE_S)
        assert not publishing.is_alive()


def test_a_stopped_broker_that_goes_on_has_lost_nothing(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, bus.subscribe("numbers") as subscription:
        os.kill(pid_of(daemon), signal.SIGSTOP)
        for number in range(500):
            bus.publish("numbers", number)
        os.kill(pid_of(daemon), signal.SIGCONT)
        assert [subscription.next(PATIENCE_S).value for _ in range(500)] == list(range(500))


def test_a_program_that_ends_without_a_word_loses_nothing(daemon: Daemon) -> None:
    with (
        clients.connect(daemon.url) as bus,
        bus.subscribe("numbers", queue_messages=4096) as subscription,
        Process(daemon.url, module="tests.clients.leaving") as process,
    ):
        assert [subscription.next(PATIENCE_S).value for _ in range(2000)] == list(range(2000))
        assert process.wait(PATIENCE_S) == 0, process.errors
        assert process.errors == ""


def test_the_daemon_ends_in_order_and_its_port_is_free_again(daemon: Daemon) -> None:
    with clients.connect(daemon.url, reconnect_timeout_s=0.0) as bus:
        bus.flush(PATIENCE_S)
        assert daemon.terminate() == 0, daemon.errors
        with pytest.raises(clients.ConnectionClosed):
            bus.flush(PATIENCE_S)
    daemon.start()
    with clients.connect(daemon.url) as bus:
        bus.flush(PATIENCE_S)
