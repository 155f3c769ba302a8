"""The shortest way of a small message in the synchronous client, when nothing has to wait.

It says to the broker what operations.publish says, without its coroutine. Whatever is not as usual (headers, large
values, no room, no connection) goes that way from its start.
"""

from __future__ import annotations

from typing import Final

from broker.clock import monotonic_ns, wall_ns
from broker.limits import PLACED_BYTES_MIN
from clients.connection.driver import Driver
from clients.publishing.filling import UNBROKEN, add
from clients.publishing.outgoing import BATCH_OPENED, SENT
from clients.publishing.outgoing_topic import LANES

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
