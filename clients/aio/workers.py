"""The asynchronous client of a broker with several workers; `clients.workers` says what it is made of."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial, wraps
from typing import Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

from broker.errors import ConnectionClosed, TimeoutError
from broker.limits import ANSWER_TIMEOUT_S
from broker.protocol.codes import Code
from clients.aio.client import Client, Handler
from clients.aio.groups import Group
from clients.aio.replies import Replies
from clients.aio.subscriptions import Subscription
from clients.connection import operations
from clients.connection.checks import check_callable
from clients.connection.operations import Deadline
from clients.connection.signals import Signal
from clients.reading.messages import Message
from clients.workers.client import check_dead_letter, telling_where
from clients.workers.parts import Inners, Parts

F = TypeVar("F", bound=Callable[..., object])


class Connect(Protocol):
    """Connects with one worker."""

    def __call__(self, worker: int, workers: int, called: str) -> Coroutine[object, None, Client]: ...


def _at_owner(method: F) -> F:
    """A method about one topic: its owner's client has it."""
    name = method.__name__

    @wraps(method)
    async def called(bus: WorkersClient, topic: str, *arguments: object, **options: object) -> object:
        return await getattr(await bus._owner(topic), name)(topic, *arguments, **options)

    return cast("F", called)


def _gathering(method: F) -> F:
    """`request_many`: the owner is looked for when the first reply is."""

    @wraps(method)
    def called(bus: WorkersClient, topic: str, *arguments: object, **options: object) -> Replies:
        replies = bus._clients.home.request_many(topic, *arguments, **options)  # type: ignore[arg-type]
        return _LateReplies(replies, lambda: bus._owner(topic))

    return cast("F", called)


def _declaring(method: F) -> F:
    """`declare`: at the owner of a topic, or at all workers."""

    @wraps(method)
    async def called(bus: WorkersClient, topic_filter: str, **settings: object) -> None:
        check_dead_letter(topic_filter, settings.get("dead_letter"))
        workers = bus._clients.owners(topic_filter)
        # All of them are there before it holds at any.
        owners = [await bus._client(worker) for worker in workers]
        with telling_where(topic_filter, workers) as agreed:
            for worker, client in zip(workers, owners, strict=True):
                await client.declare(topic_filter, **settings)  # type: ignore[arg-type]
                agreed.append(worker)

    return cast("F", called)


def _subscribing(method: F) -> F:
    """`subscribe`: at the owner of a topic, or at all workers; a handler handles all of it, a message at a time."""

    @wraps(method)
    async def called(
        bus: WorkersClient, topic_filter: str, *, handler: Handler | None = None, **options: object
    ) -> Subscription:
        if handler is not None:
            check_callable("handler", handler)
            options["handler"] = _one_at_a_time(handler)
        parts = await bus._parts("subscribe", topic_filter, (), options)
        return parts[0] if len(parts) == 1 else MergedSubscription(parts, read=handler is None)

    return cast("F", called)


def _one_at_a_time(handler: Handler) -> Handler:
    """A handler that handles no message before it is done with another worker's."""
    turn = asyncio.Lock()

    async def called(message: Message) -> object:
        async with turn:
            outcome = handler(message)
            return await outcome if inspect.isawaitable(outcome) else outcome

    return called


def _responding(method: F) -> F:
    """`respond`: at the owner of a topic, or at all workers."""

    @wraps(method)
    async def called(bus: WorkersClient, topic_filter: str, *arguments: object, **options: object) -> Subscription:
        parts = await bus._parts("respond", topic_filter, arguments, options)
        return parts[0] if len(parts) == 1 else MergedSubscription(parts, read=False)

    return cast("F", called)


def _of_group(method: F) -> F:
    """`group`: at its owner."""

    @wraps(method)
    async def called(bus: WorkersClient, name: str, **options: object) -> Group:
        return await (await bus._owner(name)).group(name, **options)  # type: ignore[arg-type]

    return cast("F", called)


class WorkersClient(Client):
    """As Client, of all workers together; `clients.aio.connect` returns one where a broker has several."""

    def __init__(self, home: Client, workers: int, connect: Connect) -> None:
        """Args:
        home: of the first worker.
        workers: how many there are, as it has said.
        connect: makes the clients of the others.
        """
        super().__init__(home._core, home._driver)
        self._connect = connect
        self._clients = Inners(home, workers)
        self._opening = asyncio.Lock()
        self._closed = False

    async def _client(self, worker: int) -> Client:
        """The client of a worker; see `clients.workers.client.WorkersClient`."""
        client = self._clients[worker]
        if client is not None:
            return client
        async with self._opening:
            client = self._clients[worker]
            if client is None:
                if self._closed:
                    raise ConnectionClosed("the client was closed", Code.NORMAL)
                name = self.name or f"client-{self._core.session_number}"
                client = self._clients[worker] = await self._connect(worker, self._clients.workers, name)
            return client

    async def _owner(self, name: str) -> Client:
        return await self._client(self._clients.owner(name))

    async def _parts(
        self, call: str, topic_filter: str, arguments: Sequence[object], options: dict[str, object]
    ) -> list[Subscription]:
        """A subscription at each worker that is concerned, or none at all."""
        parts: list[Subscription] = []
        async with AsyncExitStack() as undoing:
            for worker in self._clients.owners(topic_filter):
                client = await self._client(worker)
                parts.append(await getattr(client, call)(topic_filter, *arguments, **options))
                undoing.push_async_callback(parts[-1].close)
            undoing.pop_all()
        return parts

    @property
    def connected(self) -> bool:
        """Whether there is a connection at this moment, with each worker that was needed so far."""
        return self._clients.connected

    publish = _at_owner(Client.publish)
    pressure = _at_owner(Client.pressure)
    request = _at_owner(Client.request)
    request_many = _gathering(Client.request_many)
    declare = _declaring(Client.declare)
    subscribe = _subscribing(Client.subscribe)
    respond = _responding(Client.respond)
    group = _of_group(Client.group)

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = "float32") -> npt.NDArray[np.generic]:
        """An uninitialised array to be filled and published; it is copied once, unless its topic is the first worker's.

        See Client.
        """
        return self._clients.home.empty(shape, dtype)

    async def flush(self, timeout_s: float | None = ANSWER_TIMEOUT_S) -> None:
        """Waits until everything that was published so far has reached the broker."""
        for client in self._clients:
            await client.flush(timeout_s)

    async def close(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Closes in order: what was published still leaves. Calls that wait raise ConnectionClosed.

        Cancelled, it closes all connections as well.
        """
        async with self._opening:
            self._closed = True
        await _all_of([partial(client.close, timeout_s) for client in self._clients])

    def __repr__(self) -> str:
        return f"<aio.Client {self.name!r} {self._clients!r}>"


class MergedSubscription(Subscription):
    """As Subscription, of the topics of several workers together; see `clients.workers.subscriptions`."""

    def __init__(self, parts: Sequence[Subscription], *, read: bool) -> None:
        """Args:
        parts: at each worker one.
        read: whether its messages are taken here; else responders take them.
        """
        super().__init__(parts[0]._driver, parts[0]._state, read=False)
        self._parts = Parts(parts)
        self._others = [part._driver for part in parts[1:]]
        self._came = Signal()
        for part in parts if read else ():
            part._state.on_message = self._came.set

    @property
    def dropped(self) -> int:
        """Messages that the overflow policy has dropped, in the broker or here."""
        return self._parts.dropped

    @property
    def pending(self) -> int:
        """Messages that have reached this process and were not taken."""
        return self._parts.pending

    async def next(self, timeout_s: float | None = None) -> Message:
        """The next message of any of the topics; cancelling loses none. See Subscription."""
        deadline = Deadline(timeout_s)
        while True:
            self._came.clear()
            message = self._parts.take(_take)
            if message is not None:
                # Whoever else waits here looks whether there is more.
                self._came.set()
                return message
            self._parts.check_open()
            for driver in self._others:
                driver.core.before_waiting()
                driver.flush()
            try:
                await self._driver.wait(self._came, deadline.remaining_s, self._state.what)
            except TimeoutError as error:
                raise TimeoutError(self._state.what, deadline.timeout_s or 0.0) from error

    async def close(self) -> None:
        """Ends the subscription. Messages that are here can still be taken. Cancelled, all of it ends as well."""
        await _all_of([part.close for part in self._parts])


async def _all_of(calls: Sequence[Callable[[], Coroutine[object, None, None]]]) -> None:
    """Does one after the other, and all of them, also when one fails or is cancelled.

    Nobody could still end what is left at a worker, and a subscription that nobody reads holds publishers back.
    """
    async with AsyncExitStack() as stack:
        for call in reversed(calls):
            stack.push_async_callback(call)


def _take(part: Subscription) -> Message | None:
    return operations.take(part._driver, part._driver.core, part._state)


class _LateReplies(Replies):
    """Replies of a worker whose client is looked for, and connected, when the first one is wanted."""

    def __init__(self, replies: Replies, find: Callable[[], Awaitable[Client]]) -> None:
        super().__init__(replies._gathering)
        self._replies = replies
        """It would give the request up when nothing referred to it."""
        self._find: Callable[[], Awaitable[Client]] | None = find

    async def __anext__(self) -> Message:
        if self._find is not None:
            client = await self._find()
            self._gathering._driver, self._find = client._driver, None
        return await super().__anext__()
