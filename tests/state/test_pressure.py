"""`$sys/pressure`: every loss is announced, coalesced and bounded."""

from __future__ import annotations

import pytest

from broker.limits import (
    CHUNK_BYTES,
    FRAME_PAYLOAD_BYTES_MAX,
    PRESSURE_ANNOUNCEMENTS_MAX,
)
from broker.protocol.bodies import Resume, Subscribe, Subscribed, decode_body
from broker.protocol.frames import Kind, Lane
from broker.protocol.pressure import Dropped
from tests.state.harness import SECOND_NS, Talk
from tests.state.pressing import (
    REFERENCE,
    TOPIC,
    pairs,
    scene,
    values_of,
)

# Losses.


@pytest.mark.parametrize(("overflow", "dropped"), [("drop_oldest", 6), ("drop_newest", 6), ("latest", 9)])
def test_each_policy_announces_exactly_what_it_has_lost_at_the_next_tick(overflow: str, dropped: int) -> None:
    talk, watcher, publisher, reader = scene()
    number = reader.subscribe("a/+", overflow, queue_messages=4)
    reader.reading = False
    for step in range(10):
        publisher.publish("a/b", b"%d" % step)
    assert watcher.frames() == []
    (event,) = watcher.told()
    assert event == {
        "event": "dropped", "topic": "a/b", "subscriber": "reader", "session": reader.record.id, "subscription": number,
        "filter": "a/+", "queue_group": "", "policy": overflow, "dropped": dropped, "dropped_total": dropped,
        "waiting_messages": 10 - dropped, "waiting_bytes": 10 - dropped, "unread_messages": 10 - dropped,
        "blocked_publishers": 0,
    }  # fmt: skip
    assert watcher.told(1.0) == []
    reader.reading = True
    talk.settle()
    assert reader.dropped(number) == dropped
    assert talk.state.totals().dropped_messages[reader.record.subscriptions[number].queue.overflow] == dropped


def test_a_block_subscription_announces_the_control_messages_that_it_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.topics.queues.CONTROL_WAITING_MAX", 4)
    _, watcher, publisher, reader = scene()
    reader.subscribe("a")
    reader.reading = False
    for _ in range(10):
        publisher.publish("a", b"stop", lane=Lane.CONTROL)
    assert pairs(watcher.told(), "event", "policy", "dropped") == [("dropped", "block", 6)]


def test_a_message_that_its_publisher_does_not_finish_is_announced_as_lost() -> None:
    _, watcher, publisher, reader = scene()
    reader.subscribe("a")
    stream = publisher.open_stream("a", 2 * CHUNK_BYTES)
    publisher.chunk(stream, bytes(CHUNK_BYTES))
    publisher.die()
    assert pairs(watcher.told(), "event", "subscriber", "dropped") == [("dropped", "reader", 1)]


def test_whoever_ends_a_subscription_in_the_middle_of_a_message_has_lost_nothing() -> None:
    _, watcher, publisher, reader = scene()
    number = reader.subscribe("a")
    stream = publisher.open_stream("a", 2 * CHUNK_BYTES)
    publisher.chunk(stream, bytes(CHUNK_BYTES))
    reader.put(Kind.UNSUBSCRIBE, number=number, target=REFERENCE)
    publisher.chunk(stream, bytes(CHUNK_BYTES), last=True)
    assert watcher.told() == []


def test_losses_are_told_by_topic_and_subscription_and_add_up() -> None:
    talk, watcher, publisher, reader = scene()
    first, second = (reader.subscribe(name, "drop_newest", queue_messages=1) for name in ("a/#", "a/b"))
    told = []
    for step in range(20):
        for name in ("a/b", "a/c"):
            publisher.publish(name, b"x")
        if step % 3 == 0:
            told += watcher.told()
    told += watcher.told()
    summed: dict[object, int] = {}
    for event in told:
        key = event["subscription"], event["topic"]
        summed[key] = summed.get(key, 0) + int(str(event["dropped"]))
    assert summed == {(first, "a/b"): 19, (first, "a/c"): 20, (second, "a/b"): 19}
    assert max(int(str(event["dropped_total"])) for event in told) == 39


def test_the_losses_of_a_session_that_is_gone_are_told_all_the_same() -> None:
    _, watcher, publisher, reader = scene()
    reader.subscribe("a", "drop_newest", queue_messages=1)
    for _ in range(3):
        publisher.publish("a", b"x")
    reader.die()
    assert pairs(watcher.told(), "subscriber", "dropped") == [("reader", 2)]


def test_what_a_subscription_has_missed_for_good_while_it_was_away_is_announced_when_it_is_back() -> None:
    talk, watcher, publisher, reader = scene(ring_messages=2)
    number = reader.subscribe("a")
    moment = reader.all_of(Kind.DONE)[-1].sequence
    publisher.publish("a", b"seen")
    reader.die()
    for _ in range(5):
        publisher.publish("a", b"x")
    assert watcher.told() == []
    again = talk.peer("reader")
    again.put(Kind.RESUME, body=Resume({"a": (0, 1, 0)}), number=number)
    again.put(Kind.SUBSCRIBE, body=Subscribe("a", resume=moment), number=number, target=REFERENCE)
    assert again.sequences() == [5, 6]
    assert pairs(watcher.told(), "event", "subscriber", "policy", "dropped") == [("dropped", "reader", "block", 3)]


def test_announcements_pass_what_waits_and_are_kept_for_those_who_come_later() -> None:
    talk, watcher, publisher, reader = scene()
    reader.subscribe("a", "drop_newest", queue_messages=1)
    for _ in range(3):
        publisher.publish("a", b"x")
    watcher.told()
    assert [frame.lane for frame in watcher.frames()] == [Lane.CONTROL]
    late = talk.peer()
    number = late.subscribe("$sys/#", replay="all")
    told = [value for value in values_of(late.delivered(number)) if value["event"] == "dropped"]
    assert pairs(told, "dropped") == [(2,)]


def test_the_same_loss_is_announced_ten_times_a_second_however_often_the_clock_ticks() -> None:
    talk, watcher, publisher, reader = scene()
    reader.subscribe("a", "drop_newest", queue_messages=1)
    for _ in range(100):
        publisher.publish("a", b"x")
        talk.now_ns += SECOND_NS // 100
        talk.state.tick(talk.now_ns)
        talk.settle()
    assert len(watcher.frames()) == 10
    assert sum(int(str(event["dropped"])) for event in watcher.told()) == 99


# Bounds.


def test_a_million_losses_are_a_bounded_number_of_announcements() -> None:
    _, watcher, publisher, reader = scene()
    number = reader.subscribe("a", "drop_newest", queue_messages=1)
    for _ in range(3):
        publisher.publish("a", b"x")
    queue = reader.record.subscriptions[number].queue
    told = []
    for sequence in range(4, 1_000_002):
        queue.miss("a", sequence, 1)
        if sequence % 100_000 == 0:
            told += watcher.told()
    told += watcher.told()
    assert sum(int(str(event["dropped"])) for event in told) == queue.dropped == 1_000_000
    assert len(told) == 11


def test_the_messages_of_batches_that_are_lost_one_by_one_are_one_announcement() -> None:
    _, watcher, publisher, reader = scene(publish_window_messages=100_000)
    reader.subscribe("a", "drop_newest", queue_messages=1)
    for _ in range(5):
        publisher.publish_batch("a", [b""] * 4000)
    assert pairs(watcher.told(), "dropped") == [(19_999,)]


def test_two_hundred_subscribers_that_drop_are_one_frame_for_each_watcher() -> None:
    talk, watcher, publisher, _ = scene()
    readers = [talk.peer(f"reader-{number}") for number in range(200)]
    for reader in readers:
        reader.subscribe("a", "drop_newest", queue_messages=1)
    for _ in range(3):
        publisher.publish("a", b"x")
    told = watcher.told()
    assert pairs(told, "subscriber", "dropped") == [(f"reader-{number}", 2) for number in range(200)]
    assert all("more" not in event for event in told)
    assert [frame.count for frame in watcher.frames()] == [200]


def test_of_more_losses_than_are_told_at_once_the_rest_comes_later_and_the_last_says_how_many_there_are() -> None:
    talk, watcher, publisher, reader = scene()
    reader.subscribe("a/#", "drop_newest", queue_messages=1)
    topics = 2 * PRESSURE_ANNOUNCEMENTS_MAX + 1
    publisher.publish("a", b"x")
    for number in range(topics):
        publisher.publish(f"a/{number}", b"x")
    told = [watcher.told(), watcher.told(), watcher.told(), watcher.told()]
    assert [len(events) for events in told] == [PRESSURE_ANNOUNCEMENTS_MAX, PRESSURE_ANNOUNCEMENTS_MAX, 1, 0]
    assert [events[-1].get("more") for events in told[:3]] == [PRESSURE_ANNOUNCEMENTS_MAX + 1, 1, None]
    assert all("more" not in event for events in told for event in events[:-1])
    names = [event["topic"] for events in told for event in events]
    assert names == [f"a/{number}" for number in range(topics)]


def test_losses_without_a_place_among_those_that_wait_are_told_as_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.pressure.PRESSURE_WAITING_MAX", 3)
    _, watcher, publisher, reader = scene()
    reader.subscribe("a/#", "drop_newest", queue_messages=1)
    publisher.publish("a", b"x")
    for _ in range(2):
        for number in range(10):
            publisher.publish(f"a/{number}", b"x")
    told = watcher.told()
    assert pairs(told, "dropped") == [(2,), (2,), (2,)]
    assert [event.get("unlisted") for event in told] == [None, None, 14]
    assert watcher.told(1.0) == []


def test_the_longest_names_fit_into_one_batch() -> None:
    talk, watcher, publisher, _ = scene()
    reader = talk.peer("n" * 128)
    long = "/".join(["x" * 254, "y" * 252])
    reader.subscribe(f"{long}/#", "drop_newest", queue_messages=1, queue_group="g" * 128)
    publisher.publish(long, b"x")
    for number in range(PRESSURE_ANNOUNCEMENTS_MAX + 1):
        publisher.publish(f"{long}/{number:03}", b"x")
    assert len(watcher.told()) == PRESSURE_ANNOUNCEMENTS_MAX
    assert watcher.peer.is_open
    assert len(watcher.frames()[0].payload) < FRAME_PAYLOAD_BYTES_MAX


def test_announcements_that_do_not_fit_one_frame_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.tenants.FRAME_PAYLOAD_BYTES_MAX", 1000)
    talk, watcher, _, _ = scene()
    talk.state.own.announce(TOPIC, *({"number": number, "text": "x" * 100} for number in range(50)))
    talk.settle()
    frames = watcher.frames()
    assert [told["number"] for told in values_of(frames)] == list(range(50))
    assert len(frames) > 5
    assert max(len(frame.payload) for frame in frames) <= 1000
    assert [frame.sequence for frame in frames][:2] == [1, 1 + frames[0].count]


# No loops.


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "latest", "block"])
@pytest.mark.parametrize("topic_filter", [TOPIC, "$sys/#", "$sys/+"])
def test_what_readers_of_announcements_lose_is_counted_and_not_announced(
    topic_filter: str, overflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.topics.queues.CONTROL_WAITING_MAX", 1)
    talk, watcher, publisher, reader = scene()
    number = reader.subscribe(topic_filter, overflow, queue_messages=1)
    reader.reading = False
    reader.subscribe("a", "drop_newest", queue_messages=1)
    reader.reading = False
    told = []
    for _ in range(6):
        publisher.publish("a", b"x")
        told += watcher.told()
    told += watcher.told(10.0)
    assert {event["topic"] for event in told} == {"a"}
    assert len(told) <= 6
    assert reader.record.subscriptions[number].queue.dropped > 0


def test_a_subscription_to_announcements_that_names_no_policy_drops_the_oldest() -> None:
    talk = Talk()
    reader = talk.peer()
    overflows = {}
    for number, name in enumerate((TOPIC, "$sys/sessions", "a"), start=1):
        reader.put(Kind.SUBSCRIBE, body=Subscribe(name), number=number, target=number)
        overflows[name] = decode_body(reader.all_of(Kind.DONE)[-1].body, Subscribed).overflow
    assert overflows == {TOPIC: "drop_oldest", "$sys/sessions": "block", "a": "block"}


def test_announcements_are_not_counted_as_published() -> None:
    talk, watcher, publisher, reader = scene()
    reader.subscribe("a", "drop_newest", queue_messages=1)
    for _ in range(3):
        publisher.publish("a", b"x")
    watcher.told()
    assert talk.state.totals().published_messages == 3


# What a reader drops itself.


def test_what_a_client_has_dropped_itself_is_counted_and_announced() -> None:
    talk, watcher, publisher, reader = scene()
    number = reader.subscribe("a/#", "drop_oldest", queue_messages=2)
    for name in ("a/b", "a/b", "a/c", "a/c", "a/c"):
        publisher.publish(name, b"x")
    assert watcher.told() == []
    reader.put(Kind.DROPPED, body=Dropped({"a/b": 2, "a/c": 1}), number=number, lane=Lane.CONTROL)
    assert pairs(watcher.told(), "topic", "dropped", "dropped_total") == [("a/b", 2, 3), ("a/c", 1, 3)]
    overflow = reader.record.subscriptions[number].queue.overflow
    assert talk.state.totals().dropped_messages[overflow] == 3
    reader.die()
    assert talk.state.totals().dropped_messages[overflow] == 3
    assert reader.dropped(number) == 0


def test_a_client_can_not_have_dropped_more_than_it_was_sent() -> None:
    talk, watcher, publisher, reader = scene()
    number = reader.subscribe("a", "drop_oldest")
    publisher.publish("a", b"x")
    for count in (1 << 40, 5):
        reader.put(Kind.DROPPED, body=Dropped({"a": count}), number=number)
    assert pairs(watcher.told(), "dropped") == [(1,)]


@pytest.mark.parametrize(
    ("number", "topics"),
    [
        (1, {"b": 1}),
        (1, {"a": 0}),
        (1, {"a": -1}),
        (1, {f"a/{number}": 1 for number in range(257)}),
        (0, {"$inbox/3": 1}),
    ],
    ids=["another topic", "none", "less than none", "too many topics", "inbox"],
)
def test_a_client_that_says_nonsense_of_what_it_has_dropped_ends_alone(number: int, topics: dict[str, int]) -> None:
    _, watcher, publisher, reader = scene()
    reader.subscribe("a", "drop_oldest")
    publisher.publish("a", b"x")
    reader.put(Kind.DROPPED, body=Dropped(topics), number=number)
    assert not reader.is_open
    assert publisher.is_open
    assert watcher.told() == []


def test_what_a_client_says_of_a_subscription_that_has_ended_is_ignored() -> None:
    _, watcher, _, reader = scene()
    reader.put(Kind.DROPPED, body=Dropped({"a": 1}), number=9)
    assert reader.is_open
    assert watcher.told() == []


@pytest.mark.parametrize("topic", ["a/" + "x" * 600, "a/\n", "a//b", "a/+"])
def test_a_client_cannot_have_dropped_messages_of_what_is_no_topic(topic: str) -> None:
    _, watcher, publisher, reader = scene()
    number = reader.subscribe("a/#", "drop_oldest")
    publisher.publish("a/b", b"x")
    reader.put(Kind.DROPPED, body=Dropped({topic: 1}), number=number)
    assert not reader.is_open
    assert watcher.told() == []
