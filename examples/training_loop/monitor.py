"""The monitor as a process: shows the run, and writes what it has seen to history.json for the plot."""

from __future__ import annotations

import argparse
import json
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.live import Live

import clients
from examples.training_loop import display
from examples.training_loop.job import Job

REFRESH_INTERVAL_S = 0.25
PLAIN_INTERVAL_S = 1.0


class History:
    """All reports of all trainers, and what has happened to groups."""

    def __init__(self) -> None:
        self.reports: list[dict[str, object]] = []
        self.events: list[str] = []
        self._started_s = time.time()
        self._finished: set[tuple[object, object]] = set()

    def take_report(self, message: clients.Message) -> None:
        """A trainer has reported a step."""
        if isinstance(message.value, dict):
            report = {**message.value, "time_s": message.published_ns / 1e9 - self._started_s}
            self.reports.append(report)
            if report["step"] + 1 >= report["steps"]:
                self._finished.add((report["group"], report["rank"]))

    def take_event(self, message: clients.Message) -> None:
        """A trainer has noticed that the members of its group have changed."""
        event = cast("Mapping[str, list[int]]", message.value)
        group = message.topic.split("/")[1]
        # Ranks that have finished leave, which is no news.
        lost_ranks = [rank for rank in event["lost_ranks"] if (group, rank) not in self._finished]
        if lost_ranks:
            self.events.append(f"{message.sender}: ranks {lost_ranks} are lost, ranks {event['ranks']} go on")

    def write(self, path: Path) -> None:
        """Writes everything as JSON."""
        path.write_text(json.dumps({"reports": self.reports, "events": self.events}))


def show(
    monitor: clients.Monitor, history: History, jobs: list[Job], stopping: Callable[[float], bool], *, plain: bool
) -> None:
    """Shows the run until `stopping`, which waits for so many seconds, says that it is over."""
    console = Console()
    if plain:
        told: set[str] = set()
        while not stopping(PLAIN_INTERVAL_S):
            new = [line for line in [*display.lines(monitor.snapshot(), jobs), *history.events] if line not in told]
            told.update(new)
            for line in new:
                console.print(line, soft_wrap=True, highlight=False)
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            over = stopping(REFRESH_INTERVAL_S)
            live.update(display.render(monitor.snapshot(), jobs, history.events), refresh=True)
            if over:
                return


def main() -> None:
    """Runs the monitor until SIGTERM or a message on control/monitor/stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="the broker's address")
    parser.add_argument("--jobs", required=True, type=json.loads, help="what is trained, as JSON")
    parser.add_argument("--out", required=True, type=Path, help="folder for history.json")
    parser.add_argument("--plain", action="store_true", help="lines in place of a live display")
    arguments = parser.parse_args()
    jobs = [Job.from_json(text) for text in arguments.jobs]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    history = History()
    with clients.connect(arguments.url, name="monitor") as bus:
        bus.subscribe(
            "metrics/#", handler=history.take_report, replay="all", overflow="drop_oldest", queue_messages=100_000
        )
        bus.subscribe("events/#", handler=history.take_event, overflow="drop_oldest")
        bus.subscribe("control/monitor/stop", handler=lambda message: stop.set())
        with clients.Monitor(bus) as monitor:
            show(monitor, history, jobs, stop.wait, plain=arguments.plain)
    history.write(arguments.out / "history.json")


if __name__ == "__main__":
    main()
