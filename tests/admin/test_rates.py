"""What is worked out of two looks at a broker."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from broker.admin.rates import Look, refresh, together
from broker.admin.shapes import ServerView, SessionView, SubscriptionView, TopicView


def server(**changes: object) -> ServerView:
    told: dict[str, object] = {
        "name": "bus", "version": "1", "process": 7, "uptime_s": 10.0, "clock_ns": 0, "python": "3", "sessions": 2,
        "compiled_modules": 0, "shared_memory": True, "listeners": [], "draining": False, "subscriptions": 2,
        "topics": 2, "groups": 0, "published_messages": 0, "published_bytes": 0, "delivered_messages": 0,
        "dropped_messages": {"latest": 0}, "refused_messages": 0, "redelivered_messages": 0, "dead_messages": 0,
        "received_bytes": 0, "sent_bytes": 0,
    }  # fmt: skip
    return msgspec.convert({**told, **changes}, ServerView)


def session(number: int, received_bytes: int = 0, dropped: int = 0) -> SessionView:
    subscription = SubscriptionView(1, "#", "block", "", 3, 0, 5, 0, dropped, 0, [])
    return SessionView(
        number, f"rank-{number}", "vm", 100 + number, "tcp://vm:1", "open", 9.0, 0.5, received_bytes, 0,
        [subscription], 3, dropped, [], [],
    )  # fmt: skip


def topic(name: str, messages: int = 0, size_bytes: int = 0) -> TopicView:
    return TopicView(name, messages, size_bytes, 0, messages, messages, 0, 0, 1, 0, [], [], [])


def look(
    at_s: float, sessions: Sequence[SessionView] = (), topics: Sequence[TopicView] = (), **changes: object
) -> Look:
    by_number = {(0, each.id): each for each in sessions}
    return Look(at_s, server(uptime_s=at_s, **changes), by_number, list(topics), [], [1e-5, 2e-5, 3e-5])


def test_totals_become_rates_and_what_has_most_traffic_comes_first() -> None:
    before = look(10, [session(1, 100), session(2, 100)], [topic("a", 5), topic("b", 5, 50)])
    now = look(
        12, [session(1, 300), session(2, 1100, dropped=4), session(3, 20)], [topic("a", 6), topic("b", 25, 450)],
        published_messages=21, published_bytes=400, delivered_messages=42, dropped_messages={"latest": 3, "block": 1},
    )  # fmt: skip
    told = refresh(before, now)
    assert (told.interval_s, told.restarted) == (2.0, False)
    assert (told.published_per_s, told.published_bytes_per_s) == (10.5, 200.0)
    assert (told.delivered_per_s, told.dropped_per_s) == (21.0, 2.0)
    assert [(row.session, row.received_bytes_per_s) for row in told.sessions] == [(2, 500.0), (1, 100.0), (3, 10.0)]
    assert (told.sessions[0].dropped_per_s, told.sessions[0].unread_messages) == (2.0, 5)
    assert [(row.name, row.messages_per_s, row.bytes_per_s) for row in told.topics] == [
        ("b", 10.0, 200.0),
        ("a", 0.5, 0.0),
    ]
    assert (told.round_trip_p50_s, told.round_trip_p99_s) == (2e-5, 3e-5)


def test_what_workers_have_counted_is_added_up() -> None:
    first = server(uptime_s=9.0, published_messages=5, dropped_messages={"latest": 1})
    second = server(uptime_s=3.0, process=8, topics=5, published_messages=7, dropped_messages={"latest": 2, "block": 4})
    told = together([first, second])
    assert (told.uptime_s, told.process, told.topics, told.published_messages) == (3.0, 7, 7, 12)
    assert told.dropped_messages == {"latest": 3, "block": 4}
    assert together([server()]) == server()


def test_sessions_of_several_workers_that_have_the_same_number_are_told_apart() -> None:
    before, now = look(10), look(11)
    before.sessions = {(0, 1): session(1, 100), (1, 1): session(1, 500)}
    now.sessions = {(0, 1): session(1, 150), (1, 1): session(1, 520)}
    assert [row.received_bytes_per_s for row in refresh(before, now).sessions] == [50.0, 20.0]


def test_the_first_refresh_has_no_rates() -> None:
    told = refresh(None, look(10, [session(1, 100)], [topic("a", 5)], published_messages=5))
    assert (told.interval_s, told.published_per_s, told.sessions[0].received_bytes_per_s) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("changes", [{"process": 8}, {}])
def test_after_a_restart_of_the_broker_nothing_is_below_zero(changes: dict[str, object]) -> None:
    before = look(100, [session(1, 9000)], published_messages=9000)
    now = Look(101, server(uptime_s=0.5, published_messages=3, **changes), {(0, 1): session(1, 5)}, [], [], [])
    told = refresh(before, now)
    assert (told.restarted, told.published_per_s, told.sessions[0].received_bytes_per_s) == (True, 0.0, 0.0)
