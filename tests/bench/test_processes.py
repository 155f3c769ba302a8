"""Processes of a step: none outlives it, and each failure is told with its reason."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.case import Case, Column, Point
from bench.children import Child, StepFailed, program
from bench.contestant import Bus, Contestant
from bench.nursery import Nursery
from bench.processes import Team
from bench.relay import Relay
from bench.runner import run_point
from bench.tasks import Task
from broker.measuring.pacing import send_paced


class Broken(Contestant):
    """A system whose broker cannot start."""

    name = "broken"
    transports = ("unix",)

    def broker_command(self, address: str, directory: Path) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit('no licence')"]

    def connect(self, address: str, *, threads: bool = False) -> Bus:
        raise AssertionError("there is no broker to connect to")


def exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def python(source: str, limit_s: float = 30.0) -> Child:
    return Child("worker", program([sys.executable, "-c", source], limit_s))


def test_a_process_that_hangs_is_ended_by_its_limit() -> None:
    child = python("import signal; signal.pause()", limit_s=0.3)
    with pytest.raises(StepFailed, match="worker was over its time limit"):
        child.line()
    child.end()


def test_a_process_that_fails_is_told_with_the_end_of_its_errors() -> None:
    child = python("raise ValueError('seven')")
    with pytest.raises(StepFailed, match="worker ended with status 1: .*ValueError: seven"):
        child.line()
    child.end()


def test_speaking_to_a_process_that_has_ended_fails() -> None:
    child = python("")
    with pytest.raises(StepFailed, match="status 0"):
        child.line()
    with pytest.raises(StepFailed, match="status 0"):
        child.say("go")
    child.end()


def test_leaving_a_team_ends_all_its_processes(nursery: Nursery) -> None:
    with Team(nursery, Relay(), "unix") as team, pytest.raises(StepFailed, match="no such role"):
        team.run([Task("latency.receive", size_bytes=64, count=1), Task("no such role")])
    assert len(team.children) == 3
    assert not any(exists(child.process_id) for child in team.children)


def test_a_step_that_fails_leaves_its_repeat_empty_and_the_others_go_on(nursery: Nursery) -> None:
    case = Case("case", "Case", (Column("one", "one"),), lambda quick: [], {})
    point = Point("point", lambda team: {"one": 1.0})
    broken, relay = run_point(case, point, ["unix"], [Broken(), Relay()], 2, nursery, lambda step: None)
    assert broken.repeats == [None, None]
    assert "no licence" in broken.failures[0]
    assert [figures["one"] for figures in relay.repeats if figures] == [1.0, 1.0]
    assert relay.failures == []


def test_a_contestant_is_not_asked_for_a_transport_that_it_does_not_have(nursery: Nursery) -> None:
    case = Case("case", "Case", (), lambda quick: [], {})
    assert run_point(case, Point("point", lambda team: {}), ["tcp"], [Broken()], 1, nursery, lambda step: None) == []


def test_every_paced_message_counts_from_its_due_time_when_the_sender_is_late() -> None:
    cycle = [b"0", b"1"]
    sent: list[bytes] = []
    # The first message is due long before the sender begins, and so is each of the others.
    began_ns = send_paced(sent.append, cycle, count=4, rate_hz=1000.0, delay_s=-1.0)
    assert sent == [b"0", b"1", b"0", b"1"]
    assert [after - before for before, after in zip(began_ns, began_ns[1:], strict=False)] == [1_000_000] * 3
