"""Arenas that are new to the readers of a line: they are told of them before anything that lies there comes on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from broker.protocol.frames import Frame, Kind, Lane

if TYPE_CHECKING:
    from broker.state.lines import Lines
    from broker.state.sharing import Arena
    from broker.state.topic_line import TopicLine


class Introduction:
    """One arena to the readers of one line.

    Attributes:
        looked: how often time has passed over it.
    """

    def __init__(self, lines: Lines, line: TopicLine, arena: Arena, own: int, over: Callable[[], None]) -> None:
        """Args:
        lines: by which its publisher is told.
        line: whose readers are to map it.
        arena: which.
        own: the publisher's number for it.
        over: called once, when the readers have answered or nobody waits for that any more.
        """
        self.looked = 0
        self._lines = lines
        self._line = line
        self._arena = arena
        self._own = own
        self._over: Callable[[], None] | None = over

    def answered(self) -> None:
        """A reader has said whether it can map it. When all have, and can, messages may lie there."""
        readers = [reader.session.shares for reader in self._line.readers]
        # Each of them is asked, and not up to the first one that has not answered.
        known = [shares is None or shares.knows(self._arena, self) for shares in readers]
        if not all(known):
            return
        if all(shares is not None and shares.maps(self._arena) for shares in readers):
            self._line.arenas[self._arena.number] = self._own
            frame = Frame(
                Kind.MAPPED, lane=Lane.CONTROL,
                number=self._own, target=self._arena.number, stream=self._line.number, count=1,
            )  # fmt: skip
            self._lines.send(self._line.publisher.session, frame)
        self.give_up()

    def give_up(self) -> None:
        """Nobody waits for the readers any more."""
        over, self._over = self._over, None
        if over is not None:
            over()

    @property
    def is_over(self) -> bool:
        """Whether all has been said."""
        return self._over is None
