"""Publishing from shared memory with the synchronous client: without its lock while a long payload is copied."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic_ns, time_ns

import numpy as np
import numpy.typing as npt

from clients.connection import operations
from clients.connection.checks import array_form
from clients.connection.core import try_publish
from clients.connection.driver import Driver
from clients.publishing.arenas import ordinary_array
from clients.publishing.outbound import Outbound
from clients.publishing.outgoing import SENT

_known: tuple[int, str, tuple[tuple[int, ...], np.dtype[np.generic], int]] | None = None
"""The array that was asked for last, and what that came to: most are like the one before."""


def publish_shared(driver: Driver, message: Outbound, timeout_s: float, *, acknowledge: bool) -> int | None:
    """As operations.publish, for a message that is long enough to be shared.

    Args:
        driver: of the client.
        message: what to publish.
        timeout_s: for all waits together.
        acknowledge: whether to wait for the broker.
    """
    core, payload = driver.core, message.payload
    place = message.place = core.arenas.found(payload, message.value)
    if place is None:
        make_room(driver, len(payload))
        place = message.place = core.arenas.copied(payload)
    if place is not None and not acknowledge:
        # The shortest way, if there is nothing to wait for.
        with driver.lock:
            if core.outgoing.is_low(core.outgoing.topics.get(message.topic)):
                # To read it costs less than to have the broker, which has given some, look once more.
                driver.read_arrived()
            # Otherwise it could become a large message, which has begun when this returns.
            shares = core.arenas.can_share(place.block)
            if shares and try_publish(core, message, monotonic_ns(), time_ns()) is SENT:
                driver.flush()
                driver.publishes()
                return None
    return driver.run(operations.publish(driver, message, timeout_s, acknowledge=acknowledge))


def empty_shared(driver: Driver, shape: int | Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    """An array to be filled and published, in shared memory where there is some; see `Client.empty`."""
    global _known
    arenas, known = driver.core.arenas, _known
    if known is not None and type(shape) is int and type(dtype) is str and known[0] == shape and known[1] == dtype:
        lengths, kind, size_bytes = known[2]
    else:
        lengths, kind, size_bytes = form = array_form(shape, dtype)
        if type(shape) is int and type(dtype) is str:
            _known = shape, dtype, form
    if not arenas.suits(size_bytes):
        with driver.lock:
            return ordinary_array(driver.core.incoming.pool, lengths, kind, size_bytes)
    make_room(driver, size_bytes)
    return arenas.array(lengths, kind, size_bytes)


def make_room(driver: Driver, size_bytes: int) -> None:
    """Takes back what nobody needs any more, used last and so in the cache, and waits a moment if much is in use."""
    core = driver.core
    if core.outgoing.lines.takes_back:
        # The lock's `with`, without what that looks up.
        driver.lock.acquire()
        try:
            core.take_back()
        finally:
            driver.lock.release()
    if not core.arenas.has_room(size_bytes):
        driver.run(operations.room(driver, size_bytes))
