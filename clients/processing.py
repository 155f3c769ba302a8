"""The span of a message that is being processed, for handlers and for whoever takes messages with `next`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractContextManager, aclosing
from functools import cache, wraps
from typing import TypeVar

from broker import conventions
from broker.conventions import PROCESS, Attributes, of_message
from broker.errors import ProtocolError
from broker.telemetry import CLIENT, CONSUMER, PRODUCER, Tracer
from clients.reading.messages import Message

M = TypeVar("M", bound=Message)


@cache
def tracer() -> Tracer:
    """Of all traced clients of the process; spans go to the process's tracer provider.

    Raises:
        InvalidValue: OpenTelemetry is not installed.
    """
    return Tracer()


def processing(message: Message) -> AbstractContextManager[None]:
    """The span of processing a message, a child of the one in which it was published: `with processing(message): ...`.

    Handlers and responders of a traced client have it without asking.

    Args:
        message: as a subscription has given it.

    Raises:
        InvalidValue: OpenTelemetry is not installed.
    """
    return _processing(message, current=True)


def _processing(message: Message, *, current: bool) -> AbstractContextManager[None]:
    attributes = of_message(PROCESS, message.topic) | {conventions.BODY_BYTES: len(message._payload)}
    name = f"{PROCESS} {message.topic}"
    try:
        headers = message.headers
    except ProtocolError:
        # Whoever reads them is told; the message is processed all the same.
        headers = {}
    return tracer().span(name, CONSUMER, attributes, headers, current=current)


def publishing(operation: str, topic: str, client: str) -> AbstractContextManager[None]:
    """The span of publishing a message or making a request."""
    attributes: Attributes = of_message(operation, topic) | {conventions.CLIENT: client}
    kind = PRODUCER if operation == conventions.PUBLISH else CLIENT
    return tracer().span(f"{operation} {topic}", kind, attributes)


def carried(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Headers that carry the context of the current span, if there is one; wrong ones are left for who checks them."""
    if headers is not None and not isinstance(headers, Mapping):
        return headers
    return tracer().inject(headers)


def processed(function: Callable[[M], object]) -> Callable[[M], object]:
    """A handler or responder that runs in the span of its message. It stays of its kind: plain, coroutine, generator.

    What a generator does between two values is not in its span's context, as others run in between.
    """
    if inspect.iscoroutinefunction(function):

        @wraps(function)
        async def awaited(message: M) -> object:
            with processing(message):
                return await function(message)

        return awaited
    if inspect.isasyncgenfunction(function):

        @wraps(function)
        async def streamed(message: M) -> AsyncGenerator[object, None]:
            with _processing(message, current=False):
                async with aclosing(function(message)) as values:
                    async for each in values:
                        yield each

        return streamed
    if inspect.isgeneratorfunction(function):

        @wraps(function)
        def generated(message: M) -> Generator[object, None, None]:
            with _processing(message, current=False):
                yield from function(message)

        return generated

    @wraps(function)
    def called(message: M) -> object:
        with processing(message):
            return function(message)

    return called
