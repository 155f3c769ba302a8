"""`$sys/pressure`: who holds publishers back is announced, and told to those who ask about a topic."""

from __future__ import annotations

import msgspec
import pytest

from broker.limits import (
    FRAME_BODY_BYTES_MAX,
    PRESSURE_ANNOUNCEMENTS_MAX,
    PRESSURE_SUBSCRIPTIONS_MAX,
)
from broker.protocol.bodies import Declare, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Kind
from broker.protocol.pressure import Pressure, Query
from tests.state.harness import Peer
from tests.state.pressing import (
    REFERENCE,
    TOPIC,
    ask,
    fill,
    pairs,
    pressure,
    refusal,
    scene,
)

# Who holds publishers back.


def take(reader: Peer, number: int, messages: int = 8) -> None:
    """The application takes so many messages, one after the other."""
    for _ in range(messages):
        reader.credit(number, 1, 1)


def test_who_holds_publishers_back_is_announced_and_when_they_go_on() -> None:
    talk, watcher, publisher, reader = scene(publish_window_messages=8)
    number = reader.subscribe("a", queue_messages=2)
    fill(publisher, "a")
    (event,) = watcher.told()
    assert event == {
        "event": "blocked", "topic": "a", "subscriber": "reader", "session": reader.record.id, "subscription": number,
        "filter": "a", "queue_group": "", "policy": "block", "dropped": 0, "dropped_total": 0, "waiting_messages": 6,
        "waiting_bytes": 6, "unread_messages": 8, "blocked_publishers": 1,
    }  # fmt: skip
    assert watcher.told(1.0) == []
    take(reader, number)
    assert watcher.told(1.0) == [
        event
        | {"event": "unblocked", "waiting_messages": 0, "waiting_bytes": 0, "unread_messages": 0}
        | {"blocked_publishers": 0}
    ]
    assert talk.state.own.pressure.waits == 1


def test_a_publisher_that_waits_again_and_again_is_announced_once() -> None:
    talk, watcher, publisher, reader = scene(publish_window_messages=8)
    number = reader.subscribe("a", queue_messages=2)
    told = []
    for _ in range(10):
        fill(publisher, "a")
        take(reader, number)
        told += watcher.told()
    assert pairs(told, "event") == [("blocked",)]
    assert talk.state.own.pressure.waits == 10
    assert pairs(watcher.told(1.0), "event") == [("unblocked",)]


@pytest.mark.parametrize("end", ["reader dies", "reader unsubscribes", "publisher dies"])
def test_the_end_of_a_subscriber_or_publisher_ends_the_waiting(end: str) -> None:
    talk, watcher, publisher, reader = scene(publish_window_messages=8)
    number = reader.subscribe("a", queue_messages=2)
    fill(publisher, "a")
    assert pairs(watcher.told(), "event") == [("blocked",)]
    if end == "reader dies":
        reader.die()
    elif end == "publisher dies":
        publisher.die()
    else:
        reader.put(Kind.UNSUBSCRIBE, number=number, target=REFERENCE)
    assert pairs(watcher.told(1.0), "event", "subscriber", "blocked_publishers") == [("unblocked", "reader", 0)]
    assert talk.state.own.pressure._blocked == talk.state.own.pressure._touched == {}


def test_of_two_that_hold_a_topic_back_each_is_told_for_itself() -> None:
    talk, watcher, publisher, reader = scene(publish_window_messages=8)
    second = talk.peer("second")
    numbers = [peer.subscribe("a", queue_messages=2) for peer in (reader, second)]
    fill(publisher, "a")
    assert pairs(watcher.told(), "event", "subscriber") == [("blocked", "reader"), ("blocked", "second")]
    take(reader, numbers[0])
    assert pairs(watcher.told(1.0), "event", "subscriber") == [("unblocked", "reader")]
    take(second, numbers[1])
    assert pairs(watcher.told(1.0), "event", "subscriber") == [("unblocked", "second")]


def test_many_that_hold_topics_back_are_told_in_bounded_steps() -> None:
    talk, watcher, publisher, reader = scene(publish_window_messages=8)
    reader.subscribe("a/#", queue_messages=1)
    topics = PRESSURE_ANNOUNCEMENTS_MAX
    for topic in range(topics):
        fill(publisher, f"a/{topic}", 4)
    told = [watcher.told() for _ in range(4)]
    assert [len(events) for events in told] == [topics // 2, topics // 2, 0, 0]
    assert told[0][-1]["more"] == topics // 2
    reader.die()
    events = [event for _ in range(8) for event in watcher.told()]
    assert pairs(events, "event") == [("unblocked",)] * topics
    assert talk.state.own.pressure._blocked == talk.state.own.pressure._touched == {}


def test_losses_are_told_beside_many_that_hold_topics_back() -> None:
    talk, watcher, publisher, reader = scene(publish_window_messages=8)
    reader.subscribe("a/#", queue_messages=1)
    reader.subscribe("b", "drop_newest", queue_messages=1)
    for topic in range(PRESSURE_ANNOUNCEMENTS_MAX):
        fill(publisher, f"a/{topic}", 4)
    fill(publisher, "b", 3)
    assert "dropped" in {event["event"] for event in watcher.told()}


def test_a_queue_group_whose_jobs_are_too_many_is_named() -> None:
    talk, watcher, publisher, worker = scene(publish_window_messages=8)
    publisher.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True), target=REFERENCE)
    publisher.topic("jobs")
    worker.subscribe("jobs", queue_group="g", queue_messages=1)
    (work,) = talk.state.router.topics["jobs"].works.values()
    work.queue.messages_max = 4
    fill(publisher, "jobs")
    names = ("event", "subscriber", "session", "filter", "queue_group", "policy", "waiting_messages", "unread_messages")
    assert pairs(watcher.told(), *names) == [("blocked", "", 0, "jobs", "g", "block", 7, 8)]
    found = pressure(publisher, "jobs")
    assert [(each.queue_group, each.subscriber, each.holds_back) for each in found.subscriptions] == [
        ("g", "", True),
        ("g", "reader", False),
    ]
    publisher.put(Kind.DECLARE, body=Declare("jobs", acknowledge=False), target=REFERENCE)
    assert pairs(watcher.told(1.0), "event", "queue_group") == [("unblocked", "g")]


# Asking.


def test_an_answer_says_how_a_topic_and_its_subscriptions_fare() -> None:
    talk, _, publisher, reader = scene(publish_window_messages=8)
    blocking = reader.subscribe("a/#", queue_messages=2)
    dropping = reader.subscribe("a/b", "drop_newest", queue_messages=3)
    reader.subscribe("c")
    fill(publisher, "a/b")
    found = pressure(reader, "a/b")
    assert (found.topic, found.publishers, found.blocked_publishers, found.subscribers) == ("a/b", 1, 1, 2)
    first, second = found.subscriptions
    assert msgspec.structs.astuple(first) == (
        "reader", reader.record.id, blocking, "a/#", "", "block", 6, 6, 8, 0, True,
    )  # fmt: skip
    assert msgspec.structs.astuple(second) == (
        "reader", reader.record.id, dropping, "a/b", "", "drop_newest", 0, 0, 3, 5, False,
    )  # fmt: skip
    assert found.holding_back == (first,)
    take(reader, blocking)
    found = pressure(reader, "a/b")
    assert (found.blocked_publishers, found.holding_back) == (0, ())


def test_of_an_unknown_topic_the_answer_says_who_would_get_its_messages_and_makes_no_topic() -> None:
    talk, _, publisher, reader = scene()
    reader.subscribe("a/+")
    topics = set(talk.state.router.topics)
    assert pressure(publisher, "nobody/knows") == Pressure("nobody/knows")
    found = pressure(publisher, "a/new")
    assert (found.publishers, [each.subscriber for each in found.subscriptions]) == (0, ["reader"])
    assert set(talk.state.router.topics) == topics


def test_the_broker_s_own_topics_can_be_asked_about() -> None:
    _, watcher, publisher, _ = scene()
    assert [each.subscriber for each in pressure(publisher, TOPIC).subscriptions] == ["watcher"]
    assert watcher.peer.is_open


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a//b", "a\x00", "x" * 600, "a/" * 40 + "a"])
def test_what_is_no_topic_is_refused(topic: str) -> None:
    _, _, publisher, _ = scene()
    assert refusal(ask(publisher, topic)).code == Code.INVALID
    assert publisher.is_open


def test_inboxes_are_nobody_elses_business() -> None:
    _, _, publisher, reader = scene()
    for topic in (f"$inbox/{reader.record.id}", "$inbox/0"):
        assert refusal(ask(publisher, topic)).code == Code.DENIED


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x80", b"\x81\xa5topic\x01", b"\x81\xa5topic\xa1\xff", b"\x91" * 5000]
)
def test_a_malformed_question_ends_its_session_alone(body: bytes) -> None:
    talk, _, publisher, reader = scene()
    publisher.put(Kind.QUERY, body=body, target=REFERENCE)
    assert not publisher.is_open
    assert reader.is_open
    assert pressure(talk.peer(), "a") == Pressure("a")


def test_of_many_subscriptions_those_that_matter_are_listed() -> None:
    talk, _, publisher, _ = scene(publish_window_messages=8)
    readers = [talk.peer("n" * 120 + f"{number:03}") for number in range(200)]
    for reader in readers:
        reader.subscribe("/".join(["x" * 250, "#"]), "drop_newest", queue_messages=1, queue_group="")
    readers[150].subscribe("x" * 250, queue_messages=1)
    fill(publisher, "x" * 250)
    answer = ask(publisher, "x" * 250)
    assert len(answer.body) < FRAME_BODY_BYTES_MAX
    found = decode_body(answer.body, Pressure)
    assert (found.subscribers, len(found.subscriptions)) == (201, PRESSURE_SUBSCRIPTIONS_MAX)
    assert found.subscriptions[0].subscriber == readers[150].record.name
    assert found.holding_back == found.subscriptions[:1]


def test_a_client_that_asks_and_does_not_read_ends() -> None:
    talk, _, publisher, reader = scene()
    for number in range(64):
        reader.subscribe("a/" + "x" * 500, "drop_newest", queue_messages=number + 1)
    publisher.reading = False
    for _ in range(3000):
        publisher.put(Kind.QUERY, body=Query("a/" + "x" * 500), target=REFERENCE)
        if not publisher.is_open:
            break
    assert not publisher.is_open
    assert reader.is_open
