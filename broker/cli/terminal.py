"""What strangers have named or said, as a terminal may show it."""

from __future__ import annotations


def printable(line: str) -> str:
    """A line without control characters, with which names and values of strangers could play tricks on a terminal."""
    return line if line.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in line)
