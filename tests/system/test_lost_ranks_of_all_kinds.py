"""Ranks in processes of their own are killed in the middle of any kind of collective: nothing is half done."""

from __future__ import annotations

import random

import pytest

import clients
from tests.daemon import Daemon, Process


def line_after(process: Process, skipped: str) -> str:
    """The next line that is another one."""
    line = process.read_line()
    while line == skipped:
        line = process.read_line()
    return line


@pytest.mark.parametrize("schedule", ["star", "auto"])
@pytest.mark.parametrize("seed", range(3))
def test_killed_ranks_leave_the_others_with_whole_results(daemon: Daemon, schedule: str, seed: int) -> None:
    chance = random.Random(seed)
    ranks = {rank: Process(daemon.url, str(rank), "3", schedule, module="tests.system.kinds_rank") for rank in range(3)}
    processes = list(ranks.values())
    try:
        for process in processes:
            assert process.read_line().startswith("joined")
            for _ in range(1 + seed):
                assert process.read_line() == "running"
        generation = 1
        while len(ranks) > 1:
            for _ in range(chance.randrange(200_000)):
                pass
            lost = chance.choice(list(ranks))
            ranks.pop(lost).kill()
            generation += 1
            for process in ranks.values():
                assert line_after(process, "running") == f"changed {generation} lost=[{lost}]"
                assert process.read_line() == "running"
        with clients.connect(daemon.url, name="control") as bus:
            bus.publish("control/stop", True, ack="accepted")
        (rank, process), *_ = ranks.items()
        assert line_after(process, "running") == f"stopped ranks=[{rank}]"
    finally:
        for process in processes:
            process.close()
