"""`tensorbus bench` as a real process against a real broker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import clients
from broker.cli import bench
from broker.cli import main as cli
from broker.cli.bench_pipe import Pipe
from broker.errors import BrokerError
from tests.daemon import Daemon, Process, run

QUICK = ("--duration", "0.01")


TIMES = {"p50_us", "p99_us", "max_us"}
FIGURES = {
    "latency": TIMES, "ping-pong": TIMES, "request": TIMES, "throughput": {"messages_per_s", "mb_per_s"},
    "tensors": {"gb_per_s", "bare_sum_gb_per_s"},
}  # fmt: skip


@pytest.mark.parametrize("part", bench.PARTS)
def test_each_point_is_a_json_object_with_its_figures(daemon: Daemon, part: str) -> None:
    # The next test has the command itself, which starts an interpreter for each point.
    asked = ("bench", "--broker", daemon.url, "--json", "--only", part, *QUICK)
    with Process(*asked, module="tests.cli.forked_bench") as process:
        output = process.read_rest().decode()
        assert (process.wait(), process.errors) == (0, "")
    told = [json.loads(line) for line in output.splitlines()]
    points = [(one.part, one.label) for one in bench.POINTS if one.part == part]
    assert [(one["part"], one["point"]) for one in told] == points
    assert all(one.keys() >= FIGURES[part] for one in told)
    assert all(value > 0 for one in told for value in one.values() if isinstance(value, float))


def test_one_part_is_a_line_of_a_table(daemon: Daemon) -> None:
    status, output, errors = run("bench", "--url", daemon.url, "--only", "ping-pong", *QUICK)
    assert (status, errors, output.count("\n")) == (0, "", 1)
    assert output.split()[:4] == ["ping-pong", "64", "B", "p50_us"]


def test_the_parts_of_the_command_line_are_those_that_can_be_measured() -> None:
    assert tuple(bench.PARTS) == cli.BENCH_PARTS


def test_without_a_broker_it_is_one_line(tmp_path: Path) -> None:
    status, output, errors = run("bench", "--broker", f"unix://{tmp_path}/nobody")
    assert (status, output, errors.count("\n")) == (3, "", 1)
    assert errors.startswith("tensorbus: cannot connect to unix://")


def test_what_goes_wrong_at_the_other_process_is_an_error_here(daemon: Daemon) -> None:
    point = bench.Point("latency", 64, 1000.0)
    task = bench.Task(daemon.url, "bench/wrong", point, 0, 1, 0.1)
    ours, their_end = Pipe.pair()
    theirs = Pipe(their_end)
    with clients.connect(daemon.url) as bus:
        bus.publish("bench/wrong", b"somebody else's")
        bus.flush()
        theirs.send(BrokerError("message 0 begins with ff"))
        with pytest.raises(BrokerError, match="message 0 begins"):
            bench._latency(bus, task, ours)
    theirs.close()
    with pytest.raises(BrokerError, match="has ended"):
        bench._answer(ours, task)
    ours.close()
