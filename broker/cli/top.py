"""What `tensorbus top` does: looks at a broker again and again, and shows what changes; also beyond a restart of it."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self, cast

import click
from rich.console import Console
from rich.live import Live

import clients
from broker.admin.rates import Look, Refresh, refresh, together
from broker.admin.shapes import ServerView, SessionView, TopicView
from broker.cli.connect import ask, connect
from broker.cli.streams import discard_output
from broker.cli.top_view import as_json, picture
from broker.errors import BrokerError
from clients.connection.views import view

ROUND_TRIPS: Final = 10
"""In each look."""
ITEMS_MAX: Final = 2000
"""Sessions and topics that are asked for; the oldest ones."""
PATIENCE_S: Final = 2.0
_QUIT: Final = (b"q", b"Q", b"\x03", b"\x1b", b"")


class Looker:
    """Looks at a broker; when it is gone, finds it again."""

    def __init__(self, url: str | None) -> None:
        """Connects.

        Raises:
            ConnectError: there is no broker.
        """
        self._url = url
        self._bus: clients.Client | None = connect(url, "top")
        self._before: Look | None = None

    def look(self) -> Refresh | str:
        """What is to be shown now, or why there is nothing."""
        try:
            if self._bus is None:
                self._bus = connect(self._url, "top")
            now = _look(self._bus)
        except BrokerError as error:
            self.close()
            return f"the broker is gone, looking for it: {error}"
        told, self._before = refresh(self._before, now), now
        return told

    def close(self) -> None:
        """Disconnects."""
        bus, self._bus = self._bus, None
        if bus is not None:
            # It may be the broker's end that this is about.
            with suppress(BrokerError):
                bus.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def _look(bus: clients.Client) -> Look:
    trips = []
    for _ in range(ROUND_TRIPS):
        before_ns = time.perf_counter_ns()
        bus.flush(PATIENCE_S)
        trips.append((time.perf_counter_ns() - before_ns) / 1e9)
    servers = [server for server, _ in ask(bus, "server", ServerView)]
    return Look(
        time.monotonic(),
        together(servers),
        {
            (cast("int", whole.get("worker", 0)), session.id): session
            for session, whole in ask(bus, "sessions", SessionView, ITEMS_MAX)
        },
        [topic for topic, _ in ask(bus, "topics", TopicView, ITEMS_MAX)],
        view(bus, "groups"),
        sorted(trips),
    )


def run(url: str | None, interval_s: float, *, as_lines: bool, once: bool) -> None:
    """Shows refreshes until q or Ctrl-C, or until nobody reads them any more.

    Args:
        url: of the broker.
        interval_s: between two looks, in seconds.
        as_lines: each refresh as an object in a line.
        once: only one refresh, with rates over one interval.

    Raises:
        ConnectError: there is no broker at the start.
    """
    with Looker(url) as looker, suppress(KeyboardInterrupt):
        if once:
            looker.look()
            time.sleep(interval_s)
            _print(looker.look(), as_lines=as_lines)
        elif as_lines or not sys.stdout.isatty():
            try:
                while True:
                    _print(looker.look(), as_lines=as_lines)
                    time.sleep(interval_s)
            except BrokenPipeError:
                discard_output()
        else:
            _live(looker, interval_s)


def _print(told: Refresh | str, *, as_lines: bool) -> None:
    if as_lines:
        click.echo(as_json(told))
    else:
        console = Console()
        console.print(picture(told, console.width, console.height))


def _live(looker: Looker, interval_s: float) -> None:
    console = Console()
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(picture(looker.look(), console.width, console.height), refresh=True)
            if _quits(keys, interval_s):
                return


@contextmanager
def _keys() -> Iterator[int]:
    """Where keys can be read one by one; -1 when the input is no terminal."""
    if not sys.stdin.isatty():
        yield -1
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quits(keys: int, interval_s: float) -> bool:
    """Waits; says whether somebody wants to end it. Any other key is a wish for the next refresh."""
    if keys < 0:
        time.sleep(interval_s)
        return False
    ready, _, _ = select.select([keys], [], [], interval_s)
    return bool(ready) and os.read(keys, 1) in _QUIT
