"""The asynchronous client: the same names as `clients.Client`, as coroutines."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import NoReturn, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from broker.devices import Device, read_device
from broker.limits import ANSWER_TIMEOUT_S, COLLECTIVE_TIMEOUT_S, CONNECT_TIMEOUT_S, QUEUE_BYTES, QUEUE_MESSAGES
from broker.protocol.bodies import Declare, Subscribe
from broker.protocol.pressure import Pressure
from clients.aio.driver import AsyncDriver
from clients.aio.groups import Group
from clients.aio.replies import Replies
from clients.aio.responding import Responder
from clients.aio.subscriptions import Subscription
from clients.asking import requesting
from clients.asking.exchanges import Request
from clients.collectives import joining
from clients.collectives.compression import Compression
from clients.connection import environment, operations
from clients.connection.checks import array_form, check_callable, stays_here
from clients.connection.core import Core
from clients.connection.dialling import Dialling, asked
from clients.connection.options import (
    PUBLISH_TIMEOUT_S,
    declaration,
    group_place,
    outbound,
    request_message,
    subscribe_wishes,
)
from clients.connection.pressure import pressure as ask_pressure
from clients.connection.reconnected import Reconnected
from clients.connection.securing import Folder
from clients.publishing import device_out
from clients.publishing.arenas import ordinary_array
from clients.reading.handlers import FAILED, settle_handled
from clients.reading.messages import Answer, Delivery, Message, Sent

log = logging.getLogger(__name__)

Handler = Callable[[Message], object]
_SENT = Sent()


async def connect(
    url: str | None = None,
    *,
    name: str = "",
    token: str | None = None,
    tls: Folder | None = None,
    tenant: str = "",
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    reconnect_timeout_s: float = 30.0,
    on_reconnect: Callable[[Reconnected], None] | None = None,
    shared_memory: bool = True,
    tracing: bool | None = None,
) -> Client:
    """Connects to a broker; arguments and errors as for `clients.connect`. The client belongs to the running loop."""
    dialling = asked(
        url,
        name=name,
        token=token,
        tls=tls,
        tenant=tenant,
        connect_timeout_s=connect_timeout_s,
        reconnect_timeout_s=reconnect_timeout_s,
        on_reconnect=on_reconnect,
        shared_memory=shared_memory,
    )
    kind = Client
    if environment.tracing() if tracing is None else tracing:
        from clients.aio.traced import TracedClient
        from clients.processing import tracer

        # Without OpenTelemetry this says so, before anything is dialled.
        tracer()
        kind = TracedClient

    async def connected(dialling: Dialling) -> Client:
        def settle(delivery: Delivery, *, refused: bool, delay_s: float) -> Awaitable[None]:
            return client._settle(delivery, refused=refused, delay_s=delay_s)

        core = Core(dialling.greeting.name, lambda *answer: client._reply(*answer), settle)
        driver = AsyncDriver(core, dialling)
        client = kind(core, driver)
        await driver.connect()
        return client

    client, workers = await connected(dialling), dialling.greeting.workers
    if workers == 1:
        return client
    from clients.aio.workers import WorkersClient

    return WorkersClient(client, workers, lambda *worker: connected(dialling.of_worker(*worker)))


class Client:
    """A connection to a broker, for one event loop. `clients.Client` documents arguments and errors."""

    _groups: type[Group] = Group

    def __init__(self, core: Core, driver: AsyncDriver) -> None:
        """See `connect`."""
        self._core = core
        self._driver = driver

    @property
    def name(self) -> str:
        """What this client calls itself."""
        return self._core.name

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment."""
        return self._core.session is not None

    async def publish(
        self,
        topic: str,
        value: object,
        *,
        headers: Mapping[str, str] | None = None,
        lane: str | None = None,
        ack: str | None = None,
        urgent: bool = False,
        priority: int = 0,
        timeout_s: float = PUBLISH_TIMEOUT_S,
    ) -> int | None:
        """Publishes a value. When this returns, the value may be changed; when it is cancelled, it may have arrived."""
        if self._core.devices is not None:
            prepared = device_out.prepare(self._core, topic, value, headers, lane, ack, priority, timeout_s)
            placed = device_out.AS_BYTES if prepared is None else await device_out.publish(self._driver, prepared)
            if placed != device_out.AS_BYTES:
                return None if ack is None else placed
        message, acknowledge = outbound(topic, value, headers, lane, ack, urgent=urgent, priority=priority)
        return await operations.publish(self._driver, message, timeout_s, acknowledge=acknowledge)

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = "float32") -> npt.NDArray[np.generic]:
        """An uninitialised array to be filled and published, without any copy on the broker's host."""
        lengths, kind, size_bytes = array_form(shape, dtype)
        if not self._core.arenas.suits(size_bytes):
            return ordinary_array(self._core.incoming.pool, lengths, kind, size_bytes)
        return self._core.arenas.array(lengths, kind, size_bytes)

    async def flush(self, timeout_s: float | None = ANSWER_TIMEOUT_S) -> None:
        """Waits until everything that was published so far has reached the broker."""
        await operations.flush(self._driver, timeout_s)

    async def pressure(self, topic: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Pressure:
        """Asks the broker how a topic fares."""
        return await ask_pressure(self._driver, topic, timeout_s)

    async def declare(
        self,
        topic_filter: str,
        *,
        ring_messages: int | None = None,
        ring_bytes: int | None = None,
        retain: bool | None = None,
        overflow: str | None = None,
        batch_bytes: int | None = None,
        batch_window_us: int | None = None,
        lane: str | None = None,
        max_message_bytes: int | None = None,
        acknowledge: bool | None = None,
        lease_s: float | None = None,
        max_deliveries: int | None = None,
        dead_letter: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        """Declares what holds for the topics that a filter matches; when it is cancelled, it may hold all the same."""
        wishes = Declare(
            topic_filter, ring_messages, ring_bytes, retain, overflow, batch_bytes, batch_window_us, lane,
            max_message_bytes, acknowledge, lease_s, max_deliveries, dead_letter,
        )  # fmt: skip
        await operations.declare(self._driver, declaration(wishes), timeout_s)

    async def subscribe(
        self,
        topic_filter: str,
        *,
        overflow: str | None = None,
        queue_messages: int = QUEUE_MESSAGES,
        queue_bytes: int = QUEUE_BYTES,
        queue_group: str | None = None,
        replay: str | int | None = None,
        max_lag: int | None = None,
        device: str | None = None,
        handler: Handler | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Subscription:
        """Subscribes; a handler may be a function or a coroutine function, and is called for one message at a time."""
        if handler is not None:
            check_callable("handler", handler)
        wishes = subscribe_wishes(
            topic_filter, overflow, queue_messages, queue_bytes, queue_group, replay, max_lag=max_lag
        )
        return await self._subscribe(wishes, handler, timeout_s, read_device(device))

    async def _subscribe(
        self, wishes: Subscribe, handler: Handler | None, timeout_s: float, device: Device | None
    ) -> Subscription:
        state = await operations.subscribe(self._driver, wishes, timeout_s, device)
        subscription = Subscription(self._driver, state)
        if handler is not None:
            self._driver.start(asyncio.get_running_loop().create_task(_handle(subscription, handler)))
        return subscription

    async def respond(
        self,
        topic_filter: str,
        function: Callable[[Request], object],
        *,
        queue_group: str | None = None,
        device: str | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Subscription:
        """Answers requests with what a function or coroutine function returns, or an asynchronous generator yields.

        Coroutines and generators run as tasks, up to 256 at the same time, and are cancelled when the requester gives
        up; plain functions run at once. clients.DEFERRED answers later.
        """
        check_callable("function", function)
        place = read_device(device)
        wishes = subscribe_wishes(topic_filter, "block", QUEUE_MESSAGES, QUEUE_BYTES, queue_group, None, responder=True)
        exchanges = self._core.responders.add(asyncio.get_running_loop().call_soon)
        return await self._subscribe(wishes, Responder(self._driver, exchanges, function), timeout_s, place)

    async def request(
        self,
        topic: str,
        value: object = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        retries: int = 0,
        headers: Mapping[str, str] | None = None,
        lane: str = "default",
        device: str | None = None,
    ) -> Message:
        """Asks and waits for the first reply."""
        place = read_device(device)
        message = request_message(topic, value, headers, lane, retries)
        reply = await requesting.request(self._driver, message, timeout_s, retries)
        reply._device = place
        return reply

    def request_many(
        self,
        topic: str,
        value: object = None,
        *,
        timeout_s: float | None = 1.0,
        stall_s: float | None = None,
        max_replies: int | None = None,
        headers: Mapping[str, str] | None = None,
        lane: str = "default",
    ) -> Replies:
        """Asks all responders; `async for` yields their replies as they come, until each has said its last one."""
        message = request_message(topic, value, headers, lane, 0)
        return Replies(requesting.Gathering(self._driver, message, timeout_s, stall_s, max_replies))

    def _reply(self, request: Message, answer: Answer) -> Awaitable[None]:
        # A task, so that the reply leaves even if nobody awaits it.
        task = asyncio.get_running_loop().create_task(requesting.reply(self._driver, request, answer))
        self._driver.start(task)
        return task

    def _settle(self, delivery: Delivery, *, refused: bool, delay_s: float) -> Awaitable[None]:
        self._driver.call(partial(operations.settle, self._driver, delivery, refused=refused, delay_s=delay_s))
        return _SENT

    async def group(
        self,
        name: str,
        *,
        world_size: int | None = None,
        rank: int | None = None,
        timeout_s: float = COLLECTIVE_TIMEOUT_S,
        schedule: str = "auto",
        compression: str = "none",
    ) -> Group:
        """Becomes a member of a collective group; returns when the group has formed."""
        size, wanted = group_place(name, world_size, rank)
        compressed = Compression(compression)
        place = await joining.join(self._driver, name, size, wanted, timeout_s, schedule)
        return self._groups(self._driver, place, compressed)

    async def close(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Closes in order: what was published still leaves. Calls that wait raise ConnectionClosed."""
        await self._driver.close("the client was closed", timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise stays_here(self, "Connect in the other process, with the same address")

    def __repr__(self) -> str:
        state = "connected" if self.connected else "closed" if self._core.closed else "reconnecting"
        return f"<aio.Client {self.name!r} {state}>"


async def _handle(subscription: Subscription, handler: Handler) -> None:
    async for message in subscription:
        try:
            outcome = handler(message)
            if inspect.isawaitable(outcome):
                outcome = await outcome
        except Exception:
            log.exception("handler.failed topic=%r", message.topic)
            settle_handled(message, FAILED)
        else:
            settle_handled(message, outcome)
