"""Runs points of a case, transports and contestants taking turns, and keeps every repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bench.case import Case, Column, Point, size_text
from bench.children import StepFailed
from bench.contestant import Contestant
from bench.machine import Neighbours
from bench.nursery import Nursery
from bench.processes import Team
from bench.summary import Figures

OTHERS: Final = Column("others_cores", "others' cores", 2)
"""In every table: how many cores processes that do not belong to the run have kept busy meanwhile."""


@dataclass(slots=True)
class Row:
    """One contestant at one point.

    Attributes:
        case: the benchmark's name.
        transport: `tcp`, `tls`, `unix` or `ucx`.
        point: the label of what was measured.
        contestant: the system's name.
        repeats: its figures, by repeat; None where the step failed.
        failures: why, for each step that failed.
        note: why it was not measured, if it could not be.
        curve: as of the point.
    """

    case: str
    transport: str
    point: str
    contestant: str
    repeats: list[Figures | None]
    failures: list[str]
    note: str = ""
    curve: tuple[str, float] | None = None


def obstacle(point: Point, contestant: Contestant) -> str:
    """Why a point is beyond a system, as in `max 64 MiB`; empty when it is not."""
    if contestant.message_bytes_max is not None and point.message_bytes > contestant.message_bytes_max:
        return f"max {size_text(contestant.message_bytes_max)}"
    if contestant.publishers_max is not None and point.publishers > contestant.publishers_max:
        return f"max {contestant.publishers_max} publisher"
    if point.dtype not in contestant.dtypes:
        return f"no {point.dtype}"
    return ""


def is_asked(point: Point, contestant: Contestant) -> bool:
    """Whether a point is for a contestant."""
    return not point.contestants or contestant.name in point.contestants


def run_point(
    case: Case,
    point: Point,
    transports: Sequence[str],
    contestants: Sequence[Contestant],
    repeats: int,
    nursery: Nursery,
    tell: Callable[[str], None],
) -> list[Row]:
    """Measures one point: in each repeat every contestant once by every transport, in an order that turns around.

    A step that fails does not end the run; its repeat stays empty.
    """
    able = [
        (transport, one)
        for transport in transports
        for one in contestants
        if transport in one.transports and is_asked(point, one)
    ]
    rows = {
        (transport, one.name): Row(
            case.name, transport, point.label, one.name, [], [], obstacle(point, one), point.curve
        )
        for transport, one in able
    }
    able = [(transport, one) for transport, one in able if not rows[transport, one.name].note]
    for repeat in range(repeats):
        for transport, contestant in able if repeat % 2 == 0 else reversed(able):
            tell(f"{case.name} {transport} {point.label}: {contestant.name}, repeat {repeat + 1} of {repeats}")
            row = rows[transport, contestant.name]
            neighbours = Neighbours(nursery.processor_s)
            try:
                with Team(nursery, contestant, transport) as team:
                    figures = point.measure(team)
            except StepFailed as failure:
                row.repeats.append(None)
                row.failures.append(str(failure))
            else:
                row.repeats.append({**figures, OTHERS.figure: neighbours.cores()})
    return list(rows.values())
