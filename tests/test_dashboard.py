"""The dashboard: one page that asks nobody else for anything, and the events that it shows."""

from __future__ import annotations

import json
import re
import socket
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.admin.events import PAGES_MAX
from broker.dashboard import FOLDER, read_files
from tests.admin.test_http import ask
from tests.clients.ranks import running

from .daemon import PATIENCE_S, ROOT, Daemon

FOLDER_PATH = ROOT / "broker" / "dashboard"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon("--name", "the-bus") as daemon:
        yield daemon


@contextmanager
def page(daemon: Daemon, path: str = "/api/v1/events") -> Iterator[HTTPResponse]:
    """The stream of events that a page opens."""
    connection = HTTPConnection(daemon.admin_url.removeprefix("http://"), timeout=PATIENCE_S)
    try:
        connection.request("GET", path)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def next_event(stream: HTTPResponse) -> dict[str, dict[str, object]]:
    while not (line := stream.readline()).startswith(b"data: "):
        assert line, "the stream has ended"
    return json.loads(line.removeprefix(b"data: "))  # type: ignore[no-any-return]


def test_the_page_and_its_files_come_from_the_broker_and_ask_nobody_else(daemon: Daemon) -> None:
    page = ask(daemon.admin_url, "/")
    assert (page.status, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "width=device-width" in page.body.decode()
    named = re.findall(r'(?:src|href)="(/dashboard/[^"]+)"', page.body.decode())
    named += [f"{FOLDER}{name}" for path in FOLDER_PATH.glob("*.js") for name in imported(path)]
    served = {path: ask(daemon.admin_url, path) for path in read_files()}
    assert set(named) | {"/"} == set(served)
    for path, answer in served.items():
        assert answer.status == 200, path
        # Of a namespace the address is a name, and nobody asks for it.
        assert "://" not in answer.body.decode().replace("http://www.w3.org/2000/svg", ""), path
    assert served["/dashboard/main.js"].headers["Content-Type"] == "text/javascript; charset=utf-8"


def imported(script: Path) -> list[str]:
    return re.findall(r'from "\./([^"]+)"', script.read_text(encoding="utf-8"))


def test_no_name_can_become_markup_or_a_script(daemon: Daemon) -> None:
    for path, file in read_files().items():
        headers = ask(daemon.admin_url, path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == ("'none'", "'self'", "'self'")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert policy["require-trusted-types-for"] == "'script'"
        assert (headers["X-Content-Type-Options"], headers["Cache-Control"]) == ("nosniff", "no-store")
        assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|style=", file.text) == []


def test_every_file_of_the_page_is_installed_with_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]["*"]
    files = [path.name for path in FOLDER_PATH.iterdir() if path.suffix not in (".py", "") and path.is_file()]
    assert sorted(files) == sorted({path.rpartition("/")[2] or "page.html" for path in read_files()})
    assert [name for name in files if not any(fnmatch(name, pattern) for pattern in patterns)] == []


def test_an_event_has_the_broker_at_a_glance_with_rates_from_the_second_one_on(daemon: Daemon) -> None:
    with clients.connect(daemon.url, name="<b>rank</b>") as bus, page(daemon) as stream:
        assert stream.status == 200
        assert stream.getheader("Content-Type") == "text/event-stream"
        first = next_event(stream)
        bus.publish("metrics/loss", 0.5, ack="accepted")
        second = next_event(stream)
    assert first["now"]["interval_s"] == 0
    assert second["now"]["published_per_s"] > 0  # type: ignore[operator]
    assert second["now"]["broker"] == "the-bus"
    assert second["now"]["topics"][0]["name"] == "metrics/loss"  # type: ignore[index]
    assert second["now"]["sessions"][0]["name"] == "<b>rank</b>"  # type: ignore[index]
    assert (second["draining"], second["groups_open"]) == (False, 0)


def test_groups_come_with_each_ranks_arrival(daemon: Daemon) -> None:
    def rank(number: int) -> clients.Client:
        bus = clients.connect(daemon.url)
        group = bus.group("dp", world_size=2, rank=number, timeout_s=PATIENCE_S, schedule="star")
        for _ in range(3):
            group.all_reduce(np.ones(4, np.float32), timeout_s=PATIENCE_S)
        return bus

    with running() as start:
        buses = [future.result(PATIENCE_S) for future in [start(lambda r=r: rank(r)) for r in range(2)]]
        with page(daemon) as stream:
            (group,) = next_event(stream)["groups"]
        assert [sorted(each["behind_s"]) for each in group["recent"]] == [["0", "1"]] * 3  # type: ignore[index]
        assert [member["rank"] for member in group["members"]] == [0, 1]  # type: ignore[index]
        for bus in buses:
            bus.close()


def test_the_number_of_open_pages_is_bounded_and_closed_ones_do_not_count(daemon: Daemon) -> None:
    opened = []
    try:
        for _ in range(PAGES_MAX):
            context = page(daemon)
            stream = context.__enter__()
            opened.append(context)
            next_event(stream)
        with page(daemon) as refused:
            assert refused.status == 503
            assert "16 pages are open" in json.loads(refused.read())["error"]
    finally:
        for context in opened:
            context.__exit__(None, None, None)
    # That they are closed is seen at their next event.
    end_s = time.monotonic() + PATIENCE_S
    status = 0
    while status != 200 and time.monotonic() < end_s:
        with page(daemon) as stream:
            status = stream.status
    assert status == 200


def test_a_broker_that_ends_does_not_wait_for_open_pages(daemon: Daemon) -> None:
    with page(daemon) as stream:
        next_event(stream)
        assert daemon.terminate() == 0
        assert b"data:" not in stream.read()[-5:]


def test_nothing_is_changed_by_it(daemon: Daemon) -> None:
    for path in ("/", "/api/v1/events"):
        for method in ("POST", "PUT", "DELETE"):
            assert ask(daemon.admin_url, path, method).status == 405


def test_a_page_that_does_not_read_holds_nothing_up(daemon: Daemon) -> None:
    host, _, port = daemon.admin_url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as idle, page(daemon) as stream:
        idle.sendall(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for _ in range(2):
            next_event(stream)
        assert ask(daemon.admin_url, "/healthz").status == 200
