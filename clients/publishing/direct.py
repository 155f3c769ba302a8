"""The shortest way of a message in the synchronous client.

It says to the broker what operations.publish says, without its coroutine. A small message that has to wait before it
begins (no room, no connection), and whatever is not as usual, such as headers, goes that way from its start. A large
one waits here: who sends one after the other waits for credit before most of them.
"""

from __future__ import annotations

from typing import Final

from broker.clock import monotonic_ns, wall_ns
from broker.errors import TimeoutError
from broker.limits import PLACED_BYTES_MIN
from broker.protocol.values import Encoded
from clients.connection.core import try_publish
from clients.connection.driver import Driver
from clients.connection.operations import awaited
from clients.connection.signals import Signal
from clients.publishing.filling import UNBROKEN, add
from clients.publishing.outbound import Outbound
from clients.publishing.outgoing import BATCH_OPENED, SENT
from clients.publishing.outgoing_topic import LANES
from clients.publishing.streaming import StreamSource

_SENT, _BATCH_OPENED, _UNBROKEN = SENT, BATCH_OPENED, UNBROKEN
_DEFAULT_NAME: Final = "default"
_DEFAULT = LANES[_DEFAULT_NAME]
_LANES = dict(LANES)
_PLACED_BYTES_MIN = PLACED_BYTES_MIN


def publish(driver: Driver, topic: str, name: str | None, content: int, payload: bytes, urgent: bool) -> bool:
    """Publishes a message without a body, if nothing stands in its way; says whether it has.

    Args:
        driver: of the client.
        topic: as the application has given it.
        name: of the lane in which it goes, as the application has given it.
        content: of the payload.
        payload: long ones do not go this way.
        urgent: whether it may open no batch, and go into none.
    """
    if len(payload) >= _PLACED_BYTES_MIN:
        return False
    # A topic whose policy names another lane takes no message by this way.
    lane, batched = _DEFAULT, not urgent and name is None
    if name is not None and name is not _DEFAULT_NAME:
        if type(name) is not str or name not in _LANES:
            return False
        lane = _LANES[name]
    core = driver.core
    outgoing = core.outgoing
    if _UNBROKEN and batched and add(outgoing.filling, topic, content, payload):
        return True
    if type(topic) is not str:
        return False
    # The lock's `with`, without what that looks up.
    driver.lock.acquire()
    try:
        if not _UNBROKEN and batched and add(outgoing.filling, topic, content, payload):
            return True
        done = outgoing.publish_plain(topic, lane, content, payload, monotonic_ns(), wall_ns(), urgent)
        if done is None:
            return False
        if done is _SENT:
            driver.flush()
            outgoing.has_left(monotonic_ns())
        elif done is _BATCH_OPENED:
            driver.batch_opened()
    finally:
        driver.lock.release()
    return True


def publish_large(driver: Driver, topic: str, name: str | None, encoded: Encoded, timeout_s: float | None) -> bool:
    """Publishes a value without options in chunks; says whether it has, and then it has left.

    Args:
        driver: of the client.
        topic: as the application has given it.
        name: of the lane in which it goes, as the application has given it.
        encoded: the value; short ones, and such as are to be shared, do not go this way.
        timeout_s: how long it may take to begin, and then to leave.

    Raises:
        TimeoutError, ConnectionClosed: as operations.publish.
    """
    core = driver.core
    content, tensor, payload = encoded
    size_bytes = len(payload)
    if size_bytes < _PLACED_BYTES_MIN or type(topic) is not str or core.arenas.suits(size_bytes):
        return False
    if name is not None and (type(name) is not str or name not in _LANES):
        return False
    message = Outbound(topic, None if name is None else _LANES[name], content, tensor, payload)
    driver.lock.acquire()
    try:
        began_ns = monotonic_ns()
        signal, left_s = try_publish(core, message, began_ns, wall_ns()), timeout_s
        while not isinstance(signal, StreamSource):
            # Nothing of it has been said yet.
            _wait(driver, message, signal, left_s, timeout_s)
            now_ns = monotonic_ns()
            if timeout_s is not None:
                left_s = max(0.0, timeout_s - (now_ns - began_ns) / 1e9)
            signal = try_publish(core, message, now_ns, wall_ns())
        stream = signal
        try:
            driver.flush(True)
            if not stream.ready:
                _wait(driver, message, stream, left_s, timeout_s)
        except BaseException as error:
            core.outgoing.streams.give_up(core.session, stream, f"the publisher gave it up: {type(error).__name__}")
            driver.flush()
            raise
        if stream.error is not None:
            raise stream.error
    except BaseException:
        # What was given up may be what somebody else waits for.
        driver.wake_waiters()
        raise
    finally:
        driver.lock.release()
    return True


def _wait(driver: Driver, message: Outbound, signal: Signal, left_s: float | None, timeout_s: float | None) -> None:
    """Waits until a signal is ready; what for is put into words only when it does not come in time."""
    try:
        driver.block(signal, left_s, "")
    except TimeoutError:
        raise TimeoutError(awaited(driver.core, message, signal), timeout_s or 0.0) from None
