"""The processes of several workers: who lets whom in, and what becomes of clients when one of them ends."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from urllib.request import urlopen

import pytest

import clients
from broker.protocol.bodies import Hello, Refusal, Welcome
from broker.protocol.handshake import encode_greeting
from tests.daemon import PATIENCE_S, Daemon
from tests.fuzz.conversations import connect as connect_bare
from tests.system.workers import answer, dial, greet, parent, topic_of, wait_until, worker_pids

READS = "[permissions]\neverybody = ['r']\n[permissions.roles.r]\nallow = { subscribe = ['#'], publish = ['#'] }\n"
MUTE = "[permissions]\neverybody = ['r']\n[permissions.roles.r]\nallow = { publish = ['#'] }\n"
TOPICS = [f"gradients/{number}" for number in range(24)]


@pytest.fixture
def daemon(several: Daemon) -> Daemon:
    return several


# The door.


def test_a_hello_reaches_the_worker_that_it_names(daemon: Daemon, workers: int) -> None:
    lives: dict[int, set[int]] = {}
    for url in daemon.urls:
        for worker in 3 * list(range(workers)):
            welcome = greet(url, Hello("visitor", worker=worker))
            assert isinstance(welcome, Welcome)
            assert welcome.workers == workers
            lives.setdefault(worker, set()).add(welcome.life)
    assert all(len(each) == 1 for each in lives.values())
    assert len(set.union(*lives.values())) == workers


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello("old"), "of which this client knows nothing"),
        (Hello("many", worker=0, workers=9), "and the client was told of 9"),
        (Hello("beyond", worker=9), "there is no such worker"),
    ],
)
def test_who_cannot_be_served_is_told_why(daemon: Daemon, hello: Hello, reason: str) -> None:
    for url in daemon.urls:
        refusal = greet(url, hello)
        assert isinstance(refusal, Refusal)
        assert reason in refusal.reason


def test_a_hello_may_come_a_byte_at_a_time_and_with_more_behind_it(daemon: Daemon, workers: int) -> None:
    for url in daemon.urls:
        with dial(url) as sock:
            hello = encode_greeting(Hello("slow", worker=workers - 1))
            for position in range(len(hello)):
                sock.sendall(hello[position : position + 1])
            assert isinstance(answer(sock), Welcome)
        with dial(url) as sock:
            # The frame is none: the session says so, and closes.
            sock.sendall(encode_greeting(Hello("hasty", worker=workers - 1)) + b"\xff" * 52)
            assert isinstance(answer(sock), Welcome)
            while sock.recv(65_536):
                pass


def test_strangers_that_say_rubbish_or_nothing_keep_nobody_out(daemon: Daemon, workers: int) -> None:
    with ExitStack() as stack:
        half = encode_greeting(Hello("half", worker=workers - 1))[:-3]
        for number in range(120):
            sock = stack.enter_context(connect_bare(daemon.url))
            sock.sendall((b"", half, b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n")[number % 4])
        with clients.connect(daemon.url) as bus:
            every = bus.subscribe("#")
            for topic in TOPICS:
                bus.publish(topic, topic)
            assert {every.next(PATIENCE_S).value for _ in TOPICS} == set(TOPICS)
    assert "Traceback" not in daemon.errors


def test_connections_that_are_passed_on_leave_no_descriptor_behind(daemon: Daemon, workers: int) -> None:
    def open_files() -> list[int]:
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (parent(daemon), *worker_pids(daemon))]

    def visit(rounds: int) -> None:
        for url in daemon.urls:
            for worker in rounds * list(range(workers)):
                assert isinstance(greet(url, Hello("visitor", worker=worker)), Welcome)
                dial(url).close()

    visit(2)
    wait_until(lambda: max(open_files()) < 100)
    # What is there for good is: what a first visit has opened.
    before = open_files()
    visit(20)
    wait_until(lambda: all(now <= then for now, then in zip(open_files(), before, strict=True)))


# Workers that end.


def test_a_killed_worker_is_started_again_and_the_topics_of_the_others_notice_nothing(workers: int) -> None:
    told: list[clients.Reconnected] = []
    heard, back = threading.Event(), threading.Event()

    def on_reconnect(event: clients.Reconnected) -> None:
        told.append(event)
        heard.set()

    with Daemon("--workers", str(workers), admin="off") as daemon:
        victim, healthy = topic_of(1, workers), topic_of(0, workers)
        with (
            clients.connect(daemon.url, on_reconnect=lambda event: back.set()) as bus,
            clients.connect(daemon.url, on_reconnect=on_reconnect) as reader,
        ):
            every = reader.subscribe("#")
            kept = reader.subscribe(healthy)
            bus.publish(victim, "before", ack="accepted")
            assert every.next(PATIENCE_S).value == "before"
            os.kill(worker_pids(daemon)[1], signal.SIGKILL)
            for number in range(50):
                bus.publish(healthy, number, ack="accepted")
                assert kept.next(PATIENCE_S).value == every.next(PATIENCE_S).value == number
            # It is there again, empty, and readers go on as after a restart of a broker.
            assert heard.wait(PATIENCE_S)
            assert back.wait(PATIENCE_S)
            assert len(told) == 1
            assert "#" in told[0].subscriptions
            assert healthy not in told[0].subscriptions
            assert bus.publish(victim, "after", ack="accepted", timeout_s=PATIENCE_S) == 1
            assert every.next(PATIENCE_S).value == "after"
        assert "worker.ended worker=1" in daemon.errors
        assert "status=-9" in daemon.errors
        wait_until(lambda: "worker.started worker=1" in daemon.errors)


def test_a_client_that_comes_while_a_worker_is_away_waits_for_it(workers: int) -> None:
    with Daemon("--workers", str(workers), admin="off") as daemon:
        os.kill(worker_pids(daemon)[0], signal.SIGKILL)
        with clients.connect(daemon.url, connect_timeout_s=PATIENCE_S) as bus:
            assert bus.publish(topic_of(0, workers), 1, ack="accepted") == 1
            assert bus.publish(topic_of(1, workers), 1, ack="accepted") == 1


def test_the_end_delivers_what_waits_and_leaves_nothing(daemon: Daemon, workers: int, tmp_path: Path) -> None:
    pids = worker_pids(daemon)
    assert len(pids) == workers
    with clients.connect(daemon.url, reconnect_timeout_s=0.0) as bus:
        every = bus.subscribe("#")
        for topic in TOPICS:
            bus.publish(topic, 1, ack="accepted")
        assert daemon.terminate() == 0
        assert sum(message.value for message in every) == len(TOPICS)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not (tmp_path / "bus.sock").exists()
    assert "Traceback" not in daemon.errors


def test_when_the_parent_is_killed_its_workers_end(daemon: Daemon) -> None:
    pids = worker_pids(daemon)
    daemon.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_each_worker_tells_of_itself_over_http(workers: int) -> None:
    with Daemon("--workers", str(workers)) as daemon:
        assert daemon.process is not None
        urls = [daemon.admin_url]
        urls += [daemon.process.read_line().removeprefix("admin on ") for _ in range(1, workers)]
        for number, url in enumerate(urls):
            with urlopen(f"{url}/healthz") as response:
                assert response.read() == b"ok"
            with urlopen(f"{url}/metrics") as response:
                text = response.read().decode()
            samples = [line for line in text.splitlines() if line and not line.startswith("#")]
            assert samples
            assert all(f'worker="{number}"' in line for line in samples)


def test_each_worker_takes_over_new_permissions(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "bus.toml"
    file.write_text(READS)
    with Daemon("--workers", str(workers), "--config", str(file), admin="off") as daemon:
        assert daemon.process is not None
        with clients.connect(daemon.url) as bus:
            topics = [topic_of(worker, workers, "a") for worker in range(workers)]
            for topic in topics:
                bus.subscribe(topic, timeout_s=PATIENCE_S).close()
            file.write_text(MUTE)
            daemon.process.signal(signal.SIGHUP)
            wait_until(lambda: daemon.errors.count("credentials.reloaded what='permissions and quotas'") == workers)
            for topic in topics:
                with pytest.raises(clients.PermissionDenied):
                    bus.subscribe(topic, timeout_s=PATIENCE_S)
            # One that is started again does not go back to what was there at the start.
            os.kill(worker_pids(daemon)[1], signal.SIGKILL)
            wait_until(lambda: "worker.started worker=1" in daemon.errors)
            with clients.connect(daemon.url) as late, pytest.raises(clients.PermissionDenied):
                late.subscribe(topics[1], timeout_s=PATIENCE_S)
