"""`tensorbus top`: how it fits a terminal, and that it ends when it should only."""

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
from broker.admin.rates import Refresh, refresh
from broker.cli.top_view import as_json, picture, rate_text
from tests.admin.test_rates import look, session, topic
from tests.daemon import PATIENCE_S, ROOT, Daemon, Process, run
from tests.loopback import own_host

GROUP = {
    "name": "dp", "number": 1, "generation": 1, "world_size": 4, "ranks": [0, 1, 3], "missing_ranks": [2],
    "waiting": 0, "age_s": 1.0, "schedule": "star", "operations": [], "untold_failures": 0, "newcomers": [],
    "stragglers": [
        {
            "rank": 3, "name": "t", "host": "vm", "process": 7, "lateness_s": 0.05, "late_operations": 9,
            "operations": 20,
        }
    ],
    "recorded_operations": 20, "failed_operations": 0, "last_outcome": "done", "last_failure": None,
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
