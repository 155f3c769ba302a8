"""How a refresh of `tensorbus top` looks: as many rows and columns as the terminal has room for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from broker.admin.rates import Refresh
from broker.cli.connect import duration_text, of_tenant
from broker.cli.groups import group_row
from broker.cli.terminal import printable

WIDE: Final = 100
"""Columns of a terminal from which on everything is shown."""
NARROW: Final = 60
"""Below it, only what matters most."""
ROWS_MIN: Final = 3


def rate_text(per_s: float) -> str:
    """A rate in four or five letters: `0`, `12`, `3.4k`, `1.2M`."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if per_s >= unit:
            return f"{per_s / unit:.1f}{letter}"
    return f"{per_s:.0f}" if per_s >= 1 or not per_s else f"{per_s:.1f}"


def picture(told: Refresh | str, width: int, height: int) -> RenderableType:
    """A refresh, or why there is none, for a terminal of so many columns and lines."""
    if isinstance(told, str):
        return Text(printable(told), style="bold red")
    rows = max(ROWS_MIN, (height - 9 - min(len(told.groups), ROWS_MIN + 2)) // 2)
    parts: list[RenderableType] = [Text(line, no_wrap=True, overflow="ellipsis") for line in head(told, width)]
    if told.groups:
        parts.append(_groups(told.groups, width, ROWS_MIN + 2))
    parts.append(_topics(told, width, rows))
    parts.append(_sessions(told, width, rows))
    return Stack(*parts)


def head(told: Refresh, width: int) -> list[str]:
    """The broker as a whole."""
    trips = f"round trip {duration_text(told.round_trip_p50_s)} to {duration_text(told.round_trip_p99_s)}"
    first = f"{printable(told.broker)}  up {duration_text(told.uptime_s)}  {trips}"
    if told.restarted:
        first += "  (restarted)"
    second = (
        f"{rate_text(told.published_per_s)} msg/s in  {rate_text(told.delivered_per_s)} out  "
        f"{rate_text(told.published_bytes_per_s)}B/s  {rate_text(told.dropped_per_s)} dropped/s"
    )
    return [first, second] if width >= NARROW else [first.split("  ")[0], second]


def _table(title: str, columns: Sequence[tuple[str, bool]], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), expand=True, title_style="bold")
    for name, is_number in columns:
        justify = "right" if is_number else "left"
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis", ratio=None if is_number else 1)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table


def _chosen(width: int, *wide: bool) -> list[bool]:
    """Which columns there is room for: those that are for wide terminals only where it is one."""
    return [width >= WIDE or not only_wide for only_wide in wide]


def _pick(keep: Sequence[bool], cells: Sequence[str]) -> list[str]:
    return [cell for kept, cell in zip(keep, cells, strict=True) if kept]


def _groups(groups: Sequence[dict[str, object]], width: int, rows: int) -> Table:
    keep = _chosen(width, False, True, False, True, width < NARROW, False, True)
    names = _pick(keep, ("group", "gen", "ranks", "schedule", "in progress", "stragglers", "last"))
    cells = [_pick(keep, group_row(group)) for group in groups[:rows]]
    return _table(_title("GROUPS", len(groups), rows), [(name, False) for name in names], cells)


def _topics(told: Refresh, width: int, rows: int) -> Table:
    keep = [True, True, width >= NARROW, width >= WIDE, True]
    columns = [("topic", False), ("msg/s", True), ("B/s", True), ("subs", True), ("held back by", False)]
    cells = [
        _pick(
            keep,
            (
                of_tenant(topic.name, topic.tenant),
                rate_text(topic.messages_per_s),
                rate_text(topic.bytes_per_s),
                str(topic.subscriptions),
                ", ".join(topic.held_back_by) or "-",
            ),
        )
        for topic in told.topics[:rows]
    ]
    shown = [column for column, kept in zip(columns, keep, strict=True) if kept]
    return _table(_title("TOPICS", told.topics_open, rows), shown, cells)


def _sessions(told: Refresh, width: int, rows: int) -> Table:
    keep = [True, width >= WIDE, width >= NARROW, width >= NARROW, True, True, width >= WIDE]
    columns = [
        ("session", False), ("process", True), ("in B/s", True), ("out B/s", True), ("queued", True),
        ("dropped", True), ("silent", True),
    ]  # fmt: skip
    cells = [
        _pick(
            keep,
            (
                of_tenant(session.name or f"({session.session})", session.tenant),
                f"{session.process}@{session.host}",
                rate_text(session.received_bytes_per_s),
                rate_text(session.sent_bytes_per_s),
                str(session.waiting_messages) + ("!" if session.blocks else ""),
                str(session.dropped_messages),
                duration_text(session.silent_s),
            ),
        )
        for session in told.sessions[:rows]
    ]
    shown = [column for column, kept in zip(columns, keep, strict=True) if kept]
    return _table(_title("SESSIONS", told.sessions_open, rows), shown, cells)


def _title(name: str, count: int, rows: int) -> str:
    return f"{name} {count}" if count <= rows else f"{name} {rows} of {count}"


def as_json(told: Refresh | str) -> bytes:
    """A refresh as a line of JSON; `{"error": ...}` when there is none."""
    return msgspec.json.encode({"error": told} if isinstance(told, str) else told)
