"""The ends of the spans of asynchronous operations: each ends with its operation, whether somebody waits for it or not.

An engine tells no thread of Python when an operation on a board or over links is done; it only writes down when it was.
So one thread of the process looks again and again, as long as there is anything to look at, and a span that it ends a
moment later has the right time all the same. It holds no client's lock: what a span's exporter does holds up nobody.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from typing import Final, NamedTuple

from broker.telemetry import Operation
from clients.collectives.started import Started

LOOK_S: Final = 0.05
"""Between two looks."""


class _Open(NamedTuple):
    """A span that has yet to end, with its operation and whose that is."""

    owner: object
    span: Operation
    work: Started

    def end(self, problem: str | None, otherwise: str) -> None:
        if problem is None:
            self.span.end(reason=otherwise)
        else:
            self.span.end(time.time_ns() - (time.monotonic_ns() - self.work.ended_ns), problem)


class Ends:
    """Operations of traced clients that have yet to end. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[_Open] = []
        self._watching = False

    def expect(self, owner: object, span: Operation, work: Started) -> None:
        """Has a span go on until an operation ends, or its owner is closed."""
        if not span.recording:
            return
        with self._lock:
            self._open.append(_Open(owner, span.keep(), work))
            if not self._watching:
                threading.Thread(target=self._watch, name="tensorbus-spans", daemon=True).start()
                self._watching = True

    def closed(self, owner: object) -> None:
        """An owner is closed: its spans end, those of operations in progress as failed."""
        with self._lock:
            found = [each for each in self._open if each.owner is owner]
            self._open = [each for each in self._open if each.owner is not owner]
        for each in found:
            each.end(each.work.problem, "the client was closed before it had ended")

    def close(self) -> None:
        """The program ends, and with it all that goes on."""
        with self._lock:
            found, self._open = self._open, []
        for each in found:
            each.end(each.work.problem, "the program ended before it had ended")

    def forked(self) -> None:
        """In a forked child: the spans are the parent's, and so is the thread."""
        self.__init__()  # type: ignore[misc]

    def _watch(self) -> None:
        watching = True
        while watching:
            time.sleep(LOOK_S)
            ended: list[tuple[_Open, str]] = []
            with self._lock:
                going = []
                for each in self._open:
                    problem = each.work.problem
                    if problem is None:
                        going.append(each)
                    else:
                        ended.append((each, problem))
                self._open = going
                self._watching = watching = bool(going)
            for each, problem in ended:
                each.end(problem, "")

    def __repr__(self) -> str:
        return f"<Ends open={len(self._open)}>"


ends: Final = Ends()
"""Of all traced clients of the process."""
os.register_at_fork(after_in_child=ends.forked)
atexit.register(ends.close)
