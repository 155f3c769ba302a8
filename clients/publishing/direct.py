"""The shortest way of a message in the synchronous client, when nothing has to wait before it begins.

It says to the broker what operations.publish says, without its coroutine. Whatever is not as usual (headers of a small
message, no room, no connection) goes that way from its start.
"""

from __future__ import annotations

from broker.clock import monotonic_ns, wall_ns
from clients.connection.core import try_publish
from clients.connection.driver import Driver
from clients.connection.operations import leaving
from clients.publishing.filling import UNBROKEN, add
from clients.publishing.outbound import Outbound
from clients.publishing.outgoing import BATCH_OPENED, SENT
from clients.publishing.streaming import StreamSource

_SENT, _BATCH_OPENED, _UNBROKEN = SENT, BATCH_OPENED, UNBROKEN


def publish(driver: Driver, topic: str, lane: int, content: int, payload: bytes, batched: bool, urgent: bool) -> bool:
    """Publishes a message without a body, if nothing stands in its way; says whether it has.

    Args:
        driver: of the client.
        topic: as the application has given it.
        lane: in which it goes.
        content: of the payload.
        payload: shorter than PLACED_BYTES_MIN.
        batched: whether it may go into a batch that is open.
        urgent: whether it may open none.
    """
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


def publish_large(driver: Driver, message: Outbound, timeout_s: float | None) -> bool:
    """Publishes a message in chunks, if it can begin at once; says whether it has, and then it has left.

    Args:
        driver: of the client.
        message: with a payload of PLACED_BYTES_MIN or more, which is not to be shared, and no acknowledgement.
        timeout_s: how long it may take to leave.

    Raises:
        TimeoutError, ConnectionClosed: as operations.publish.
    """
    driver.lock.acquire()
    try:
        signal = try_publish(driver.core, message, monotonic_ns(), wall_ns())
        if not isinstance(signal, StreamSource):
            # Nothing of it has been said yet.
            return False
        stream = signal
        try:
            driver.flush(True)
            if not stream.ready:
                driver.block(stream, timeout_s, leaving(message))
        except BaseException as error:
            driver.core.outgoing.give_up(stream, f"the publisher gave it up: {type(error).__name__}")
            driver.flush()
            driver.wake_waiters()
            raise
        if stream.error is not None:
            driver.wake_waiters()
            raise stream.error
    finally:
        driver.lock.release()
    return True
