"""What the broker answers to QUERY: how a topic fares at this moment, or what there is to be shown to people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest

from broker.errors import InvalidValue, PermissionDenied, ProtocolError
from broker.limits import PRESSURE_SUBSCRIPTIONS_MAX
from broker.protocol.pressure import Pressure, Query, View
from broker.security.permissions import Rights
from broker.state.pressure import Blocker, holds_back, pressure_on
from broker.state.tenants import Tenant
from broker.state.topics import INBOX, NOTHING_KEPT, Router, TopicRecord
from broker.state.works import Work
from broker.topics.names import check_topic

Viewer = Callable[[Query, Sequence[Tenant], Rights, int], View]
"""Shows what the broker knows of some tenants to somebody with some rights; it raises InvalidValue for what cannot be
shown."""


def answer_to(
    router: Router, viewer: Viewer | None, query: Query, seen: Sequence[Tenant], rights: Rights, now_ns: int
) -> Pressure | View:
    """The answer to a question of somebody who sees some tenants.

    Raises:
        InvalidValue: it is no topic, or no view.
        PermissionDenied: it is somebody's inbox.
        ProtocolError: it asks for neither.
    """
    if query.topic is None and not query.view:
        raise ProtocolError("malformed Query body: it asks for neither a topic nor a view")
    if query.topic is not None:
        return pressure_of(router, query.topic)
    if viewer is None:
        raise InvalidValue("view", query.view[:16], "this broker shows nothing")
    return viewer(query, seen, rights, now_ns)


def pressure_of(router: Router, name: str) -> Pressure:
    """How a topic fares. Of one to which nobody has published, who would get its messages; asking creates no topic.

    Raises:
        InvalidValue: it is no topic.
        PermissionDenied: it is somebody's inbox.
    """
    if name.startswith(INBOX):
        raise PermissionDenied("an inbox belongs to its session")
    record = router.topics.get(name) or TopicRecord(check_topic(name, reserved=True), NOTHING_KEPT)
    readers = list(_readers(router, record))
    listed = nlargest(PRESSURE_SUBSCRIPTIONS_MAX, readers, key=lambda reader: _trouble(record, reader))
    return Pressure(
        topic=name,
        publishers=record.publishers,
        blocked_publishers=len(record.held_back),
        subscribers=len(readers),
        subscriptions=tuple(pressure_on(reader, holds_back=holds_back(record, reader)) for reader in listed),
    )


def blockers(router: Router, topic: TopicRecord) -> list[Blocker]:
    """Those for which publishers of a topic wait."""
    return [reader for reader in _readers(router, topic) if topic in reader.blocking] if topic.held_back else []


def _readers(router: Router, topic: TopicRecord) -> Iterable[Blocker]:
    routes = router.routes(topic)
    yield from routes.subscriptions()
    for work in routes.works:
        yield work
        for crew in work.crews:
            yield from (worker.subscription for worker in crew.workers)


def _trouble(topic: TopicRecord, reader: Blocker) -> tuple[bool, int, int]:
    """What makes a reader worth being listed, the most important first."""
    held_back = holds_back(topic, reader)
    if isinstance(reader, Work):
        return held_back, 0, reader.queue.held
    return held_back, reader.dropped, reader.queue.unread_messages
