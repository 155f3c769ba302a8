"""The asynchronous client with spans: what `clients.aio.connect(..., tracing=True)` returns."""

from __future__ import annotations

from broker.conventions import PUBLISH, REQUEST
from clients.aio.client import Client
from clients.aio.groups import Group
from clients.spans import (
    carrying,
    closing_asynchronously,
    handling,
    reducing_asynchronously,
    responding,
    sending_asynchronously,
)


class TracedGroup(Group):
    """As `clients.traced.TracedGroup`."""

    all_reduce = reducing_asynchronously(Group.all_reduce)


class TracedClient(Client):
    """As Client; `clients.traced.TracedClient` says what has a span."""

    publish = sending_asynchronously(PUBLISH, Client.publish)
    request = sending_asynchronously(REQUEST, Client.request)
    request_many = carrying(Client.request_many)
    subscribe = handling(Client.subscribe)
    respond = responding(Client.respond)
    close = closing_asynchronously(Client.close)
    _groups = TracedGroup
