"""Where a topic stood when subscriptions began, so that one that comes back gets what was published since.

The broker counts moments: with each subscription one ends. A topic notes which message was its first of a moment:

    moment      1                2        3            4
    messages    1 2 3            4        -            5 6
    marks       (1, 1)           (2, 4)                (4, 5)

For a subscription that began at the end of moment 2, the topic's messages begin with 5.
"""

from __future__ import annotations

from typing import Final

MARKS_MAX: Final = 256
"""Marks of one topic; of a subscription that is older than all of them, what was published before them is forgotten."""


class Marks:
    """The marks of one topic.

    Attributes:
        newest: the moment of the last one.
    """

    __slots__ = ("_older", "_sequence", "newest")

    def __init__(self) -> None:
        self.newest = 0
        self._sequence = 0
        # Tuples, because most topics have one mark, and then this takes no memory.
        self._older: tuple[tuple[int, int], ...] = ()

    def note(self, moment: int, sequence: int) -> None:
        """The first message of a moment has come."""
        if self.newest:
            self._older = (*self._older[-MARKS_MAX + 2 :], (self.newest, self._sequence))
        self.newest, self._sequence = moment, sequence

    def first_after(self, moment: int) -> int | None:
        """The sequence of the first message that came after a moment, None when there is none."""
        if moment >= self.newest:
            return None
        return next((sequence for noted, sequence in self._older if noted > moment), self._sequence)

    def __repr__(self) -> str:
        return f"<Marks {[*self._older, (self.newest, self._sequence)]}>"
