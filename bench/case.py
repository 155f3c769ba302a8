"""A benchmark: the points it measures, and the columns of its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.processes import Team
from bench.tasks import Role

RELAY: Final = "relay"
"""The reference of most benchmarks, the floor under the figures."""
BEST_PEER: Final = "best peer"
"""Whoever is the best of the peers at a figure and a point."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        figure: the name of the figure.
        title: what stands above it.
        decimals: digits after the point.
        ratio: whether ratios to others stand beside it.
        more_is_better: of the figure; a peer is the best one by it.
    """

    figure: str
    title: str
    decimals: int = 0
    ratio: bool = False
    more_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """One thing that is measured of each contestant.

    Attributes:
        label: what it is, as in `64 B`.
        measure: runs it once and returns its figures.
        message_bytes: of its longest messages; who cannot pass them does not take part.
        publishers: of one topic; who cannot have so many does not take part.
        contestants: the names of who can take part, where not everybody of the benchmark can; empty for all.
        dtype: of a collective's arrays; who cannot sum them does not take part.
        curve: in a plot, the name of the curve that it is on, and where on it; None where the plot has bars.
    """

    label: str
    measure: Callable[[Team], dict[str, float]]
    message_bytes: int = 0
    publishers: int = 1
    contestants: tuple[str, ...] = ()
    dtype: str = "float32"
    curve: tuple[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """A benchmark.

    Attributes:
        name: on the command line.
        title: above its table.
        columns: of its table.
        points: given whether to be quick, what it measures.
        roles: what its workers do, by name.
        contestants: the names of who can take part; empty for all that are no variants.
        compared: whose ratios stand in its table: names, the reference's first, or BEST_PEER.
    """

    name: str
    title: str
    columns: Sequence[Column]
    points: Callable[[bool], Sequence[Point]]
    roles: Mapping[str, Role]
    contestants: tuple[str, ...] = ()
    compared: tuple[str, ...] = (RELAY, BEST_PEER)


def size_text(size_bytes: int) -> str:
    """A size in words, as in `64 KiB`."""
    for unit, unit_bytes in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= unit_bytes:
            return f"{size_bytes // unit_bytes} {unit}"
    return f"{size_bytes} B"
