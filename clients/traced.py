"""The synchronous client with spans: what `clients.connect(..., tracing=True)` returns.

It is a class of its own, so that a client without spans does not even ask whether it should make some.
"""

from __future__ import annotations

from broker.conventions import PUBLISH, REQUEST
from clients.client import Client
from clients.groups import Group
from clients.spans import carrying, closing, handling, reducing, responding, sending


class TracedGroup(Group):
    """As Group; all_reduce makes a span, of this rank. That of an asynchronous one ends with the operation."""

    all_reduce = reducing(Group.all_reduce)


class TracedClient(Client):
    """As Client; publish, request and all_reduce make spans, and handlers and responders run in those of their
    messages. A message whose trace is recorded leaves at once, in no batch."""

    publish = sending(PUBLISH, Client.publish)
    request = sending(REQUEST, Client.request)
    request_many = carrying(Client.request_many)
    subscribe = handling(Client.subscribe)
    respond = responding(Client.respond)
    close = closing(Client.close)
    _groups = TracedGroup
