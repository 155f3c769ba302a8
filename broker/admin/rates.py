"""What `tensorbus top` and the dashboard show, worked out of two looks at a broker: totals become rates. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import structs

from broker.admin.shapes import ServerView, SessionView, TopicView

ROWS_MAX: Final = 200
"""Sessions and topics of a refresh: those with the most traffic."""
_COUNTED: Final = (
    "sessions", "topics", "groups", "published_messages", "published_bytes", "delivered_messages", "received_bytes",
    "sent_bytes",
)  # fmt: skip
"""By each worker of a broker for itself."""

SessionKey = tuple[int, int]
"""A worker and a session: workers number their sessions by themselves."""


class Look(msgspec.Struct):
    """A broker at one moment.

    Attributes:
        at_s: when, by this process's monotonic clock, in seconds.
        server: the broker as a whole.
        sessions: all, by their workers and numbers.
        topics: all.
        groups: all, as they come.
        round_trips_s: to the broker and back, ascending, in seconds.
    """

    at_s: float
    server: ServerView
    sessions: dict[SessionKey, SessionView]
    topics: list[TopicView]
    groups: list[dict[str, object]]
    round_trips_s: list[float]


class SessionRow(msgspec.Struct):
    """A session in a refresh; rates are per second since the refresh before."""

    name: str
    session: int
    host: str
    process: int
    received_bytes_per_s: float
    sent_bytes_per_s: float
    waiting_messages: int
    unread_messages: int
    dropped_messages: int
    dropped_per_s: float
    silent_s: float
    blocks: list[str]
    tenant: str = ""


class TopicRow(msgspec.Struct):
    """A topic in a refresh."""

    name: str
    messages_per_s: float
    bytes_per_s: float
    subscriptions: int
    held_back_publishers: int
    held_back_by: list[str]
    tenant: str = ""


class Refresh(msgspec.Struct):
    """One refresh of `tensorbus top`, and a line of `--json`.

    Attributes:
        broker: its name.
        uptime_s: of the broker, in seconds.
        restarted: whether it is another one than in the refresh before.
        interval_s: that rates are of, in seconds; 0 in the first refresh, whose rates are 0.
        published_per_s: messages of all clients.
        published_bytes_per_s: payload and headers of these.
        delivered_per_s: messages handed to subscribers.
        dropped_per_s: messages lost.
        round_trip_p50_s: to the broker and back from here, in seconds.
        round_trip_p99_s: of a few round trips, so the longest.
        sessions: with the most traffic first.
        topics: with the most messages first.
        groups: as in `tensorbus groups --json`, without members and the last operations.
        sessions_open: how many there are.
        topics_open: how many there are.
    """

    broker: str
    uptime_s: float
    restarted: bool
    interval_s: float
    published_per_s: float
    published_bytes_per_s: float
    delivered_per_s: float
    dropped_per_s: float
    round_trip_p50_s: float
    round_trip_p99_s: float
    sessions_open: int
    topics_open: int
    sessions: list[SessionRow]
    topics: list[TopicRow]
    groups: list[dict[str, object]]


def refresh(before: Look | None, now: Look, *, rows_max: int = ROWS_MAX) -> Refresh:
    """What is to be shown now; without a look before, or after a restart, there are no rates yet."""
    old, new = None if before is None else before.server, now.server
    # A broker that was restarted has counted less, or has run for less time.
    restarted = old is not None and (old.process != new.process or new.uptime_s < old.uptime_s)
    if restarted:
        before = old = None
    interval_s = 0.0 if before is None else max(now.at_s - before.at_s, 1e-6)

    def rate(of: str) -> float:
        return 0.0 if old is None else max(0, getattr(new, of) - getattr(old, of)) / interval_s

    dropped = sum(new.dropped_messages.values()) - (sum(old.dropped_messages.values()) if old is not None else 0)
    trips = now.round_trips_s or [0.0]
    sessions = _session_rows({} if before is None else before.sessions, now, interval_s)
    topics = _topic_rows(
        {} if before is None else {(each.tenant, each.name): each for each in before.topics}, now, interval_s
    )
    return Refresh(
        broker=new.name,
        uptime_s=new.uptime_s,
        restarted=restarted,
        interval_s=round(interval_s, 6),
        published_per_s=rate("published_messages"),
        published_bytes_per_s=rate("published_bytes"),
        delivered_per_s=rate("delivered_messages"),
        dropped_per_s=max(0, dropped) / interval_s if old is not None else 0.0,
        round_trip_p50_s=trips[(len(trips) - 1) // 2],
        round_trip_p99_s=trips[-1],
        sessions_open=new.sessions,
        topics_open=new.topics,
        sessions=sessions[:rows_max],
        topics=topics[:rows_max],
        groups=[{key: value for key, value in each.items() if key not in ("members", "recent")} for each in now.groups],
    )


def together(workers: Sequence[ServerView]) -> ServerView:
    """What the workers of a broker have counted together; it runs for as long as the youngest one."""
    overflows = {overflow for each in workers for overflow in each.dropped_messages}
    return structs.replace(
        workers[0],
        uptime_s=min(each.uptime_s for each in workers),
        dropped_messages={key: sum(each.dropped_messages.get(key, 0) for each in workers) for key in overflows},
        **{counted: sum(getattr(each, counted) for each in workers) for counted in _COUNTED},
    )


def _per_s(now: int, before: int | None, interval_s: float) -> float:
    """Of what began since the look before, all counts."""
    return max(0, now - (before or 0)) / interval_s if interval_s else 0.0


def _session_rows(before: Mapping[SessionKey, SessionView], now: Look, interval_s: float) -> list[SessionRow]:
    rows = []
    for key, session in now.sessions.items():
        old = before.get(key)
        rows.append(
            SessionRow(
                name=session.name,
                session=session.id,
                host=session.host,
                process=session.process,
                received_bytes_per_s=_per_s(
                    session.received_bytes, None if old is None else old.received_bytes, interval_s
                ),
                sent_bytes_per_s=_per_s(session.sent_bytes, None if old is None else old.sent_bytes, interval_s),
                waiting_messages=session.waiting_messages,
                unread_messages=sum(each.unread_messages for each in session.subscriptions),
                dropped_messages=session.dropped_messages,
                dropped_per_s=_per_s(
                    session.dropped_messages, None if old is None else old.dropped_messages, interval_s
                ),
                silent_s=session.silent_s,
                blocks=sorted({topic for each in session.subscriptions for topic in each.blocks_topics}),
                tenant=session.tenant,
            )
        )
    rows.sort(key=lambda row: (-row.received_bytes_per_s - row.sent_bytes_per_s, row.session))
    return rows


def _topic_rows(before: Mapping[tuple[str, str], TopicView], now: Look, interval_s: float) -> list[TopicRow]:
    rows = []
    for topic in now.topics:
        old = before.get((topic.tenant, topic.name))
        rows.append(
            TopicRow(
                name=topic.name,
                messages_per_s=_per_s(
                    topic.published_messages, None if old is None else old.published_messages, interval_s
                ),
                bytes_per_s=_per_s(topic.published_bytes, None if old is None else old.published_bytes, interval_s),
                subscriptions=topic.subscriptions,
                held_back_publishers=topic.held_back_publishers,
                held_back_by=topic.held_back_by,
                tenant=topic.tenant,
            )
        )
    rows.sort(key=lambda row: (-row.messages_per_s, -row.bytes_per_s, row.name))
    return rows
