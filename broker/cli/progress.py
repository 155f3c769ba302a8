"""How far long work is, on a terminal and nowhere else: on the standard error, and gone when the work is done."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from clients.recordings import Reader, Recorded


class Line:
    """A line on a terminal that is written again and again."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Writes it anew."""
        if self._shown:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    def clear(self) -> None:
        """Leaves nothing of it."""
        self.show("")


def with_bar(reader: Reader, *, printed: bool = False) -> Iterator[Recorded]:
    """The messages of a recording, with a bar; without one where they are `printed` on the same terminal."""
    if not sys.stderr.isatty() or (printed and sys.stdout.isatty()):
        yield from reader
        return
    with click.progressbar(length=reader.size_bytes, file=sys.stderr) as bar:
        for recorded in reader:
            bar.update(reader.good_bytes - bar.pos)
            yield recorded


def size_text(size_bytes: int) -> str:
    """Bytes in words."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"
