"""What a client can do, written once for both kinds of client.

Each operation is a coroutine that waits only through its driver. The asynchronous client awaits it; the synchronous
client runs it to its end in one step, because its driver blocks inside `wait`.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from broker.devices import Device
from broker.errors import ConnectionClosed, TimeoutError
from broker.limits import SHARED_PATIENCE_S
from broker.protocol.bodies import Declare, Settle, Subscribe, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from clients.connection.checks import time_limit
from clients.connection.core import Core, try_publish
from clients.connection.signals import Pending, Signal
from clients.publishing.outbound import Outbound
from clients.publishing.outgoing import BATCH_OPENED, BATCHED, SENT
from clients.publishing.streaming import StreamSource
from clients.reading.messages import Delivery, Message
from clients.reading.subscription_state import SubscriptionState

log = logging.getLogger(__name__)

LOOK_AGAIN_S = 0.0001
"""So long a publisher sleeps until it looks again what readers of its lines have let go of: longer than it takes to
wake up, and a part of what a reader takes for one of two messages of 16 MiB that go round."""


class Driver(Protocol):
    """What an operation needs of its client."""

    core: Core

    async def pause(self, seconds: float) -> bool:
        """Lets less than a millisecond pass, where so short a wait can be had, and has read what has come by then; says
        whether it has."""
        ...

    async def wait(self, signal: Signal, timeout_s: float | None, what: str) -> None:
        """Waits until a signal is ready.

        Raises:
            TimeoutError: it did not become ready in time.
        """
        ...

    def flush(self) -> None:
        """Sends what is queued as far as the link takes it."""
        ...

    def read_arrived(self) -> None:
        """Reads what has come, without waiting."""
        ...

    def batch_opened(self) -> None:
        """Sees to it that a batch leaves within the batch window."""
        ...


class Deadline:
    """A time-out that several waits share."""

    __slots__ = ("_end", "timeout_s")

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = None if timeout_s is None else time_limit("timeout_s", timeout_s)
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    @property
    def remaining_s(self) -> float | None:
        """What is left, at least 0; None without a time-out."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


async def online(driver: Driver, deadline: Deadline) -> None:
    """Waits until there is a connection.

    Raises:
        ConnectionClosed: there never will be one again, or not in time.
    """
    while driver.core.session is None:
        driver.core.check_open()
        try:
            await driver.wait(driver.core.online, deadline.remaining_s, "a connection to the broker")
        except TimeoutError as error:
            raise ConnectionClosed(f"no connection to the broker within {deadline.timeout_s:g} s") from error


async def answer(driver: Driver, pending: Pending, deadline: Deadline) -> int:
    """Waits for the broker's answer; returns its sequence."""
    try:
        await wait_for(driver, pending, deadline, pending.what)
    except BaseException:
        driver.core.forget(pending)
        raise
    return pending.result()


async def wait_for(driver: Driver, signal: Signal, deadline: Deadline, what: str) -> None:
    """Waits until a signal is ready.

    Raises:
        TimeoutError: not before the deadline.
    """
    try:
        await driver.wait(signal, deadline.remaining_s, what)
    except TimeoutError as error:
        raise TimeoutError(what, deadline.timeout_s or 0.0) from error


async def publish(
    driver: Driver, message: Outbound, timeout_s: float | None, *, acknowledge: bool = False
) -> int | None:
    """Publishes a message.

    Returns:
        Its sequence when it is to be acknowledged, else None.
    """
    core = driver.core
    deadline = Deadline(timeout_s)
    pending = None
    if acknowledge:
        pending = Pending(f"the broker to accept a message on {message.topic!r}")
        message.flags |= Flag.ACKNOWLEDGE
        message.reference = core.pending(pending)
    try:
        await hand_over(driver, message, deadline, pending)
    except BaseException:
        if pending is not None:
            core.forget(pending)
        raise
    if pending is None:
        return None
    return await answer(driver, pending, deadline)


async def room(driver: Driver, size_bytes: int) -> None:
    """Waits a moment for readers to be done with shared memory, if much of it is in use."""
    core, arenas = driver.core, driver.core.arenas
    if core.outgoing.lines.takes_back:
        # Before each new block, and not when there are none left: as few go round as are needed.
        core.take_back()
    if arenas.has_room(size_bytes):
        return
    driver.read_arrived()
    patience_s = SHARED_PATIENCE_S + size_bytes / 1e9
    deadline, pauses_s = None, patience_s / 2
    while True:
        core.take_back()
        if arenas.has_room(size_bytes):
            return
        began = time.monotonic()
        if core.outgoing.lines.awaits and pauses_s > 0 and await driver.pause(LOOK_AGAIN_S):
            # Readers of lines are still busy with others: nobody needs to wake anybody.
            pauses_s -= time.monotonic() - began
            arenas.waited(time.monotonic() - began)
            continue
        # Only now: who has slept for longer than was meant, on a busy machine, still waits for his answer.
        deadline = deadline or Deadline(patience_s)
        core.outgoing.lines.wait_for_memory(core.session)
        arenas.came_back.clear()
        try:
            await driver.wait(arenas.came_back, deadline.remaining_s, "shared memory to come back")
        except TimeoutError:
            arenas.widen(size_bytes)
            return
        arenas.waited(time.monotonic() - began)


async def place(driver: Driver, message: Outbound) -> None:
    """Puts a large message into shared memory if there is some for it."""
    arenas, payload = driver.core.arenas, message.payload
    if message.place is None and arenas.suits(len(payload)):
        await room(driver, len(payload))
        message.place = arenas.place(payload, message.value)


async def hand_over(driver: Driver, message: Outbound, deadline: Deadline, pending: Pending | None = None) -> None:
    """Gives a message to the link; a large one has left when this returns.

    Args:
        driver: of the client.
        message: what to publish.
        deadline: for all waits together.
        pending: the acknowledgement that is to come. When the connection is lost before the message has left, it is
            asked for again on the next one.

    Raises:
        TimeoutError: there was no credit or no connection in time; nothing of the message arrives anywhere.
        ConnectionClosed: the connection ended in the middle, or the client is closed.
    """
    core = driver.core
    await place(driver, message)
    while True:
        if pending is not None and pending.error is not None and core.session is not None:
            pending.error = None
            pending.clear()
            message.reference = core.pending(pending)
        signal = try_publish(core, message, time.monotonic_ns(), time.time_ns())
        if signal is SENT or signal is BATCHED or signal is BATCH_OPENED:
            follow_up(driver, signal)
            return
        try:
            await wait_for(driver, signal, deadline, awaited(core, message, signal))
        except BaseException as error:
            if isinstance(signal, StreamSource):
                core.outgoing.streams.give_up(core.session, signal, f"the publisher gave it up: {type(error).__name__}")
                driver.flush()
            raise
        if isinstance(signal, StreamSource):
            if signal.error is not None:
                raise signal.error
            return


def awaited(core: Core, message: Outbound, signal: Signal) -> str:
    """What whoever publishes a message waits for, in words."""
    if isinstance(signal, StreamSource):
        return (
            f"a message of {len(message.payload)} bytes on topic {message.topic!r} to leave: the broker, or a "
            "subscriber with overflow='block', does not keep up"
        )
    if message.place is not None and signal is message.place.block.arena.answered:
        return "the broker to map shared memory"
    if signal is core.online:
        return "a connection to the broker"
    return f"room on topic {message.topic!r}: a subscriber with overflow='block' does not keep up, or the broker"


def follow_up(driver: Driver, done: Signal) -> None:
    """Does what is left to do when a message was published: SENT, BATCHED or BATCH_OPENED."""
    if done is SENT:
        driver.flush()
        driver.core.outgoing.has_left(time.monotonic_ns())
    elif done is BATCH_OPENED:
        driver.batch_opened()


async def flush(driver: Driver, timeout_s: float | None) -> None:
    """Waits until the broker has everything that was published so far.

    Raises:
        LimitExceeded: the broker has all, and has refused a message that was longer than its topic's policy allows.
    """
    core = driver.core
    deadline = Deadline(timeout_s)
    await online(driver, deadline)
    for topic in list(core.outgoing.topics.values()):
        if topic.stream is not None:
            await wait_for(driver, topic.stream, deadline, f"the message on topic {topic.name!r} to leave")
    core.outgoing.send_batches()
    published = core.outgoing.unconfirmed
    pending = Pending("the broker to confirm what was published")
    # In the bulk lane, so that it passes nothing that was published.
    core.send(Frame(Kind.FLUSH, lane=Lane.BULK, target=core.pending(pending)))
    await answer(driver, pending, deadline)
    core.outgoing.unconfirmed -= min(published, core.outgoing.unconfirmed)
    core.outgoing.take_refusal()


async def declare(driver: Driver, wishes: Declare, timeout_s: float | None) -> None:
    """Declares a policy; when this returns, it holds."""
    deadline = Deadline(timeout_s)
    await online(driver, deadline)
    await answer(driver, driver.core.declare(wishes), deadline)


async def subscribe(
    driver: Driver, wishes: Subscribe, timeout_s: float | None, device: Device | None = None
) -> SubscriptionState:
    """Subscribes; when this returns, the broker has acknowledged. Arrays are to be on the device, if one is given."""
    deadline = Deadline(timeout_s)
    await online(driver, deadline)
    subscription, pending = driver.core.subscribe(wishes, device)
    try:
        await answer(driver, pending, deadline)
    except BaseException:
        # The broker may have it, or be about to: nobody would read it, and a `block` one would hold its topics back.
        driver.core.unsubscribe(subscription)
        driver.flush()
        raise
    return subscription


async def unsubscribe(driver: Driver, subscription: SubscriptionState, timeout_s: float | None) -> None:
    """Ends a subscription; when this returns, the broker sends no more for it."""
    pending = driver.core.unsubscribe(subscription)
    if pending is not None:
        try:
            await answer(driver, pending, Deadline(timeout_s))
        except ConnectionClosed:
            # With the connection the subscription has ended as well.
            return


async def next_message(driver: Driver, subscription: SubscriptionState, timeout_s: float | None) -> Message:
    """The next message of a subscription.

    Raises:
        TimeoutError: none came in time.
        ConnectionClosed: the subscription or the client is closed, and no message is left.
    """
    deadline = Deadline(timeout_s)
    while True:
        message = take(driver, driver.core, subscription)
        if message is not None:
            return message
        if subscription.closed is not None:
            raise subscription.closed
        await wait_for(driver, subscription, deadline, subscription.what)


def take(driver: Driver, core: Core, subscription: SubscriptionState) -> Message | None:
    """The next message if it is here; gives credit, or asks for one. `core` is the driver's."""
    if core.session is not None and core.incoming.leases.due():
        core.incoming.leases.give_back(core.session)
        driver.flush()
    if subscription.has_max_lag:
        driver.read_arrived()
    message = subscription.take()
    if message is None:
        ask = subscription.ask() if core.session is not None else None
        if ask is not None:
            core.send(ask)
            driver.flush()
    elif subscription.is_latest:
        # Of several threads that wait, this one has got the message that was asked for.
        ask = subscription.ask() if subscription.readers and core.session is not None else None
        if ask is not None:
            core.send(ask)
            driver.flush()
    elif subscription.credit_due and core.incoming.give_credit(subscription):
        driver.flush()
    return message


def settle(driver: Driver, delivery: Delivery, *, refused: bool, delay_s: float) -> None:
    """Tells the broker what has become of a job, at once; only the first word counts."""
    core = driver.core
    if delivery.settled:
        return
    delivery.settled = True
    delivery.reader = None
    if core.session is None or core.session is not delivery.session:
        log.debug("job.settled_too_late delivery=%d refused=%s: its session is over", delivery.number, refused)
        return
    if delivery.subscription not in core.incoming.subscriptions:
        log.debug("job.settled_too_late delivery=%d refused=%s: its subscription is closed", delivery.number, refused)
        return
    body = encode_body(Settle([delivery.number], refused, int(delay_s * 1e9)))
    core.send(Frame(Kind.SETTLE, lane=Lane.CONTROL, number=delivery.subscription, body=body))
    driver.flush()
