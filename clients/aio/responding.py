"""Responders of the asynchronous client: functions, coroutine functions and generators that answer requests.

A coroutine or a generator runs as a task of its own, so that one request does not hold up the next; when its requester
gives up, the task is cancelled. A plain function runs at once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import AsyncGeneratorType, CoroutineType, GeneratorType

from broker.errors import BrokerError, ConnectionClosed
from broker.limits import REPLY_STREAMS_MAX
from clients.aio.driver import AsyncDriver
from clients.asking import requesting
from clients.asking.exchanges import Exchange, Exchanges, Request
from clients.reading.messages import DEFERRED, Message

log = logging.getLogger(__name__)


class Responder:
    """A handler that replies with what a function returns, awaits or yields, or with the error that it raises."""

    def __init__(self, driver: AsyncDriver, exchanges: Exchanges, function: Callable[[Request], object]) -> None:
        """Made by `Client.respond`."""
        self._driver = driver
        self._exchanges = exchanges
        self._function = function
        self._room = asyncio.Semaphore(REPLY_STREAMS_MAX)

    async def __call__(self, message: Message) -> None:
        """Answers one request, or starts to."""
        if not message.is_request:
            return
        asked = self._exchanges.receive(message, time.monotonic_ns())
        if isinstance(asked, Exchange):
            await requesting.repeat(self._driver, asked)
        elif asked is not None:
            await self._answer(asked)

    async def _answer(self, request: Request) -> None:
        try:
            value = self._function(request)
        except Exception as error:
            await self._failed(request, error)
            return
        if not isinstance(value, (AsyncGeneratorType, GeneratorType)) and not inspect.isawaitable(value):
            await self._finish(request, value)
            return
        await self._room.acquire()
        task = asyncio.get_running_loop().create_task(self._follow(request, value))

        def done(_: object) -> None:
            self._room.release()
            # One that was cancelled before it has begun.
            if isinstance(value, CoroutineType):
                value.close()

        task.add_done_callback(done)
        self._driver.start(task)
        request.on_cancel(task.cancel)

    async def _follow(
        self, request: Request, value: Awaitable[object] | AsyncGenerator[object] | GeneratorType[object, None, object]
    ) -> None:
        try:
            if isinstance(value, GeneratorType):
                for each in value:
                    await request.reply(each, last=False)
                await request.end()
            elif isinstance(value, AsyncGeneratorType):
                async for each in value:
                    await request.reply(each, last=False)
                await request.end()
            else:
                await self._finish(request, await value)  # type: ignore[misc]
        except Exception as error:
            await self._failed(request, error)
        finally:
            if isinstance(value, AsyncGeneratorType):
                await value.aclose()
            elif isinstance(value, GeneratorType):
                value.close()

    async def _finish(self, request: Request, value: object) -> None:
        """Sends the value that a function has returned."""
        if value is DEFERRED or (request.exchange is not None and request.exchange.over):
            return
        try:
            await request.reply(value)
        except Exception as error:
            await self._failed(request, error)

    async def _failed(self, request: Request, error: Exception) -> None:
        """Tells the requester what went wrong."""
        log.error("responder.failed topic=%r", request.topic, exc_info=error)
        try:
            if not isinstance(error, ConnectionClosed):
                await request.reply_error(f"{type(error).__name__}: {error}")
                return
        except BrokerError:
            log.exception("responder.unreachable topic=%r", request.topic)
        # If it is repeated on the next connection, it is a new request.
        if request.exchange is not None:
            self._exchanges.forget(request.exchange)
