"""Tables for people and JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench.case import Case, Column
from bench.machine import Facts
from bench.runner import OTHERS, Row
from bench.summary import medians, ratio

WIDTH = 160
"""Columns of a table that goes to a file."""


def ratio_of(row: Row, figure: str, rows: Sequence[Row], reference: str) -> float | None:
    """A row's ratio to the reference's row of the same point."""
    if row.contestant == reference:
        return None
    for other in rows:
        if (other.transport, other.point, other.contestant) == (row.transport, row.point, reference):
            return ratio(figure, row.repeats, other.repeats)
    return None


def table(case: Case, rows: Sequence[Row], reference: str) -> Table:
    """The table of one case: medians over the repeats, and ratios to the reference."""
    result = Table(title=case.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("transport", "what", "contestant"):
        result.add_column(title, no_wrap=True)
    for column in (*case.columns, OTHERS):
        result.add_column(column.title, justify="right")
        if column.ratio:
            result.add_column(f"/{reference}", justify="right")
    result.add_column("repeats", justify="right")
    before = ("", "")
    for row in rows:
        point = (row.transport, row.point)
        labels = point if point != before else ("", "")
        result.add_row(*labels, row.contestant, *cells((*case.columns, OTHERS), row, rows, reference))
        before = point
    return result


def cells(columns: Sequence[Column], row: Row, rows: Sequence[Row], reference: str) -> list[str]:
    """The figures of a row, in text."""
    good = [figures for figures in row.repeats if figures is not None]
    middle = medians(good) if good else {}
    texts = []
    for column in columns:
        texts.append(f"{middle[column.figure]:,.{column.decimals}f}" if middle else "failed")
        if column.ratio:
            value = ratio_of(row, column.figure, rows, reference)
            texts.append("" if value is None else f"{value:.2f}")
    return [*texts, f"{len(good)}/{len(row.repeats)}"]


def print_report(cases: Sequence[Case], rows: Sequence[Row], facts: Facts, reference: str) -> None:
    """Prints the machine's facts, a table per case, and what failed."""
    console = Console() if Console().is_terminal else Console(width=WIDTH)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    for case in cases:
        found = [row for row in rows if row.case == case.name]
        if found:
            console.print(table(case, found, reference))
    for row in rows:
        for failure in row.failures:
            console.print(f"failed: {row.case} {row.transport} {row.point}: {failure}", style="red", markup=False)


def as_json(cases: Sequence[Case], rows: Sequence[Row], facts: Facts, reference: str) -> dict[str, object]:
    """The same for programs: every repeat, the medians and the ratios."""
    ratios = {case.name: [column.figure for column in case.columns if column.ratio] for case in cases}
    return {
        "machine": facts,
        "reference": reference,
        "rows": [
            {
                "case": row.case,
                "transport": row.transport,
                "point": row.point,
                "contestant": row.contestant,
                "repeats": row.repeats,
                "medians": medians(good) if (good := [one for one in row.repeats if one is not None]) else None,
                "ratios": {figure: ratio_of(row, figure, rows, reference) for figure in ratios[row.case]},
                "failures": row.failures,
            }
            for row in rows
        ],
    }
