"""How the commands that look at a broker get at it: with its address alone, over the client protocol."""

from __future__ import annotations

import os
from typing import TypeVar

import msgspec

import clients
from broker.errors import ProtocolError
from clients.connection.views import ITEMS_MAX, view

CONNECT_TIMEOUT_S = 3.0
T = TypeVar("T")


def connect(url: str | None, command: str) -> clients.Client:
    """A client that does not look for a broker that has gone.

    Raises:
        ConnectError: no broker is there.
    """
    name = f"tensorbus-{command}-{os.getpid()}"
    return clients.connect(url, name=name, connect_timeout_s=CONNECT_TIMEOUT_S, reconnect_timeout_s=0.0)


def ask(bus: clients.Client, what: str, kind: type[T], items_max: int = ITEMS_MAX) -> list[tuple[T, dict[str, object]]]:
    """Things of a view, each as what is shown of it and as a whole.

    Raises:
        ProtocolError: the broker tells something else, because it is of another version.
    """
    try:
        return [(msgspec.convert(item, kind, str_keys=True), item) for item in view(bus, what, items_max=items_max)]
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the broker, of another version, tells something else of its {what}: {error}") from error


def ranks_text(ranks: list[int]) -> str:
    """Ranks in few words: `0-3, 7`."""
    parts: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return ", ".join("-".join(map(str, part)) for part in parts)


def duration_text(duration_s: float) -> str:
    """A duration with three digits: `12.3 ms`, `1.50 s`, `2 min 5 s`."""
    if duration_s < 1e-3:
        return f"{duration_s * 1e6:.0f} us"
    if duration_s < 1:
        return f"{duration_s * 1e3:.3g} ms"
    if duration_s < 60:
        return f"{duration_s:.2f} s"
    minutes, left_s = divmod(int(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left_s} s"


def of_tenant(name: str, tenant: str) -> str:
    """The name of something that is a tenant's: `losses of vision`; as it is for none."""
    return f"{name} of {tenant}" if tenant else name


def table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines with aligned columns; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
