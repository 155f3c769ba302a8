"""Subscribing and ending subscriptions."""

from __future__ import annotations

import msgpack
import pytest

from broker.limits import QUEUE_MESSAGES_MAX
from broker.protocol.bodies import Subscribe
from broker.protocol.codes import Code
from broker.protocol.frames import Kind
from tests.state.harness import Talk


def test_overlapping_subscriptions_of_a_session_each_get_the_message() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    one, two = reader.subscribe("a/+"), reader.subscribe("a/#")
    publisher.publish("a/b", b"x")
    assert reader.payloads(one) == reader.payloads(two) == [b"x"]


def test_an_ended_subscription_gets_nothing_more() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a")
    publisher.publish("a", b"1")
    reader.put(Kind.UNSUBSCRIBE, number=number, target=5)
    publisher.publish("a", b"2")
    assert reader.all_of(Kind.DONE)[-1].target == 5
    assert reader.payloads() == [b"1"]


def test_ending_a_subscription_drops_what_waits_and_lets_publishers_go_on() -> None:
    talk = Talk(publish_window_messages=8)
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a", queue_messages=2)
    for _ in range(8):
        publisher.publish("a", b"x")
    assert publisher.topic_credit("a")[0] < 8
    reader.put(Kind.UNSUBSCRIBE, number=number, target=5)
    assert publisher.topic_credit("a")[0] == 8


def test_ending_a_subscription_in_the_middle_of_a_large_message_aborts_it_and_frees_it() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a")
    stream = publisher.open_stream("a", 64 << 20)
    publisher.chunk(stream, bytes(1 << 20))
    reader.reading = False
    publisher.chunk(stream, bytes(1 << 20))
    reader.put(Kind.UNSUBSCRIBE, number=number, target=5)
    for _ in range(20):
        publisher.chunk(stream, bytes(1 << 20))
    assert talk.state.held_bytes() <= 3 << 20
    reader.reading = True
    talk.settle()
    assert len(reader.all_of(Kind.STREAM_ABORT)) == 1


def test_unsubscribing_from_an_unknown_number_is_answered_with_an_error() -> None:
    talk = Talk()
    reader = talk.peer()
    for number in (0, 17):
        reader.put(Kind.UNSUBSCRIBE, number=number, target=number + 1)
    assert [failure.code for failure in reader.failures()] == [Code.NOT_FOUND] * 2
    assert [frame.target for frame in reader.all_of(Kind.ERROR)] == [1, 18]


def test_credit_for_an_ended_subscription_is_nothing_special() -> None:
    talk = Talk()
    reader = talk.peer()
    number = reader.subscribe("a")
    reader.put(Kind.UNSUBSCRIBE, number=number, target=5)
    reader.credit(number, 3, 1000)
    assert reader.is_open


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (Subscribe(""), "empty"),
        (Subscribe("a/#/b"), "last"),
        (Subscribe("a", "sometimes"), "overflow 'sometimes'"),
        (Subscribe("a", queue_messages=0), "queue_messages 0"),
        (Subscribe("a", queue_messages=QUEUE_MESSAGES_MAX + 1), str(QUEUE_MESSAGES_MAX)),
        (Subscribe("a", queue_bytes=1), "queue_bytes 1"),
        (Subscribe("a", queue_bytes=1 << 60), "queue_bytes"),
        (Subscribe("a", queue_group="x" * 200), "queue_group"),
        (Subscribe("a", replay="some"), "replay 'some'"),
        (Subscribe("a", replay=-3), "replay -3"),
    ],
)
def test_impossible_wishes_are_refused_with_the_value_and_leave_the_session_open(wishes: Subscribe, words: str) -> None:
    talk = Talk()
    reader = talk.peer()
    reader.put(Kind.SUBSCRIBE, body=wishes, number=1, target=5)
    (failure,) = reader.failures()
    assert failure.code == Code.INVALID
    assert words in failure.reason
    assert reader.is_open
    assert list(reader.record.subscriptions) == [0]


def test_a_number_in_use_is_refused() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    for number in (0, 1):
        reader.put(Kind.SUBSCRIBE, body=Subscribe("b"), number=number, target=5)
    assert ["in use" in failure.reason for failure in reader.failures()] == [True, True]
    publisher.publish("b", b"x")
    assert reader.payloads() == []


@pytest.mark.parametrize("of", ["$inbox/{}", "$inbox/+", "$inbox/#"])
def test_nobody_can_listen_at_the_inbox_of_another_session(of: str) -> None:
    talk = Talk()
    victim, thief, responder = talk.peer(), talk.peer(), talk.peer()
    thief.put(Kind.SUBSCRIBE, body=Subscribe(of.format(victim.record.id)), number=1, target=5)
    assert [failure.code for failure in thief.failures()] == [Code.DENIED]
    responder.publish(f"$inbox/{victim.record.id}", b"secret")
    assert victim.payloads() == [b"secret"]
    assert thief.payloads() == []
    thief.die()
    responder.publish(f"$inbox/{victim.record.id}", b"more")
    assert victim.payloads() == [b"secret", b"more"]


def test_wildcards_do_not_match_inboxes() -> None:
    talk = Talk()
    victim, thief, responder = talk.peer(), talk.peer(), talk.peer()
    for topic_filter in ("#", "+/+", "+/#"):
        thief.subscribe(topic_filter)
    responder.publish(f"$inbox/{victim.record.id}", b"secret")
    assert thief.payloads() == []
    assert victim.payloads() == [b"secret"]


def test_a_reply_to_a_session_that_is_gone_is_nobodys() -> None:
    talk = Talk()
    gone, responder = talk.peer(), talk.peer()
    topic = f"$inbox/{gone.record.id}"
    responder.publish(topic, b"1")
    gone.die()
    responder.publish(topic, b"2")
    assert responder.is_open


def test_subscriptions_to_sys_sessions_tell_who_comes_and_goes() -> None:
    talk = Talk()
    watcher = talk.peer("watcher")
    watcher.subscribe("$sys/#")
    talk.peer("trainer-7").die()
    events = [msgpack.unpackb(payload) for payload in watcher.payloads()]
    assert [(event["event"], event["name"]) for event in events] == [("opened", "trainer-7"), ("closed", "trainer-7")]
