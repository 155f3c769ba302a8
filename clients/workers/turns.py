"""Handlers of one client run one after the other, also where several of its connections have handlers.

Each connection has a thread of its own for them, and orders those of its own topics (clients/reading/handlers.py). Here
the threads take turns. A handler that waits for a reply steps aside, because whoever is to reply may be another one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import GeneratorType
from typing import TypeVar

T = TypeVar("T")


class Turns:
    """One thread at a time has the turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0

    @property
    def held(self) -> bool:
        """Whether this thread has the turn."""
        return self._holder == threading.get_ident()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While its context is open, no other one is."""
        with self._lock:
            self._holder = threading.get_ident()
            try:
                yield
            finally:
                self._holder = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While its context is open, others may have the turn that this thread has; without one it does nothing."""
        if not self.held:
            yield
            return
        self._holder = 0
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
            self._holder = threading.get_ident()

    def handler(self, function: Callable[[T], object]) -> Callable[[T], object]:
        """A handler or responder that runs in a turn; of a generator that it returns, each step does."""

        def called(message: T) -> object:
            with self.turn():
                value = function(message)
            return self._steps(value) if isinstance(value, GeneratorType) else value

        return called

    def _steps(self, values: Generator[object, None, object]) -> Generator[object, None, None]:
        try:
            while True:
                with self.turn():
                    try:
                        value = next(values)
                    except StopIteration:
                        return
                yield value
        finally:
            values.close()
