"""A call on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import clients


def in_background(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Starts a function; the list gets what it returns, or the error that the library raises."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(function())
        except clients.BrokerError as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome
