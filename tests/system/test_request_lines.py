"""Requests on lines between real processes, each of which is killed or stopped in the middle of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import clients
from broker.protocol.line import AVAILABLE
from tests.clients.lines.lining import has_line
from tests.daemon import Daemon, Process

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")

PATIENCE_S = 50.0
RESPONDER = "tests.system.responder"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(listen=[f"unix://{tmp_path}/broker.sock"], admin="off") as serving:
        yield serving


def responder(daemon: Daemon, what: str) -> Process:
    process = Process(daemon.url, "killed", what, module=RESPONDER)
    assert process.read_line() == "responding"
    return process


def begin(bus: clients.Client, topic: str) -> None:
    while not (topic in bus._core.outgoing.topics and has_line(bus, topic)):
        bus.request(topic, timeout_s=PATIENCE_S)
        bus.flush(PATIENCE_S)


def ask_on_and_on(bus: clients.Client) -> None:
    while True:
        assert bus.request("quick", timeout_s=10 * PATIENCE_S).value == "quick"


@pytest.mark.parametrize("moment", range(5))
def test_a_killed_responder_is_told_of_at_once_whatever_it_was_doing(daemon: Daemon, moment: int) -> None:
    with clients.connect(daemon.url) as bus:
        with responder(daemon, "quick") as process:
            begin(bus, "quick")
            killer = threading.Timer(0.01 * moment, process.kill)
            killer.start()
            with pytest.raises((clients.ResponderLost, clients.NoResponders)):
                ask_on_and_on(bus)
            killer.join()
        with responder(daemon, "quick"):
            begin(bus, "quick")
            assert bus.request("quick", timeout_s=PATIENCE_S).value == "quick"


def test_a_stopped_responder_holds_up_its_requester_for_the_time_it_gave_and_nobody_else(daemon: Daemon) -> None:
    with (
        clients.connect(daemon.url) as bus,
        clients.connect(daemon.url) as other,
        responder(daemon, "quick") as process,
    ):
        begin(bus, "quick")
        process.signal(signal.SIGSTOP)
        with pytest.raises(clients.TimeoutError):
            bus.request("quick", timeout_s=0.2)
        other.publish("elsewhere", 1, ack="accepted", timeout_s=PATIENCE_S)
        process.signal(signal.SIGCONT)
        assert bus.request("quick", timeout_s=PATIENCE_S).value == "quick"


def test_a_killed_requester_is_forgotten_and_the_responder_goes_on(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as answering, clients.connect(daemon.url) as asking:
        first, cancelled = threading.Event(), threading.Event()

        def answer(message: clients.Request) -> object:
            if message.value == "loop":
                return "go on"
            first.set()
            message.on_cancel(cancelled.set)
            return clients.DEFERRED

        answering.respond("a", answer)
        with Process(daemon.url, "killed", "hammer", module=RESPONDER) as process:
            assert process.read_line() == "line"
            assert first.wait(PATIENCE_S)
            process.kill()
        assert cancelled.wait(PATIENCE_S)
        assert asking.request("a", "loop", timeout_s=PATIENCE_S).value == "go on"


def test_a_killed_broker_fails_a_request_on_a_line_and_the_next_one_finds_the_next_broker(tmp_path: Path) -> None:
    listen = [f"unix://{tmp_path}/again.sock"]
    back = threading.Event()
    with Daemon(listen=listen, admin="off") as daemon:
        bus = clients.connect(daemon.url)
        other = clients.connect(daemon.url, on_reconnect=lambda _: back.set())
        killer = threading.Thread(target=daemon.kill)

        def answer(message: clients.Message) -> object:
            if message.value != "kill":
                return 1
            killer.start()
            return clients.DEFERRED

        other.respond("a", answer)
        begin(bus, "a")
        with pytest.raises(clients.ConnectionClosed):
            bus.request("a", "kill", timeout_s=PATIENCE_S)
        killer.join()
    with bus, other, Daemon(listen=listen, admin="off"):
        assert back.wait(PATIENCE_S)
        other.flush(PATIENCE_S)
        assert bus.request("a", timeout_s=PATIENCE_S, retries=3).value == 1
