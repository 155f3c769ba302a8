"""Whether a program has anything left of a synchronous client.

A client's thread keeps its connection open, so that nothing would notice that the program has let go of it. What a
program has of a client has a Hold in common: the client itself, its subscriptions, groups, works and replies, and its
handlers, which may be all that it is for. With the last of them the Hold goes, and the client's thread closes it.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Protocol


class Closable(Protocol):
    """What has a name, and a reason why it is closed."""

    name: str

    @property
    def closed(self) -> Exception | None:
        """Why, once it is closed."""
        ...


class Hold:
    """What keeps a client connected that nobody has closed."""

    __slots__ = ("__weakref__", "_holding")

    def __init__(self, holding: Holding) -> None:
        self._holding = holding

    def __del__(self) -> None:
        # On any thread, also on one that holds the client's lock: the client's own does the rest.
        self._holding.let_go(self)


class Holding:
    """The Hold of one client.

    Attributes:
        gone: the program has let go of it.
    """

    def __init__(self, core: Closable) -> None:
        self.gone = False
        self._core = core
        self._hold: weakref.ref[Hold] | None = None

    def hold(self) -> Hold:
        """What everything that the program gets of the client is to keep."""
        hold = None if self._hold is None else self._hold()
        if hold is None:
            hold = Hold(self)
            self._hold = weakref.ref(hold)
        return hold

    def let_go(self, hold: Hold) -> None:
        """Nobody has anything of the client any more."""
        self.gone = True
        if self._core.closed is None:
            text = f"unclosed client {self._core.name!r}: close it, or use `with`; it is closed now"
            warnings.warn(text, ResourceWarning, source=hold, stacklevel=3)

    def __repr__(self) -> str:
        return f"<Holding of {self._core.name!r} gone={self.gone}>"
