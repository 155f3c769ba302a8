"""What a broker tells of itself to clients that ask by QUERY with a view: the same as over HTTP, in pieces.

An answer is the body of one frame, so it holds what fits there, and the client asks for the rest. One thing alone that
does not fit, a group of a thousand ranks, is told shorter (`_shortened`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Final

import msgspec

from broker.errors import InvalidValue
from broker.limits import KIB
from broker.protocol.pressure import Query, View
from broker.security.permissions import Rights
from broker.security.roles import Verb
from broker.server import Server
from broker.state.tenants import Tenant

ANSWER_BYTES: Final = 128 * KIB
"""An answer has no more things once it has so many bytes; with one more it still fits a frame's body."""
ITEM_BYTES_MAX: Final = 96 * KIB
"""Longer things are told shorter."""
_KEPT: Final = 16
"""Entries of each list in such a thing, members that are waited for first."""
_AFTER_MAX: Final = 1 << 31
"""More than there is of anything."""
_LETTERS_KEPT: Final = 2048
"""Of each text in it: the claims of a thousand ranks are long."""

_encoder: Final = msgspec.msgpack.Encoder()


def show_to_clients(server: Server) -> None:
    """Has a server answer views."""
    server.state.viewer = partial(answer, server)


def answer(server: Server, query: Query, tenants: Sequence[Tenant], rights: Rights, now_ns: int) -> View:
    """A piece of a view, of some tenants, for somebody with some rights.

    Raises:
        InvalidValue: there is no such view, or a filter that cannot be.
    """
    items: list[msgspec.Raw] = []
    size_bytes = 0
    for item in _items(server, query, tenants, rights, now_ns):
        if size_bytes > ANSWER_BYTES:
            return View(items, more=True)
        encoded = _encoded(item)
        items.append(msgspec.Raw(encoded))
        size_bytes += len(encoded)
    return View(items)


def _items(
    server: Server, query: Query, tenants: Sequence[Tenant], rights: Rights, now_ns: int
) -> Iterable[msgspec.Struct]:
    """The things of a view from `query.after` on; each is made when it is taken."""
    # Only those who are asked need what these import.
    from broker.admin import groups as admin_groups
    from broker.admin import views as admin_views

    after = min(max(0, query.after), _AFTER_MAX)
    if query.view == "server":
        return [admin_views.server_view(server, now_ns, tenants)][after:]
    if query.view == "sessions":
        sessions = [record for tenant in tenants for record in tenant.sessions.values()]
        records = islice(sorted(sessions, key=lambda record: record.id), after, None)
        return (admin_views.session_view(record, now_ns) for record in records)
    if query.view == "topics":
        topics = admin_views.topics_of(server, query.filter, after, tenants)
        return (admin_views.topic_view(tenant, topic, explained=False) for tenant, topic in topics)
    if query.view == "groups":
        groups = islice(admin_groups.groups_of(server, tenants), after, None)
        views = (admin_groups.group_view(server, tenant, group, now_ns) for tenant, group in groups)
        return (admin_groups.shown_to(lambda _, topic: rights.may(Verb.SUBSCRIBE, topic), view) for view in views)
    raise InvalidValue("view", query.view[:16], "there are server, sessions, topics and groups")


def _encoded(item: msgspec.Struct) -> bytes:
    encoded = _encoder.encode(item)
    if len(encoded) <= ITEM_BYTES_MAX:
        return encoded
    return _encoder.encode(_shortened(msgspec.to_builtins(item, str_keys=True)))


def _shortened(item: object) -> object:
    """A thing with 16 entries of each list and map in it; of members, those that are waited for. Ranks stay all."""
    if isinstance(item, dict):
        if "members" in item and "operations" in item:
            waited = {rank for operation in item["operations"] for rank in operation["missing_ranks"]}
            item["members"].sort(key=lambda member: member["rank"] not in waited)
        names = [key for key in item if not key.isdecimal()]
        ranks = [key for key in item if key.isdecimal()]
        return {key: _shortened(item[key]) for key in [*names, *ranks[:_KEPT]]}
    if isinstance(item, list):
        if item and all(isinstance(entry, int) for entry in item):
            return item
        return [_shortened(entry) for entry in item[:_KEPT]]
    if isinstance(item, str) and len(item) > _LETTERS_KEPT:
        return item[:_LETTERS_KEPT] + " ..."
    return item
