"""A figure for each benchmark: bars beside each other, or curves where points lie on some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from bench import contestants
from bench.case import Case, Column
from bench.report import middle
from bench.runner import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_IN, HEIGHT_IN = 11.0, 3.6
"""Of each panel, in inches."""
BAR: Final = 0.8
"""What the bars of a point take of the room to the next point."""
DPI: Final = 110


def colours() -> Mapping[str, object]:
    """A colour for each contestant, the same in all figures; variants share the system's."""
    from matplotlib import colormaps

    systems = contestants.SYSTEMS
    named = {one.name: systems.index(one.system) for one in contestants.EVERY.values()}
    # Every second colour first: those between them are lighter ones of the same hue.
    return {name: colormaps["tab20"](2 * index % 20 + index // 10) for name, index in named.items()}


def value(row: Row, column: Column) -> float:
    """The median over the repeats; nan when there is none."""
    return middle(row).get(column.figure, float("nan"))


def bars(axes: Axes, rows: Sequence[Row], column: Column) -> None:
    """One group of bars for each point."""
    points = list(dict.fromkeys(row.point for row in rows))
    names = list(dict.fromkeys(row.contestant for row in rows))
    width, coloured = BAR / len(names), colours()
    systems: list[str] = []
    for number, name in enumerate(names):
        mine = [row for row in rows if row.contestant == name]
        places = [points.index(row.point) + (number + 0.5) * width - BAR / 2 for row in mine]
        system = name.partition("/")[0]
        # A variant has the system's colour, and so it has stripes.
        hatch = "/" * systems.count(system)
        systems.append(system)
        values = [value(row, column) for row in mine]
        axes.bar(places, values, width, label=name, color=coloured[name], hatch=hatch, edgecolor="white", linewidth=0.5)
    axes.set_xticks(range(len(points)), [point.replace(", ", "\n") for point in points], fontsize=7)


def curves(axes: Axes, rows: Sequence[Row], column: Column, label: str) -> None:
    """One curve for each contestant."""
    coloured = colours()
    for name in dict.fromkeys(row.contestant for row in rows):
        found = [(row.curve[1], value(row, column)) for row in rows if row.contestant == name and row.curve]
        places, values = zip(*found, strict=True)
        axes.plot(places, values, marker="o", label=name, color=coloured[name], linestyle="--" if "/" in name else "-")
    axes.set_xscale("log")
    axes.set_xlabel(label, fontsize=8)


def panels(case: Case, rows: Sequence[Row]) -> list[tuple[str, Column, str, list[Row]]]:
    """The panels of a figure: transport, figure, curve, and what is in it."""
    found = []
    for transport in dict.fromkeys(row.transport for row in rows):
        for curve in dict.fromkeys(row.curve[0] if row.curve else "" for row in rows):
            inside = [row for row in rows if row.transport == transport and (row.curve or ("",))[0] == curve]
            main = [column for column in case.columns if column.ratio] or [case.columns[0]]
            found += [(transport, column, curve, inside) for column in main if inside]
    return found


def draw(case: Case, rows: Sequence[Row], file: Path) -> None:
    """Draws one benchmark into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parts = panels(case, rows)
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN * len(parts)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (transport, column, curve, inside) in zip(
        figure.subplots(len(parts), squeeze=False)[:, 0], parts, strict=True
    ):
        if curve:
            curves(axes, inside, column, curve)
        else:
            bars(axes, inside, column)
        shown = [found for row in inside if np.isfinite(found := value(row, column)) and found > 0]
        if shown and max(shown) > 20 * min(shown):
            axes.set_yscale("log")
        better = "more" if column.more_is_better else "less"
        axes.set_title(f"{transport}: {column.title} ({better} is better)", fontsize=9, loc="left")
        axes.grid(axis="y", alpha=0.3)
        axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(case.title, fontsize=11)
    figure.savefig(file, dpi=DPI)


def draw_all(cases: Sequence[Case], rows: Sequence[Row], folder: Path) -> None:
    """Draws the benchmarks that were run, each into a file of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        found = [row for row in rows if row.case == case.name and not row.note]
        if found:
            draw(case, found, folder / f"{case.name}.png")
