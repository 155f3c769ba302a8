"""What clients take from the environment."""

from __future__ import annotations

import os
from typing import Final

from broker.errors import InvalidValue
from broker.limits import LOOK_US, LOOK_US_MAX

DEFAULT_URL: Final = "tcp://127.0.0.1:4870"


def broker_url() -> str:
    """$TENSORBUS_URL, or the daemon's default address."""
    return os.environ.get("TENSORBUS_URL") or DEFAULT_URL


def token() -> str:
    """$TENSORBUS_TOKEN, or nothing."""
    return os.environ.get("TENSORBUS_TOKEN", "")


def tls() -> str:
    """$TENSORBUS_TLS, or nothing: the folder with this process's certificate, for addresses at tls://."""
    return os.environ.get("TENSORBUS_TLS", "")


def tracing() -> bool:
    """$TENSORBUS_TRACING: true or 1 turns it on; false, 0 or nothing does not.

    Raises:
        InvalidValue: it is something else.
    """
    text = os.environ.get("TENSORBUS_TRACING", "").lower()
    if text not in ("", "0", "1", "false", "true"):
        raise InvalidValue("environment variable TENSORBUS_TRACING", text, "is neither true nor false")
    return text in ("1", "true")


def link_address() -> str:
    """$TENSORBUS_LINK_ADDRESS, or nothing: where other members of this client's groups reach it."""
    return os.environ.get("TENSORBUS_LINK_ADDRESS", "")


def link_congestion() -> str:
    """$TENSORBUS_LINK_CONGESTION, or nothing: the congestion control of links, in the kernel's words."""
    return os.environ.get("TENSORBUS_LINK_CONGESTION", "")


def look_ns() -> int:
    """$TENSORBUS_LOOK_US, or LOOK_US: how long a thread may look at lines before it sleeps; in nanoseconds.

    Raises:
        InvalidValue: it is no whole number from 0 to LOOK_US_MAX.
    """
    look_us = _number("TENSORBUS_LOOK_US")
    look_us = LOOK_US if look_us is None else look_us
    if not 0 <= look_us <= LOOK_US_MAX:
        raise InvalidValue("environment variable TENSORBUS_LOOK_US", look_us, f"is not from 0 to {LOOK_US_MAX}")
    return look_us * 1000


def rank() -> int | None:
    """$RANK, as torchrun and others set it."""
    return _number("RANK")


def world_size() -> int | None:
    """$WORLD_SIZE, as torchrun and others set it."""
    return _number("WORLD_SIZE")


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise InvalidValue(f"environment variable {name}", text, "is not a whole number") from error
