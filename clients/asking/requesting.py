"""Requests and replies, written once for both kinds of client, as `clients.connection.operations` are."""

from __future__ import annotations

import contextlib

from broker.errors import ConnectionClosed, InvalidValue, NoResponders, ResponderLost, TimeoutError
from broker.limits import RECONNECT_DELAY_FIRST_S, RECONNECT_DELAY_MAX_S
from broker.protocol.values import Encoded
from clients.asking.exchanges import Exchange, Request
from clients.asking.requests import PendingRequest
from clients.connection.checks import time_limit, whole_number
from clients.connection.operations import Deadline, Driver, hand_over, online, wait_for
from clients.connection.options import PUBLISH_TIMEOUT_S, reply_message
from clients.publishing.outbound import Outbound
from clients.reading.messages import Answer, Message


async def request(driver: Driver, message: Outbound, timeout_s: float, retries: int) -> Message:
    """Asks and waits for the first reply.

    Each try waits timeout_s. All tries carry the same number, so a responder can recognise a repeated request. However
    this ends, whoever still works on the request is told.

    Raises:
        NoResponders: nobody responds at the topic; at once in the first try, in a later one if nobody comes back.
        RequestFailed: the responder's function raised.
        ResponderLost: nobody is left of those that were asked, in the last try.
        TimeoutError: no reply came in any of the tries.
    """
    pending = driver.core.new_request(message.topic, many=False)
    try:
        for attempt in range(retries + 1):
            try:
                return await _try(driver, message, pending, Deadline(timeout_s), patient=attempt > 0)
            except (TimeoutError, ConnectionClosed, ResponderLost, NoResponders) as error:
                driver.core.check_open()
                if attempt == retries or (isinstance(error, NoResponders) and not attempt):
                    raise
                pending.again()
        raise AssertionError("retries is negative")
    finally:
        _forget(driver, pending)


async def _try(
    driver: Driver, message: Outbound, pending: PendingRequest, deadline: Deadline, *, patient: bool
) -> Message:
    """One try; a patient one gives responders that were there before the time to come back, as this client did."""
    delay_s = RECONNECT_DELAY_FIRST_S
    while True:
        if not pending.ready:
            await _ask(driver, message, pending, deadline)
        await wait_for(driver, pending, deadline, f"a reply to a request on {message.topic!r}")
        try:
            reply = pending.take()
            assert reply is not None
            return reply
        except NoResponders:
            if not patient or not deadline.remaining_s:
                raise
        pending.again()
        with contextlib.suppress(TimeoutError):
            await driver.wait(pending, min(delay_s, deadline.remaining_s), "a responder")
        delay_s = min(2 * delay_s, RECONNECT_DELAY_MAX_S)


async def _ask(driver: Driver, message: Outbound, pending: PendingRequest, deadline: Deadline) -> None:
    core = driver.core
    await online(driver, deadline)
    core.address(message, pending)
    pending.sent_on = core.session
    if message.lane is not None:
        pending.lane = message.lane
    await hand_over(driver, message, deadline)


def _forget(driver: Driver, pending: PendingRequest) -> None:
    core = driver.core
    if core.requests.forget(pending, core.session):
        driver.flush()


class Gathering:
    """The replies of all responders to one request; asked when the first one is wanted.

    Attributes:
        complete: whether all responders that were asked have said their last reply.
    """

    def __init__(
        self,
        driver: Driver,
        message: Outbound,
        timeout_s: float | None,
        stall_s: float | None,
        max_replies: int | None,
    ) -> None:
        """Args:
        driver: of the client.
        message: what to ask.
        timeout_s: for all replies together, in seconds.
        stall_s: for each reply, in seconds.
        max_replies: how many are wanted.

        Raises:
            InvalidValue: one of them cannot be.
        """
        if timeout_s is not None:
            time_limit("timeout_s", timeout_s)
        if stall_s is not None:
            time_limit("stall_s", stall_s)
        if max_replies is not None and whole_number("max_replies", max_replies) < 1:
            raise InvalidValue("max_replies", max_replies, "must be 1 or more; None is for all")
        self.complete = False
        self._driver = driver
        self._message = message
        self._timeout_s = timeout_s
        self._stall_s = stall_s
        self._left = max_replies
        self._deadline = Deadline(timeout_s)
        self._late = False
        self._pending: PendingRequest | None = None
        self._over = False

    async def next(self) -> Message | None:
        """The next reply; None when there will be no more, or they are not wanted.

        Raises:
            NoResponders: nobody responds at the topic.
            RequestFailed, ResponderLost: of a responder, when the others have said what they had to say.
            ConnectionClosed: the connection has ended, and with it what was under way.
        """
        if self._over:
            return None
        try:
            reply = await self._next()
        except BaseException:
            self.close()
            raise
        if self._left is not None and reply is not None:
            self._left -= 1
        if reply is None or self._left == 0:
            self.close()
        return reply

    async def _next(self) -> Message | None:
        driver, pending = self._driver, self._pending
        if pending is None:
            self._deadline = Deadline(self._timeout_s)
            pending = self._pending = driver.core.new_request(self._message.topic, many=True)
            await _ask(driver, self._message, pending, self._deadline)
        remaining_s = self._deadline.remaining_s
        if not pending.ready and (remaining_s is None or remaining_s > 0):
            waits = [time_s for time_s in (remaining_s, self._stall_s) if time_s is not None]
            try:
                await driver.wait(pending, min(waits, default=None), f"a reply to a request on {pending.topic!r}")
            except TimeoutError:
                self._late = True
        if self._deadline.remaining_s == 0 and not self._late:
            # What has come in time counts; a responder that never ends must not keep the iteration going.
            self._late = True
            self._left = min(len(pending.replies), self._left or len(pending.replies))
        if self._late and not pending.replies and pending.error is None and not pending.failures:
            return None
        reply = pending.take()
        credit = pending.credit(reply) if reply is not None else None
        if credit is not None and driver.core.session is pending.sent_on:
            driver.core.send(credit)
            driver.flush()
        return reply

    def close(self) -> None:
        """Wants no more replies; the responders that are not done are told."""
        self._over = True
        pending, self._pending = self._pending, None
        if pending is not None:
            failed = pending.error is not None or pending.failures
            self.complete = pending.settled and not failed and not pending.replies
            _forget(self._driver, pending)

    def abandon(self) -> None:
        """As `close`, soon, for whoever cannot take the client's lock."""
        self._over = True
        pending, self._pending = self._pending, None
        if pending is not None:
            self._driver.core.requests.abandoned.append(pending)


async def reply(driver: Driver, message: Message, answer: Answer, encoded: Encoded | None = None) -> None:
    """Answers a request. `encoded` is the answer's value, if it has been encoded.

    Raises:
        InvalidValue: it has had its last reply, or the value cannot be sent.
        TimeoutError: the requester does not take its replies, or does not read.
        ConnectionClosed: the client is closed, or the connection ended in the middle of a large reply.
    """
    outbound = reply_message(message, answer, encoded)
    deadline = Deadline(PUBLISH_TIMEOUT_S)
    exchange = message.exchange if isinstance(message, Request) else None
    if exchange is None:
        await hand_over(driver, outbound, deadline)
        return
    if exchange.over:
        raise InvalidValue("request on topic", message.topic, "has had its last reply already")
    if not answer.last:
        what = f"the requester of {message.topic!r} to take replies"
        while not exchange.ready:
            await wait_for(driver, exchange, deadline, what)
    if not exchange.cancelled:
        outbound.replies = True
        outbound.topic = exchange.inbox
        exchange.sending = outbound
        try:
            await hand_over(driver, outbound, deadline)
        finally:
            exchange.sending = None
    exchange.said(outbound)


async def repeat(driver: Driver, exchange: Exchange) -> None:
    """Sends the replies of a request again that was asked again."""
    deadline = Deadline(PUBLISH_TIMEOUT_S)
    for outbound in exchange.again():
        await hand_over(driver, outbound, deadline)
