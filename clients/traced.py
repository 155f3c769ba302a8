"""The synchronous client with spans: what `clients.connect(..., tracing=True)` returns.

It is a class of its own, so that a client without spans does not even ask whether it should make some.
"""

from __future__ import annotations

from functools import wraps

from broker.conventions import PUBLISH, REQUEST
from broker.telemetry import Operation
from clients.client import Client
from clients.groups import Group
from clients.spans import carrying, ending, handling, reducing, responding, sending
from clients.work import Work


class TracedGroup(Group):
    """As Group; all_reduce makes a span, of this rank."""

    @wraps(Group.all_reduce)
    def all_reduce(self, *arguments: object, **options: object) -> object:  # type: ignore[override]
        with reducing(self) as span:
            result = super().all_reduce(*arguments, **options)  # type: ignore[call-overload]
            return TracedWork(result, span.keep()) if isinstance(result, Work) else result


class TracedClient(Client):
    """As Client; publish, request and all_reduce make spans, and handlers and responders run in those of their
    messages. A message whose trace is recorded leaves at once, in no batch."""

    publish = sending(PUBLISH, Client.publish)
    request = sending(REQUEST, Client.request)
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

    def wait(self, timeout_s: float | None = None) -> object:
        with ending(self._span, self._work):
            return self._work.wait(timeout_s)

    def cancel(self) -> bool:
        return self._work.cancel()

    def __repr__(self) -> str:
        return repr(self._work)
