"""One PNG for each benchmark that was run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.case import Case, Column
from bench.plot import draw_all, panels
from bench.runner import OTHERS, Row

RATE = Column("rate", "rate", ratio=True, more_is_better=True)
COUNT = Column("count", "messages")
PNG = b"\x89PNG"


def row(contestant: str, point: str, rate: float | None, curve: tuple[str, float] | None = None) -> Row:
    repeats = [None if rate is None else {"rate": rate, "count": 1.0, OTHERS.figure: 0.0}]
    return Row("case", "tcp", point, contestant, repeats, [], curve=curve)


CASE = Case("case", "Case", (RATE, COUNT), lambda quick: [], {})
BARS = [
    row("relay", "64 B", 900.0),
    row("nats", "64 B", 1.0),
    row("nats/pieces", "64 B", 2.0),
    row("redis", "1 B", None),
]
CURVES = [row("nats", f"{number}", number, ("subscribers", number)) for number in (1.0, 10.0)]


def test_a_benchmark_that_was_run_has_a_figure_and_no_other(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install matplotlib")
    other = Case("other", "Other", (RATE,), lambda quick: [], {})
    draw_all([CASE, other], BARS + CURVES, tmp_path / "plots")
    (file,) = (tmp_path / "plots").iterdir()
    assert file.name == "case.png"
    assert file.read_bytes().startswith(PNG)


def test_there_is_a_panel_for_each_main_figure_and_curve() -> None:
    found = [
        (transport, column.figure, curve, len(rows)) for transport, column, curve, rows in panels(CASE, BARS + CURVES)
    ]
    assert found == [("tcp", "rate", "", 4), ("tcp", "rate", "subscribers", 2)]
