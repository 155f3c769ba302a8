"""The shortest way of a request and of its reply in the synchronous client: of small values, when nothing has to wait.

It says to the broker what requesting.py says, without its coroutines. Whatever is not as usual (headers, large
values, retries, no room, no connection) goes that way from its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker.clock import monotonic_ns, wall_ns
from broker.errors import ConnectionClosed, NoResponders, ResponderLost, TimeoutError
from broker.limits import PLACED_BYTES_MIN
from broker.protocol.frames import Content, Flag
from broker.protocol.values import Encoded, encode_value
from clients.asking import requesting
from clients.asking.exchanges import Exchange, Request
from clients.connection.core import try_publish
from clients.connection.driver import Driver
from clients.connection.options import request_message
from clients.connection.pump import seconds
from clients.publishing.outbound import Outbound
from clients.publishing.outgoing import SENT
from clients.publishing.outgoing_topic import LANES
from clients.reading.messages import Answer, Message

_SENT: Final = SENT
_BYTES, _LAST = int(Content.BYTES), int(Flag.LAST)


def request(
    driver: Driver,
    topic: str,
    value: object,
    timeout_s: float,
    retries: int,
    headers: Mapping[str, str] | None,
    lane: str,
) -> Message:
    """Asks and waits for the first reply; see `Client.request`."""
    encoded: Encoded | None = None
    usual = type(topic) is str and type(lane) is str and lane in LANES
    if usual and headers is None and type(retries) is int and not retries:
        encoded = (_BYTES, None, value) if type(value) is bytes else encode_value(value)
        if _is_small(encoded):
            seconds(timeout_s)
            reply = _ask(driver, _small(topic, LANES[lane], encoded), LANES[lane], timeout_s)
            if reply is not None:
                return reply
    message = request_message(topic, value, headers, lane, retries, encoded=encoded)
    return driver.run(requesting.request(driver, message, timeout_s, retries))


def _is_small(encoded: Encoded) -> bool:
    payload = encoded[2]
    return encoded[1] is None and type(payload) is bytes and len(payload) < PLACED_BYTES_MIN


def _small(topic: str, lane: int, encoded: Encoded) -> Outbound:
    message = Outbound(topic, lane, encoded[0], None, encoded[2])
    message.urgent = True
    return message


def _ask(driver: Driver, message: Outbound, lane: int, timeout_s: float) -> Message | None:
    """Asks once, as `requesting.request` does; None when the request could not leave at once, and has not."""
    core = driver.core
    with driver.lock:
        pending = core.new_request(message.topic, many=False)
        try:
            core.address(message, pending)
            if try_publish(core, message, monotonic_ns(), wall_ns()) is not _SENT:
                return None
            pending.sent_on, pending.lane = core.session, lane
            driver.flush()
            core.outgoing.has_left(monotonic_ns())
            driver.block(pending, timeout_s, "a reply")
            return pending.take()
        except (TimeoutError, ConnectionClosed, ResponderLost, NoResponders) as error:
            driver.wake_waiters()
            core.check_open()
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"a reply to a request on {message.topic!r}", timeout_s) from error
            raise
        except BaseException:
            # As in Driver.run: what was given up may be what somebody else waits for.
            driver.wake_waiters()
            raise
        finally:
            if core.requests.forget(pending, core.session):
                driver.flush()


def reply(driver: Driver, message: Message, answer: Answer) -> None:
    """Answers a request; see `Message.reply`."""
    encoded: Encoded | None = None
    exchange = message.exchange if isinstance(message, Request) else None
    if exchange is not None and answer.last and answer.headers is None and not answer.error and not answer.end:
        value = answer.value
        encoded = (_BYTES, None, value) if type(value) is bytes else encode_value(value)
        if _is_small(encoded):
            outbound = _small(exchange.inbox, message._lane, encoded)
            outbound.last = outbound.replies = True
            outbound.flags = _LAST
            outbound.request = exchange.number
            with driver.lock:
                if _answer(driver, exchange, outbound):
                    return
    driver.run(requesting.reply(driver, message, answer, encoded))


def _answer(driver: Driver, exchange: Exchange, outbound: Outbound) -> bool:
    """Sends the last reply to a request; says whether that could be done at once. The lock is held."""
    core = driver.core
    if exchange.over or exchange.cancelled:
        return False
    # The requester may have moved since.
    outbound.topic = exchange.inbox
    if try_publish(core, outbound, monotonic_ns(), wall_ns()) is not _SENT:
        return False
    driver.flush()
    core.outgoing.has_left(monotonic_ns())
    exchange.said(outbound)
    return True
