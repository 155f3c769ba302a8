"""Checks of single arguments, so that a mistake is told where it is made and never reaches the broker."""

from __future__ import annotations

import operator
from typing import Final

from broker.errors import InvalidValue
from broker.limits import NAME_BYTES_MAX

PRIORITY_MAX: Final = 1_000_000
TIMEOUT_S_MAX: Final = 1e9
"""Thirty years; clocks and the kernel's calls do not take much more."""


def whole_number(name: str, value: object) -> int:
    """An integer of any kind, such as numpy's.

    Raises:
        InvalidValue: it is none.
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidValue(name, value, "must be a whole number, such as 1000") from error


def time_limit(name: str, value: object) -> float:
    """A number of seconds that one can wait.

    Raises:
        InvalidValue: it is no number, not finite, below 0, or longer than a life.
    """
    return seconds_of(name, value, TIMEOUT_S_MAX)


def seconds_of(name: str, value: object, maximum_s: float) -> float:
    """A number of seconds up to a limit.

    Raises:
        InvalidValue: it is no number, not finite, below 0 or over the limit.
    """
    if not isinstance(value, (int, float)) or not 0 <= value <= maximum_s:
        raise InvalidValue(name, value, f"must be a number of seconds from 0 to {maximum_s:g}")
    return float(value)


def check_priority(priority: object) -> None:
    """Refuses what cannot be the priority of an operation.

    Raises:
        InvalidValue: it is no whole number, or too large.
    """
    if not -PRIORITY_MAX <= whole_number("priority", priority) <= PRIORITY_MAX:
        raise InvalidValue("priority", priority, f"must be from -{PRIORITY_MAX} to {PRIORITY_MAX}")


def check_callable(name: str, value: object) -> None:
    """Refuses what cannot be called.

    Raises:
        InvalidValue: it cannot.
    """
    if not callable(value):
        raise InvalidValue(name, value, "must be a function")


def check_name(what: str, name: object) -> None:
    """Refuses what cannot be a name.

    Raises:
        InvalidValue: it is no text, or too long.
    """
    if not isinstance(name, str) or len(name.encode()) > NAME_BYTES_MAX:
        raise InvalidValue(what, name, f"must be a text of at most {NAME_BYTES_MAX} bytes")


def check_connect(
    url: object, name: object, connect_timeout_s: object, reconnect_timeout_s: object, on_reconnect: object
) -> None:
    """Refuses arguments of `connect` that cannot be.

    Raises:
        InvalidValue: one of them; the text says which.
    """
    if url is not None and not isinstance(url, str):
        raise InvalidValue("url", url, "must be a text, such as tcp://127.0.0.1:4870")
    check_name("name", name)
    time_limit("connect_timeout_s", connect_timeout_s)
    time_limit("reconnect_timeout_s", reconnect_timeout_s)
    if on_reconnect is not None:
        check_callable("on_reconnect", on_reconnect)
