"""Methods of clients as they are with spans: each is the plain one, with something around it or another argument in it.

Both kinds of traced client are made of these, so that no signature stands twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Protocol, TypeVar, cast

from broker import conventions
from broker.conventions import Attributes
from broker.telemetry import Operation
from clients.processing import carried, processed, publishing, tracer
from clients.span_ends import ends

F = TypeVar("F", bound=Callable[..., object])


class Named(Protocol):
    """A client."""

    _driver: object

    @property
    def name(self) -> str: ...


class Member(Named, Protocol):
    """A group, as one rank has it."""

    @property
    def rank(self) -> int: ...

    @property
    def generation(self) -> int: ...


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


def reducing(method: F) -> F:
    """An all_reduce in the span of its rank, which ends when it returns, or with the Work that it returns.

    The span of all ranks together, with a child for each, is the broker's.
    """

    @wraps(method)
    def called(group: Member, *arguments: object, **options: object) -> object:
        with _reducing(group) as span:
            result = method(group, *arguments, **options)
            if options.get("async_op"):
                ends.expect(group._driver, span, result)  # type: ignore[arg-type]
            return result

    return cast("F", called)


def reducing_asynchronously(method: F) -> F:
    """As `reducing`, of a coroutine."""

    @wraps(method)
    async def called(group: Member, *arguments: object, **options: object) -> object:
        with _reducing(group) as span:
            result = await method(group, *arguments, **options)  # type: ignore[misc]
            if options.get("async_op"):
                ends.expect(group._driver, span, result)
            return result

    return cast("F", called)


def _reducing(group: Member) -> AbstractContextManager[Operation]:
    attributes: Attributes = {
        conventions.GROUP: group.name,
        conventions.GENERATION: group.generation,
        conventions.RANK: group.rank,
    }
    return tracer().operation(f"all_reduce {group.name}", attributes)


def closing(method: F) -> F:
    """A client's close, after which no span of its operations goes on."""

    @wraps(method)
    def called(client: Named, *arguments: object, **options: object) -> object:
        try:
            return method(client, *arguments, **options)
        finally:
            ends.closed(client._driver)

    return cast("F", called)


def closing_asynchronously(method: F) -> F:
    """As `closing`, of a coroutine."""

    @wraps(method)
    async def called(client: Named, *arguments: object, **options: object) -> object:
        try:
            return await method(client, *arguments, **options)  # type: ignore[misc]
        finally:
            ends.closed(client._driver)

    return cast("F", called)
