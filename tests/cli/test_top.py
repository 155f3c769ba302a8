"""`tensorbus top`: what it works out of two looks, how it fits a terminal, and that it ends when it should only."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

import clients
from broker.cli.top_data import Look, Refresh, Server, Session, Subscription, Topic, refresh, together
from broker.cli.top_view import as_json, picture, rate_text
from tests.daemon import PATIENCE_S, ROOT, Daemon, Process, run
from tests.loopback import own_host


def server(**changes: object) -> Server:
    told: dict[str, object] = {
        "name": "bus", "version": "1", "process": 7, "uptime_s": 10.0, "sessions": 2, "topics": 2, "groups": 0,
        "published_messages": 0, "published_bytes": 0, "delivered_messages": 0, "dropped_messages": {"latest": 0},
        "received_bytes": 0, "sent_bytes": 0,
    }  # fmt: skip
    return msgspec.convert({**told, **changes}, Server)


def session(number: int, received_bytes: int = 0, dropped: int = 0, blocks: list[str] | None = None) -> Session:
    subscriptions = [Subscription(5, blocks or [])]
    return Session(number, f"rank-{number}", "vm", 100 + number, 0.5, received_bytes, 0, 3, dropped, subscriptions)


def topic(name: str, messages: int = 0, size_bytes: int = 0) -> Topic:
    return Topic(name, messages, size_bytes, 1, 0, [])


def look(
    at_s: float, sessions: list[Session] | None = None, topics: list[Topic] | None = None, **changes: object
) -> Look:
    return Look(at_s, server(uptime_s=at_s, **changes), sessions or [], topics or [], [], [1e-5, 2e-5, 3e-5])


def test_totals_become_rates_and_what_has_most_traffic_comes_first() -> None:
    before = look(10, [session(1, 100), session(2, 100)], [topic("a", 5), topic("b", 5, 50)])
    now = look(
        12, [session(1, 300), session(2, 1100, dropped=4), session(3, 20)], [topic("a", 6), topic("b", 25, 450)],
        published_messages=21, published_bytes=400, delivered_messages=42, dropped_messages={"latest": 3, "block": 1},
    )  # fmt: skip
    told = refresh(before, now)
    assert (told.interval_s, told.restarted) == (2.0, False)
    assert (told.published_per_s, told.published_bytes_per_s) == (10.5, 200.0)
    assert (told.delivered_per_s, told.dropped_per_s) == (21.0, 2.0)
    assert [(row.session, row.received_bytes_per_s) for row in told.sessions] == [(2, 500.0), (1, 100.0), (3, 10.0)]
    assert (told.sessions[0].dropped_per_s, told.sessions[0].unread_messages) == (2.0, 5)
    assert [(row.name, row.messages_per_s, row.bytes_per_s) for row in told.topics] == [
        ("b", 10.0, 200.0),
        ("a", 0.5, 0.0),
    ]
    assert (told.round_trip_p50_s, told.round_trip_p99_s) == (2e-5, 3e-5)


def test_what_workers_have_counted_is_added_up() -> None:
    first = server(uptime_s=9.0, published_messages=5, dropped_messages={"latest": 1})
    second = server(uptime_s=3.0, process=8, topics=5, published_messages=7, dropped_messages={"latest": 2, "block": 4})
    told = together([first, second])
    assert (told.uptime_s, told.process, told.topics, told.published_messages) == (3.0, 7, 7, 12)
    assert told.dropped_messages == {"latest": 3, "block": 4}
    assert together([server()]) == server()


def test_sessions_of_several_workers_that_have_the_same_number_are_told_apart() -> None:
    before = look(10, [session(1, 100), msgspec.structs.replace(session(1, 500), worker=1)])
    now = look(11, [session(1, 150), msgspec.structs.replace(session(1, 520), worker=1)])
    assert [row.received_bytes_per_s for row in refresh(before, now).sessions] == [50.0, 20.0]


def test_the_first_refresh_has_no_rates() -> None:
    told = refresh(None, look(10, [session(1, 100)], [topic("a", 5)], published_messages=5))
    assert (told.interval_s, told.published_per_s, told.sessions[0].received_bytes_per_s) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("changes", [{"process": 8}, {}])
def test_after_a_restart_of_the_broker_nothing_is_below_zero(changes: dict[str, object]) -> None:
    before = look(100, [session(1, 9000)], published_messages=9000)
    now = Look(101, server(uptime_s=0.5, published_messages=3, **changes), [session(1, 5)], [], [], [])
    told = refresh(before, now)
    assert (told.restarted, told.published_per_s, told.sessions[0].received_bytes_per_s) == (True, 0.0, 0.0)


GROUP = {
    "name": "dp", "generation": 1, "world_size": 4, "ranks": [0, 1, 3], "missing_ranks": [2], "schedule": "star",
    "operations": [], "newcomers": [], "last_failure": None, "last_outcome": "done",
    "stragglers": [{"rank": 3, "name": "t", "lateness_s": 0.05, "late_operations": 9, "operations": 20}],
}  # fmt: skip


def printed(told: Refresh | str, width: int, height: int = 30) -> list[str]:
    console = Console(width=width, height=height, color_system=None, file=None, record=True, quiet=False)
    with console.capture() as capture:
        console.print(picture(told, width, height))
    return capture.get().splitlines()


def crowd() -> Refresh:
    now = look(12, [session(number) for number in range(50)], [topic(f"metrics/{number}") for number in range(50)])
    told = refresh(look(10), now)
    told.groups, told.sessions_open, told.topics_open = [GROUP], 50, 50
    return told


@pytest.mark.parametrize("width", [20, 45, 80, 200])
@pytest.mark.parametrize("height", [5, 24, 60])
def test_it_fits_a_terminal_of_any_width(width: int, height: int) -> None:
    lines = printed(crowd(), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 22)
    text = "\n".join(lines)
    if width >= 45:
        assert "2 by" not in text
        assert "3 by 50 ms" in text
        assert "of 50" in text


def test_names_play_no_tricks_on_the_terminal() -> None:
    told = crowd()
    told.sessions[0].name = "\x1b[2Jrank"
    assert "\x1b" not in "\n".join(printed(told, 80))
    assert printed("gone \x1b[2J", 80) == ["gone ?[2J"]


def test_rates_in_few_letters() -> None:
    assert [rate_text(each) for each in (0, 0.25, 7, 999, 1500, 2_500_000, 3.2e9)] == [
        "0", "0.2", "7", "999", "1.5k", "2.5M", "3.2G",
    ]  # fmt: skip


def test_no_refresh_is_an_object_too() -> None:
    assert json.loads(as_json("gone")) == {"error": "gone"}


def test_once_shows_one_refresh_and_ends() -> None:
    with Daemon("--name", "the-bus") as daemon, clients.connect(daemon.url, name="rank-0") as bus:
        bus.publish("metrics/loss", 0.5, ack="accepted")
        status, output, errors = run("top", daemon.url, "--once", "--interval", "0.05")
        assert (status, errors) == (0, "")
        assert "the-bus" in output
        assert "metrics/loss" in output
        assert "rank-0" in output
        status, output, _ = run("top", "--url", daemon.url, "--once", "--json", "--interval", "0.05")
        told = msgspec.json.decode(output, type=Refresh)
        assert (status, told.broker, told.topics[0].name) == (0, "the-bus", "metrics/loss")
        assert told.interval_s >= 0.05


def test_without_a_broker_it_ends_at_once() -> None:
    status, output, errors = run("top", "tcp://127.0.0.1:1", "--once")
    assert (status, output) == (3, "")
    assert errors.startswith("tensorbus: cannot connect")


def next_refresh(top: Process, wanted: str) -> dict[str, object]:
    """The next line that has a key."""
    while True:
        told: dict[str, object] = json.loads(top.read_line())
        if wanted in told:
            return told


def test_it_goes_on_when_the_broker_was_killed_and_started_again_and_ends_with_ctrl_c() -> None:
    listen = (f"tcp://{own_host()}:0",)
    with (
        Daemon(listen=listen, admin="off") as daemon,
        Process("top", daemon.url, "--json", "--interval", "0.05") as top,
    ):
        next_refresh(top, "broker")
        daemon.kill()
        assert "the broker is gone" in str(next_refresh(top, "error")["error"])
        daemon.start()
        assert next_refresh(top, "broker")["sessions_open"] == 1
        top.signal(signal.SIGINT)
        assert top.wait() == 0
        assert top.errors.count("Traceback") == 0


def test_it_ends_when_nobody_reads_it_any_more() -> None:
    with Daemon() as daemon, Process("top", daemon.url, "--json", "--interval", "0.05") as top:
        next_refresh(top, "broker")
        top.close_output()
        assert top.wait() == 0
        assert "Traceback" not in top.errors


def test_on_a_terminal_it_takes_the_whole_screen_and_q_gives_it_back(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with Daemon("--name", "the-bus") as daemon:
        command = [sys.executable, "-m", "broker", "top", daemon.url, "--interval", "0.1"]
        top = subprocess.Popen(command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
        os.close(theirs)
        try:
            assert b"the-bus" in read_until(ours, b"the-bus")
            os.write(ours, b"q")
            # The end of the alternate screen.
            assert b"\x1b[?1049l" in read_until(ours, b"\x1b[?1049l")
            assert top.wait(PATIENCE_S) == 0
        finally:
            top.kill()
            top.wait(PATIENCE_S)
            os.close(ours)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    end_s, data = time.monotonic() + PATIENCE_S, b""
    while wanted not in data and time.monotonic() < end_s:
        if select.select([descriptor], [], [], 0.1)[0]:
            data += os.read(descriptor, 65_536)
    return data


def test_what_belongs_to_a_tenant_is_shown_with_it() -> None:
    told = crowd()
    told.topics[0].tenant = told.sessions[0].tenant = "vision"
    told.groups = [{**GROUP, "tenant": "vision"}]
    text = "\n".join(printed(told, 200))
    for name in (told.topics[0].name, told.sessions[0].name, "dp"):
        assert f"{name} of vision" in text
