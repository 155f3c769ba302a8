"""Every benchmark runs, in its quick form, against every contestant, and gives each figure of its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cases, contestants, machine
from bench.__main__ import measure
from bench.case import Case
from bench.report import as_json, table

NAMES = [contestant.name for contestant in contestants.ALL]


@pytest.mark.parametrize("case", cases.ALL, ids=lambda case: case.name)
def test_a_benchmark_measures_each_contestant_at_each_point(case: Case) -> None:
    rows = measure([case], ["unix"], NAMES, 1, quick=True)
    assert [row.failures for row in rows] == [[]] * len(rows)
    assert len(rows) == len(case.points(True)) * len(case.contestants or NAMES)
    for row in rows:
        (figures,) = row.repeats
        assert figures is not None
        assert {column.figure for column in case.columns} <= figures.keys()
    assert table(case, rows, contestants.REFERENCE).row_count == len(rows)
    json.dumps(as_json([case], rows, machine.facts(), contestants.REFERENCE))


def test_tcp_works_too() -> None:
    (case,) = [case for case in cases.ALL if case.name == "tensors"]
    rows = measure([case], ["tcp"], NAMES, 1, quick=True)
    assert [row.failures for row in rows] == [[], []]


def test_processor_time_is_everything_but_idle_and_waiting_for_disks() -> None:
    assert machine.busy_s("cpu  100 0 200 5000 700 10 20 30 40 50\ncpu0 1 2 3") == pytest.approx(3.6, rel=0.01)


def test_the_processor_is_named_when_the_kernel_names_it() -> None:
    assert machine.processor("processor\t: 0\nmodel name\t: Abacus 9\n") == "Abacus 9"
    assert machine.processor(Path("/dev/null").read_text(encoding="utf-8")) == "unknown"
