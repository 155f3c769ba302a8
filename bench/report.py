"""Tables for people and JSON for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bench import contestants
from bench.case import BEST_PEER, RELAY, Case, Column
from bench.machine import Facts
from bench.runner import OTHERS, Row
from bench.summary import medians, ratio

WIDTH = 180
"""Columns of a table that goes to a file."""
PLAIN, ENCRYPTED = "tcp", "tls"
"""Transports: what encryption costs is told beside each of its figures."""


def middle(row: Row) -> dict[str, float]:
    """The medians of a row's figures; empty when no repeat succeeded."""
    good = [figures for figures in row.repeats if figures is not None]
    return medians(good) if good else {}


def beside(row: Row, rows: Sequence[Row]) -> list[Row]:
    """The other contestants' rows of the same point, of those that were measured."""
    point = (row.case, row.transport, row.point)
    others = (other for other in rows if other is not row and not other.note)
    return [other for other in others if (other.case, other.transport, other.point) == point]


def best_peer(row: Row, column: Column, rows: Sequence[Row]) -> Row | None:
    """The row of the peer that is the best at a row's point, by one figure, other than the row's own."""
    peers = [other for other in beside(row, rows) if contestants.by_name(other.contestant).is_peer]
    found = [(figures[column.figure], other) for other in peers if (figures := middle(other))]
    if not found:
        return None
    return (max if column.more_is_better else min)(found, key=lambda pair: pair[0])[1]


def ratios_of(
    row: Row, column: Column, rows: Sequence[Row], compared: Sequence[str] = (RELAY, BEST_PEER)
) -> tuple[float | None, ...]:
    """A figure's ratios to those that a case names, but for the reference, the first of them, which has none."""
    if row.contestant == compared[0]:
        return (None,) * len(compared)
    named = {other.contestant: other for other in beside(row, rows)}
    others = [best_peer(row, column, rows) if name == BEST_PEER else named.get(name) for name in compared]
    return tuple(None if other is None else ratio(column.figure, row.repeats, other.repeats) for other in others)


def plain(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the same without encryption; None for one that is without, or where it was not measured."""
    if row.transport != ENCRYPTED:
        return None
    wanted = (row.case, PLAIN, row.point, row.contestant)
    found = (other for other in rows if (other.case, other.transport, other.point, other.contestant) == wanted)
    return next((other for other in found if not other.note), None)


def has_both(rows: Sequence[Row]) -> bool:
    """Whether something was measured with encryption and without."""
    return any(plain(row, rows) is not None for row in rows)


def table(case: Case, rows: Sequence[Row]) -> Table:
    """The table of one case: medians over the repeats, and ratios to others."""
    result = Table(title=case.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for title in ("transport", "what", "contestant"):
        result.add_column(title, no_wrap=True)
    for column in (*case.columns, OTHERS):
        result.add_column(column.title, justify="right")
        if column.ratio:
            for name in (*case.compared, *([PLAIN] if has_both(rows) else [])):
                result.add_column(f"/{name}", justify="right")
    result.add_column("repeats", justify="right")
    before = ("", "")
    for row in rows:
        point = (row.transport, row.point)
        labels = point if point != before else ("", "")
        result.add_row(*labels, row.contestant, *cells((*case.columns, OTHERS), row, rows, case.compared))
        before = point
    return result


def cells(
    columns: Sequence[Column], row: Row, rows: Sequence[Row], compared: Sequence[str] = (RELAY, BEST_PEER)
) -> list[str]:
    """The figures of a row, in text."""
    if row.note:
        return [row.note]
    figures = middle(row)
    texts = []
    for column in columns:
        if figures:
            # Of few samples there is no p99.9.
            texts.append(f"{figures[column.figure]:,.{column.decimals}f}" if column.figure in figures else "")
        else:
            texts.append("failed")
        if column.ratio:
            ratios = ratios_of(row, column, rows, compared)
            if has_both(rows):
                without = plain(row, rows)
                ratios += (None if without is None else ratio(column.figure, row.repeats, without.repeats),)
            texts += ["" if value is None else f"{value:.2f}" for value in ratios]
    good = sum(figures is not None for figures in row.repeats)
    return [*texts, f"{good}/{len(row.repeats)}"]


def print_report(cases: Sequence[Case], rows: Sequence[Row], facts: Facts, absent: Mapping[str, str]) -> None:
    """Prints the machine's facts, a table per case, what failed, and what is not installed."""
    console = Console() if Console().is_terminal else Console(width=WIDTH)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    for case in cases:
        found = [row for row in rows if row.case == case.name]
        if found:
            console.print(table(case, found))
    for row in rows:
        for failure in row.failures:
            text = f"failed: {row.case} {row.transport} {row.point}: {failure}"
            console.print(text, style="red", markup=False)
    for name, how in absent.items():
        console.print(f"not measured: {name} is not installed: {how}", markup=False)


def as_json(cases: Sequence[Case], rows: Sequence[Row], facts: Facts, absent: Mapping[str, str]) -> dict[str, object]:
    """The same for programs: every repeat, the medians, the ratios to every other contestant, and of TLS to TCP."""
    columns = {case.name: [column.figure for column in case.columns if column.ratio] for case in cases}
    return {
        "machine": facts,
        "references": {case.name: case.compared[0] for case in cases},
        "not_installed": dict(absent),
        "rows": [
            {
                "case": row.case,
                "transport": row.transport,
                "point": row.point,
                "contestant": row.contestant,
                "repeats": row.repeats,
                "medians": middle(row) or None,
                "ratios": {
                    figure: {other.contestant: ratio(figure, row.repeats, other.repeats) for other in beside(row, rows)}
                    for figure in ([] if row.note else columns[row.case])
                },
                "ratios_to_plain": {
                    figure: ratio(figure, row.repeats, without.repeats)
                    for figure in columns[row.case]
                    if (without := plain(row, rows)) is not None and not row.note
                },
                "failures": row.failures,
                "note": row.note,
            }
            for row in rows
        ],
    }
