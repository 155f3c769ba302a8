"""Checks of single arguments, so that a mistake is told where it is made and never reaches the broker."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from broker.errors import InvalidValue
from broker.limits import NAME_BYTES_MAX

PRIORITY_MAX: Final = 1_000_000
TIMEOUT_S_MAX: Final = 1e9
"""Thirty years; clocks and the kernel's calls do not take much more."""


def stays_here(what: object, instead: str) -> TypeError:
    """The error of whoever pickles or copies what lives by this process's connection.

    Args:
        what: it is.
        instead: is to be done, in words.
    """
    return TypeError(f"{what!r} cannot be pickled or copied: it lives by a connection of this process. {instead}")


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


def text_bytes(what: str, text: object) -> int:
    """The bytes of a text in UTF-8.

    Raises:
        InvalidValue: it is no text, or has half of a surrogate pair, which UTF-8 has no place for.
    """
    if not isinstance(text, str):
        raise InvalidValue(what, text, f"must be a text, not {type(text).__name__}")
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidValue(what, text, f"has half of a surrogate pair at character {error.start}") from error


def check_name(what: str, name: object) -> None:
    """Refuses what cannot be a name.

    Raises:
        InvalidValue: it is no text, or too long.
    """
    if text_bytes(what, name) > NAME_BYTES_MAX:
        raise InvalidValue(what, name, f"must be a text of at most {NAME_BYTES_MAX} bytes")


def array_form(shape: int | Sequence[int], dtype: npt.DTypeLike) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """The lengths of an array's axes, its dtype, and its length in bytes.

    Raises:
        InvalidValue: no array has such a shape or dtype.
    """
    try:
        kind = np.dtype(dtype)
    except (TypeError, ValueError) as error:
        raise InvalidValue("dtype", dtype, "is none of numpy's, such as 'float32'") from error
    try:
        lengths = tuple(map(operator.index, shape)) if isinstance(shape, (tuple, list)) else (operator.index(shape),)  # type: ignore[arg-type]
    except TypeError as error:
        raise InvalidValue("shape", shape, "must be a whole number, or a tuple of them") from error
    size_bytes = kind.itemsize * math.prod(lengths)
    if min(lengths, default=0) < 0 or not size_bytes < 1 << 63:
        raise InvalidValue("shape", shape, "has an axis below 0, or more bytes than an address counts")
    return lengths, kind, size_bytes


def check_connect(
    url: object,
    name: object,
    connect_timeout_s: object,
    reconnect_timeout_s: object,
    on_reconnect: object,
    token: object,
    tls: object,
    tenant: object,
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
    if token is not None:
        text_bytes("token", token)
    check_name("tenant", tenant)
    if tls is not None and not isinstance(tls, (str, os.PathLike)):
        raise InvalidValue("tls", tls, "must be the path of a folder with ca.crt, tls.crt and tls.key")
