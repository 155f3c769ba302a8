"""Ten thousand jobs, eight workers, and somebody who kills workers at random."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import clients
from broker.metrics import Metrics
from tests.clients.serving import ServingThread
from tests.daemon import Process

JOBS = 10_000
WORKERS = 8
KILLS = 12
PATIENCE_S = 150.0
"""As long as ten thousand jobs may take where eight workers and their broker share a processor with others."""


@pytest.fixture
def broker() -> Iterator[ServingThread]:
    with ServingThread("tcp://127.0.0.1:0") as serving:

        def set_policy() -> None:
            router = serving.server.state.router
            router.policies.defaults = replace(router.policies.defaults, acknowledge=True, max_deliveries=20)

        serving.call(set_policy)
        yield serving


def metric(broker: ServingThread, name: str) -> float:
    text, _ = broker.call(Metrics(broker.server).render)
    return next(float(line.split()[-1]) for line in text.decode().splitlines() if line.startswith(f"{name} "))


def records(folder: Path) -> list[tuple[int, int]]:
    """Of every job that was done its number and which delivery it was; a last line may be torn by a kill."""
    lines = [line.split() for path in folder.iterdir() for line in path.read_text().splitlines()]
    return [(int(line[0]), int(line[1])) for line in lines if len(line) == 2]


class Crew:
    """Workers, of which some are killed and replaced."""

    def __init__(self, broker: ServingThread, folder: Path) -> None:
        self._broker = broker
        self._folder = folder
        self._started = 0
        self.workers: list[Process] = []

    def start(self, count: int) -> None:
        """Starts workers; they need not be ready when this returns."""
        for _ in range(count):
            name = f"worker-{self._started}"
            self._started += 1
            arguments = self._broker.url, name, str(self._folder / name)
            self.workers.append(Process(*arguments, module="tests.system.worker"))

    def kill(self, generator: random.Random) -> None:
        """Kills one of them, and has another one take its place."""
        victim = self.workers.pop(generator.randrange(len(self.workers)))
        victim.close()
        self.start(1)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def test_every_job_is_done_though_workers_are_killed_at_random(broker: ServingThread, tmp_path: Path) -> None:
    folder = tmp_path / "done"
    folder.mkdir()
    generator = random.Random(20)
    crew = Crew(broker, folder)
    with clients.connect(broker.url, name="publisher") as bus:
        letters = bus.subscribe("$dead/#")
        crew.start(WORKERS)
        try:
            for worker in crew.workers:
                assert worker.read_line() == "ready"
            for number in range(JOBS):
                bus.publish("jobs/numbers", number)
                if number % (JOBS // KILLS) == JOBS // KILLS // 2:
                    crew.kill(generator)
            bus.flush(PATIENCE_S)
            deadline = time.monotonic() + PATIENCE_S
            pause = bus.subscribe("nothing/comes/here")
            while metric(broker, "tensorbus_jobs_waiting") + metric(broker, "tensorbus_jobs_leased"):
                assert time.monotonic() < deadline, f"{len(set(records(folder)))} jobs were done"
                with pytest.raises(clients.TimeoutError):
                    pause.next(0.1)
            bus.publish("control/stop", True, ack="accepted")
            assert letters.pending == 0
        finally:
            crew.close()
    done = records(folder)
    assert {number for number, _ in done} == set(range(JOBS))
    redelivered = metric(broker, "tensorbus_messages_redelivered_total")
    twice = sum(count - 1 for count in Counter(number for number, _ in done).values())
    seen_again = sum(1 for _, deliveries in done if deliveries > 1)
    # What was done twice was delivered twice, and whoever did it the second time could see that.
    assert twice <= seen_again <= redelivered
    assert redelivered > 0
