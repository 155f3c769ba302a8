"""The asynchronous client with spans: what `clients.aio.connect(..., tracing=True)` returns."""

from __future__ import annotations

from functools import wraps

from broker.conventions import PUBLISH, REQUEST
from broker.telemetry import Operation
from clients.aio.client import Client
from clients.aio.groups import Group, Work
from clients.spans import carrying, ending, handling, reducing, responding, sending_asynchronously


class TracedGroup(Group):
    """As Group; all_reduce makes a span, of this rank."""

    @wraps(Group.all_reduce)
    async def all_reduce(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
        with reducing(self) as span:
            result = await super().all_reduce(*arguments, **options)  # type: ignore[arg-type]
            return TracedWork(result, span.keep()) if isinstance(result, Work) else result


class TracedClient(Client):
    """As Client; `clients.traced.TracedClient` says what has a span."""

    publish = sending_asynchronously(PUBLISH, Client.publish)
    request = sending_asynchronously(REQUEST, Client.request)
    request_many = carrying(Client.request_many)
    subscribe = handling(Client.subscribe)
    respond = responding(Client.respond)
    _groups = TracedGroup


class TracedWork(Work):
    """As Work; its span ends with the operation, as soon as somebody waits for it."""

    def __init__(self, work: Work, span: Operation) -> None:
        """Made by a TracedGroup."""
        self._work = work
        self._span = span

    @property
    def done(self) -> bool:
        return self._work.done

    @property
    def ended_ns(self) -> int:
        return self._work.ended_ns

    async def wait(self, timeout_s: float | None = None) -> object:
        with ending(self._span, self._work):
            return await self._work.wait(timeout_s)

    def cancel(self) -> bool:
        return self._work.cancel()
