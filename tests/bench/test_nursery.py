"""Workers are processes of their own, and none outlives its limit, its nursery or its parent."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.children import Child, StepFailed, program
from bench.nursery import Nursery
from bench.processes import Team
from bench.relay import Relay
from bench.tasks import Task

RECEIVE = Task("latency.receive", size_bytes=64, count=1)

PARENT = """
from bench.nursery import Nursery
from bench.processes import Team
from bench.relay import Relay
from tests.bench.test_nursery import RECEIVE
with Nursery() as nursery, Team(nursery, Relay(), "tcp") as team:
    worker = team.start(RECEIVE)
    worker.line()
    print(*(child.process_id for child in team.children), flush=True)
    worker.line()
"""
"""Starts a broker and a worker, tells their process ids, and waits for a result that never comes."""


def read_to_the_end(child: Child) -> None:
    while True:
        child.line()


@pytest.fixture
def team(nursery: Nursery) -> Iterator[Team]:
    with Team(nursery, Relay(), "unix") as team:
        yield team


def test_a_worker_is_told_apart_from_its_nursery_by_its_own_error(team: Team) -> None:
    worker = team.start(Task("no such role"))
    with pytest.raises(StepFailed, match="no such role ended with status 1: .*KeyError: 'no such role'"):
        worker.line()


def test_a_worker_that_is_killed_is_told_with_the_signal(team: Team) -> None:
    worker = team.start(RECEIVE)
    assert worker.line() == "ready"
    os.kill(worker.process_id, signal.SIGKILL)
    with pytest.raises(StepFailed, match="ended with status -9"):
        worker.line()


def test_a_worker_that_hangs_is_ended_by_its_limit(nursery: Nursery, team: Team) -> None:
    hanging = Task("latency.receive", "relay", team.address, size_bytes=64, count=1)
    worker = Child("worker", nursery.worker(hanging, limit_s=0.5))
    with pytest.raises(StepFailed, match="worker was over its time limit"):
        read_to_the_end(worker)
    worker.end()


def test_the_processor_time_of_a_worker_counts_once_it_has_ended(nursery: Nursery) -> None:
    before_s = nursery.processor_s()
    with Team(nursery, Relay(), "unix") as team:
        team.start(RECEIVE).line()
    assert nursery.processor_s() > before_s


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_that_is_ended_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    command = ["env", f"TMPDIR={tmp_path}", sys.executable, "-c", PARENT]
    parent = Child("parent", program(command, 30.0))
    watches = [os.pidfd_open(int(process_id)) for process_id in parent.line().split()]
    os.kill(parent.process_id, number)
    with pytest.raises(StepFailed, match="KeyboardInterrupt" if number == signal.SIGINT else "status -9"):
        parent.line()
    for watch in watches:
        assert select.select([watch], [], [], 30.0)[0]
        os.close(watch)
    parent.end()
    assert number == signal.SIGKILL or list(tmp_path.iterdir()) == []
