"""Methods of clients as they are with spans: each is the plain one, with something around it or another argument in it.

Both kinds of traced client are made of these, so that no signature stands twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Protocol, TypeVar, cast

from broker import conventions
from broker.conventions import Attributes
from broker.errors import BrokerError
from broker.telemetry import Operation
from clients.processing import carried, processed, publishing, tracer

F = TypeVar("F", bound=Callable[..., object])


class Named(Protocol):
    """A client."""

    @property
    def name(self) -> str: ...


class Member(Named, Protocol):
    """A group, as one rank has it."""

    @property
    def rank(self) -> int: ...

    @property
    def generation(self) -> int: ...


class Handle(Protocol):
    """A Work of either kind of client."""

    @property
    def done(self) -> bool: ...

    @property
    def ended_ns(self) -> int: ...


def carrying(method: F) -> F:
    """A method whose message carries the context of the current span in its headers."""

    @wraps(method)
    def called(*arguments: object, **options: object) -> object:
        return method(*arguments, **_carrying(options))

    return cast("F", called)


def sending(operation: str, method: F) -> F:
    """A method that sends a message in a span, which lasts until it returns."""

    @wraps(method)
    def called(client: Named, topic: str, *arguments: object, **options: object) -> object:
        with publishing(operation, topic, client.name):
            return method(client, topic, *arguments, **_carrying(options))

    return cast("F", called)


def sending_asynchronously(operation: str, method: F) -> F:
    """As `sending`, of a coroutine."""

    @wraps(method)
    async def called(client: Named, topic: str, *arguments: object, **options: object) -> object:
        with publishing(operation, topic, client.name):
            return await method(client, topic, *arguments, **_carrying(options))  # type: ignore[misc]

    return cast("F", called)


def _carrying(options: dict[str, object]) -> dict[str, object]:
    return {**options, "headers": carried(options.get("headers"))}  # type: ignore[arg-type]


def handling(method: F) -> F:
    """A method whose argument `handler` runs in the spans of its messages."""

    @wraps(method)
    def called(*arguments: object, handler: object = None, **options: object) -> object:
        return method(*arguments, handler=processed(handler) if callable(handler) else handler, **options)

    return cast("F", called)


def responding(method: F) -> F:
    """A method whose argument `function` runs in the spans of its requests."""

    @wraps(method)
    def called(client: object, topic_filter: str, function: object, **options: object) -> object:
        return method(client, topic_filter, processed(function) if callable(function) else function, **options)

    return cast("F", called)


def reducing(group: Member) -> AbstractContextManager[Operation]:
    """The span of an all_reduce of one rank. That of all ranks together, with a child for each, is the broker's."""
    attributes: Attributes = {
        conventions.GROUP: group.name,
        conventions.GENERATION: group.generation,
        conventions.RANK: group.rank,
    }
    return tracer().operation(f"all_reduce {group.name}", attributes)


@contextmanager
def ending(span: Operation, work: Handle) -> Iterator[None]:
    """Ends the span of a Work that somebody waits for within, if it is done then, with the time when it was done."""
    reason = ""
    try:
        yield
    except BrokerError as error:
        reason = str(error)
        raise
    finally:
        if work.done:
            span.end(time.time_ns() - (time.monotonic_ns() - work.ended_ns), reason)
