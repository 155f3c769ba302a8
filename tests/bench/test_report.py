"""Tables: ratios to the reference and to the best peer, notes, and who is not installed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import contestants
from bench.case import Case, Column, Point
from bench.nursery import Nursery
from bench.report import as_json, best_peer, cells, print_report, ratios_of, table
from bench.runner import OTHERS, Row, run_point

LATENCY = Column("p50_us", "p50", 1, ratio=True)
RATE = Column("rate", "rate", 1, ratio=True, more_is_better=True)
CASE = Case("case", "Case", (LATENCY, RATE), lambda quick: [], {})


def row(contestant: str, p50_us: float, rate: float, point: str = "64 B") -> Row:
    return Row("case", "tcp", point, contestant, [{"p50_us": p50_us, "rate": rate, OTHERS.figure: 0.0}], [])


ROWS = [
    row("relay", 50.0, 1000.0),
    row("tensorbus", 100.0, 400.0),
    row("nats", 200.0, 100.0),
    row("redis", 160.0, 50.0),
    row("redis", 1.0, 9999.0, "1 MiB"),
]
TENSORBUS, NATS = ROWS[1], ROWS[2]


def test_the_best_peer_is_the_lowest_in_latency_and_the_highest_in_rate_of_the_same_point() -> None:
    best = [best_peer(TENSORBUS, column, ROWS) for column in (LATENCY, RATE)]
    assert [found.contestant if found else None for found in best] == ["redis", "nats"]


def test_tensorbus_and_the_reference_are_nobodys_best_peer() -> None:
    assert best_peer(ROWS[3], LATENCY, ROWS[:2] + ROWS[3:4]) is None


def test_a_peer_is_compared_with_the_best_of_the_others() -> None:
    assert ratios_of(NATS, RATE, ROWS) == (0.1, 2.0)


def test_a_row_has_its_ratios_beside_its_figures() -> None:
    assert cells([LATENCY, RATE], TENSORBUS, ROWS) == ["100.0", "2.00", "0.62", "400.0", "0.40", "4.00", "1/1"]


def test_without_the_reference_and_peers_there_are_no_ratios() -> None:
    assert cells([LATENCY], TENSORBUS, [TENSORBUS]) == ["100.0", "", "", "1/1"]


def test_the_json_has_the_ratio_to_each_contestant_of_the_point() -> None:
    rows = as_json([CASE], ROWS, {}, {})["rows"]
    assert isinstance(rows, list)
    assert rows[1]["ratios"]["p50_us"] == {"relay": 2.0, "nats": 0.5, "redis": 0.625}


def test_there_is_no_ratio_to_who_could_not_take_part() -> None:
    relay = Row("case", "tcp", "64 B", "relay", [], [], "max 1 publisher")
    assert ratios_of(TENSORBUS, RATE, [relay, TENSORBUS, NATS]) == (None, 4.0)


def test_who_cannot_have_so_many_publishers_does_not_take_part(nursery: Nursery) -> None:
    point = Point("4 to 1", lambda team: {}, publishers=4)
    rows = run_point(CASE, point, ["tcp"], [contestants.by_name("relay")], 1, nursery, lambda step: None)
    assert cells([LATENCY, RATE], rows[0], rows) == ["max 1 publisher"]


def test_a_figure_of_too_few_samples_is_empty() -> None:
    assert cells([Column("p99.9_us", "p99.9")], TENSORBUS, ROWS) == ["", "1/1"]


def test_a_point_may_be_for_some(nursery: Nursery) -> None:
    point = Point("64 B", lambda team: {}, contestants=("nats",))
    assert run_point(CASE, point, ["tcp"], [contestants.by_name("relay")], 1, nursery, lambda step: None) == []


def test_a_message_over_a_peers_limit_is_a_note_in_the_table_and_no_failure(nursery: Nursery) -> None:
    nats = contestants.by_name("nats")
    point = Point("1 GiB", lambda team: {}, message_bytes=1 << 30)
    rows = run_point(CASE, point, ["tcp"], [nats], 3, nursery, lambda step: None)
    assert cells([LATENCY, RATE], rows[0], rows) == ["max 64 MiB"]
    assert rows[0].failures == []


def test_a_peer_that_is_not_installed_is_named_with_how_to_install_it(capsys: pytest.CaptureFixture[str]) -> None:
    print_report([CASE], ROWS, {}, {"nats": "apt-get install nats-server"})
    assert "not measured: nats is not installed: apt-get install nats-server" in capsys.readouterr().out


def test_a_benchmark_may_compare_with_others_and_have_another_reference() -> None:
    assert ratios_of(TENSORBUS, LATENCY, ROWS, ("redis", "relay")) == (0.625, 2.0)
    assert ratios_of(ROWS[3], LATENCY, ROWS, ("redis", "relay")) == (None, None)
    case = Case("case", "Case", (LATENCY,), lambda quick: [], {}, compared=("redis", "relay"))
    titles = [column.header for column in table(case, ROWS).columns]
    assert titles[4:6] == ["/redis", "/relay"]


def encrypted(row: Row, times: float) -> Row:
    """The same over TLS, each repeat so many times as slow."""
    repeats = [figures and {**figures, "p50_us": figures["p50_us"] * times} for figures in row.repeats]
    return replace(row, transport="tls", repeats=repeats)


def test_what_encryption_costs_stands_beside_its_figures() -> None:
    rows = [*ROWS, encrypted(TENSORBUS, 1.5)]
    assert cells([LATENCY], rows[-1], rows) == ["150.0", "", "", "1.50", "1/1"]
    assert cells([LATENCY], TENSORBUS, rows) == ["100.0", "2.00", "0.62", "", "1/1"]
    titles = [column.header for column in table(CASE, rows).columns]
    assert titles[3:7] == ["p50", "/relay", "/best peer", "/tcp"]
    found = as_json([CASE], rows, {}, {})["rows"]
    assert isinstance(found, list)
    assert [each["ratios_to_plain"].get("p50_us") for each in found] == [None] * len(ROWS) + [1.5]


def test_without_plain_tcp_beside_it_there_is_no_such_column() -> None:
    row = encrypted(TENSORBUS, 1.5)
    assert cells([LATENCY], row, [row]) == ["150.0", "", "", "1/1"]


def test_transports_take_turns(nursery: Nursery) -> None:
    relay = contestants.by_name("relay")
    steps: list[str] = []
    point = Point("64 B", lambda team: {"p50_us": 1.0})
    rows = run_point(CASE, point, ["tcp", "unix"], [relay], 2, nursery, steps.append)
    assert [step.split()[1] for step in steps] == ["tcp", "unix", "unix", "tcp"]
    assert [row.transport for row in rows] == ["tcp", "unix"]


def test_who_cannot_sum_a_dtype_does_not_take_part(nursery: Nursery) -> None:
    point = Point("64 B", lambda team: {}, dtype="complex64")
    rows = run_point(CASE, point, ["tcp"], [contestants.by_name("relay")], 1, nursery, lambda step: None)
    assert rows[0].note == "no complex64"
