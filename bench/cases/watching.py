"""What it costs to watch a broker: the messages that pass through one that nobody watches, and one that is."""

from __future__ import annotations

from functools import partial

from bench.case import Case, Column, Point, size_text
from bench.cases.throughput import DURATION_S, SIZES_BYTES, WARM_UP, measure

UNWATCHED = "tensorbus/unwatched"
WATCHED = "tensorbus/watched"


def points(quick: bool) -> list[Point]:
    """Small messages from one publisher to one and to four subscribers."""
    duration_s, warm_up = (0.1, 1000) if quick else (DURATION_S, WARM_UP)
    return [
        Point(
            f"{size_text(size_bytes)}, 1 to {subscribers}",
            partial(
                measure,
                size_bytes=size_bytes,
                publishers=1,
                subscribers=subscribers,
                duration_s=duration_s,
                warm_up=warm_up,
            ),
        )
        for size_bytes in SIZES_BYTES[: 1 if quick else None]
        for subscribers in ((1,) if quick else (1, 4))
    ]


CASE = Case(
    name="watching",
    title="Messages received with metrics and a dashboard, and without, thousands per second over all subscribers",
    columns=(Column("thousand_per_s", "thousand/s", 1, ratio=True, more_is_better=True), Column("count", "messages")),
    points=points,
    roles={},
    contestants=(UNWATCHED, WATCHED),
    compared=(UNWATCHED,),
)
