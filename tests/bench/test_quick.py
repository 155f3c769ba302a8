"""Every benchmark runs, in its quick form, against every contestant that is installed, and gives each figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cases, contestants, machine
from bench.__main__ import measure
from bench.case import Case, Point
from bench.nursery import Nursery
from bench.processes import Team
from bench.report import as_json, table
from bench.runner import is_asked, obstacle
from tests.conftest import compiled_modules

SYSTEMS = [contestant.system for contestant in contestants.ALL]
ALIKE = ("tensorbus/drop_newest", "tensorbus/latest")
"""Variants that differ from another one in a word."""
IS_COMPILED = any(compiled_modules().values())
RARE = "p99.9_us"
"""A figure of more samples than a quick run has."""


def cases_of(name: str) -> list[Case]:
    """The benchmarks in which a contestant takes part."""
    everybody = [contestant.name for contestant in contestants.ALL]
    return [case for case in cases.ALL if name in (case.contestants or everybody)]


def parameter(name: str) -> object:
    """A contestant. Of a peer one sees only that it can be measured, nothing of tensorbus: for make test-bench."""
    return pytest.param(name, marks=[pytest.mark.measurement] if contestants.by_name(name).is_peer else [])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [parameter(name) for name in contestants.EVERY if name not in ALIKE])
def test_a_contestant_is_measured_at_each_point_of_its_benchmarks(nursery: Nursery, name: str) -> None:
    contestant = contestants.by_name(name)
    if how := contestant.missing():
        pytest.skip(how)
    if contestant.is_peer and not IS_COMPILED:
        pytest.skip("a peer runs nothing that could be compiled, so it is measured where that was done")
    # One broker for all, which is most of what a step costs.
    with Team(nursery, contestant, contestant.transports[0]) as team:
        for case in cases_of(name):
            for point in case.points(True):
                if is_asked(point, contestant) and not obstacle(point, contestant):
                    figures = point.measure(team)
                    assert {column.figure for column in case.columns} - {RARE} <= figures.keys(), case.name


def test_each_benchmark_has_contestants_that_are_always_installed() -> None:
    tested = {case.name for name in contestants.EVERY if name.startswith("tensorbus") for case in cases_of(name)}
    assert tested == {case.name for case in cases.ALL}


@pytest.mark.timeout(300)
def test_a_run_over_unix_sockets_is_reported_with_each_figure(nursery: Nursery) -> None:
    (case,) = [case for case in cases.ALL if case.name == "latency"]
    rows = measure(nursery, [case], ["unix"], SYSTEMS, 1, quick=True)
    assert [row.failures for row in rows] == [[]] * len(rows)
    able = [one for one in contestants.taking_part(case.contestants, SYSTEMS) if "unix" in one.transports]
    assert [row.contestant for row in rows] == [one.name for one in able]
    assert table(case, rows).row_count == len(rows)
    json.dumps(as_json([case], rows, machine.facts(), {}))


def test_only_the_points_that_are_asked_for_are_measured(nursery: Nursery) -> None:
    case = Case("case", "Case", (), lambda quick: [Point(label, lambda team: {}) for label in ("64 B", "1 MiB")], {})
    rows = measure(nursery, [case], ["tcp"], ["relay"], 1, "MiB", quick=True)
    assert [row.point for row in rows] == ["1 MiB"]


def test_only_the_systems_that_are_asked_for_take_part() -> None:
    assert [one.name for one in contestants.taking_part((), ["tensorbus", "relay"])] == ["relay", "tensorbus"]
    able = ("tensorbus/latest", "zeromq/bounded", "tensorbus/drop_oldest")
    assert [one.name for one in contestants.taking_part(able, ["tensorbus"])] == [able[0], able[2]]


def test_processor_time_is_everything_but_idle_and_waiting_for_disks() -> None:
    assert machine.busy_s("cpu  100 0 200 5000 700 10 20 30 40 50\ncpu0 1 2 3") == pytest.approx(3.6, rel=0.01)


def test_the_processor_is_named_when_the_kernel_names_it() -> None:
    assert machine.processor("processor\t: 0\nmodel name\t: Abacus 9\n") == "Abacus 9"
    assert machine.processor(Path("/dev/null").read_text(encoding="utf-8")) == "unknown"


def test_the_versions_of_what_is_measured_are_told() -> None:
    installed = contestants.taking_part((), SYSTEMS)
    facts = machine.facts(installed)
    assert all(facts[name] not in ("", "unknown") for one in installed for name in one.versions())
