"""What a client may make the broker hold, and what it hears when it asks for more."""

from __future__ import annotations

import pytest

from broker.limits import (
    BATCH_MESSAGES_MAX,
    CHUNK_BYTES,
    MIB,
    NAME_BYTES_MAX,
    STREAMS_PER_SESSION_MAX,
)
from broker.protocol.bodies import Join, Subscribe, Topic, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.session import Phase
from tests.state.harness import Talk


def test_a_session_over_the_limit_is_refused_with_the_number() -> None:
    talk = Talk(sessions_max=2)
    first, second, third = talk.peer(), talk.peer(), talk.peer()
    assert first.is_open
    assert second.is_open
    assert third.session.failure.code == Code.LIMIT
    assert "sessions_max: 3 is over the limit of 2" in str(third.session.failure)
    assert len(talk.state.sessions) == 2
    second.die()
    assert talk.peer().is_open


def test_a_client_whose_name_is_too_long_is_refused() -> None:
    talk = Talk()
    peer = talk.peer("x" * (NAME_BYTES_MAX + 1))
    assert peer.session.failure.code == Code.LIMIT
    assert str(NAME_BYTES_MAX) in str(peer.session.failure)


def test_a_nameless_client_gets_a_name() -> None:
    talk = Talk()
    peer = talk.peer("")
    assert peer.record.name == f"client-{peer.record.id}"


def test_the_welcome_names_the_limits_of_the_session() -> None:
    talk = Talk(name="b", publish_window_messages=7, publish_window_bytes=8, heartbeat_interval_s=0.5)
    welcome = talk.peer().welcome
    assert (welcome.session, welcome.broker, welcome.chunk_bytes) == (1, "b", CHUNK_BYTES)
    assert (welcome.publish_window_messages, welcome.publish_window_bytes) == (7, 8)
    assert (welcome.heartbeat_interval_ms, welcome.heartbeat_timeout_ms) == (500, 30_000)


def test_subscriptions_of_a_session_are_limited() -> None:
    talk = Talk(subscriptions_per_session_max=3)
    reader = talk.peer()
    for _ in range(3):
        reader.subscribe("a")
    reader.put(Kind.SUBSCRIBE, body=Subscribe("a"), number=9, target=5)
    (failure,) = reader.failures()
    assert (failure.code, failure.limit, failure.maximum) == (Code.LIMIT, "subscriptions_per_session_max", 3)
    assert reader.is_open


def test_topics_of_a_session_are_limited_but_a_number_may_change_its_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.publishing.TOPICS_PER_SESSION_MAX", 3)
    talk = Talk()
    publisher = talk.peer()
    for number in (1, 2, 3, 3, 2):
        publisher.put(Kind.TOPIC, number=number, body=Topic(f"t/{number}"))
    assert publisher.is_open
    publisher.put(Kind.TOPIC, number=4, body=Topic("t/4"))
    assert publisher.session.failure.code == Code.LIMIT
    assert "limit of 3" in str(publisher.session.failure)


def test_when_all_topics_are_used_up_only_messages_to_more_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.topics.TOPICS_MAX", 3)
    talk = Talk()
    publisher, greedy, reader = talk.peer(), talk.peer(), talk.peer()
    reader.subscribe("#")
    publisher.publish("a", b"x")
    publisher.publish("b", b"x")
    greedy.publish("c", b"x")
    greedy.publish("c", b"x", flags=Flag.ACKNOWLEDGE, target=7)
    greedy.publish("c", b"x", flags=Flag.REQUEST, target=8)
    greedy.publish_large("c", bytes(2 * CHUNK_BYTES))
    # Each one is told, by the number of the topic or to whom it waits for an answer.
    told = [frame for frame in greedy.frames if frame.kind == Kind.ERROR]
    assert [(frame.number, frame.target) for frame in told] == [(1, 0), (0, 7), (0, 8), (1, 0)]
    assert {(each.code, each.limit, each.value, each.maximum) for each in greedy.failures()} == {
        (Code.LIMIT, "topics_max", 4, 3)
    }
    reader.put(Kind.JOIN, body=Join("dp", 1), target=1)
    publisher.publish("a", b"y")
    greedy.publish("a", b"z")
    assert reader.payloads() == [b"x", b"x", b"y", b"z"]
    assert len(reader.all_of(Kind.JOINED)) == 1
    assert len(talk.state.router.topics) == 3
    # There is room again, and the same publisher goes on.
    publisher.die()
    greedy.publish("c", b"now", flags=Flag.ACKNOWLEDGE, target=9)
    assert reader.payloads()[-1] == b"now"
    assert greedy.all_of(Kind.DONE)[-1].target == 9
    assert greedy.is_open


def test_inboxes_of_sessions_that_are_gone_make_room_for_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.topics.TOPICS_MAX", 4)
    talk = Talk()
    publisher = talk.peer()
    for number in range(100, 120):
        publisher.publish(f"$inbox/{number}", b"x")
    publisher.publish("a", b"x")
    assert publisher.is_open
    assert len(talk.state.router.topics) <= 4


def test_large_messages_that_a_session_has_open_are_limited() -> None:
    talk = Talk()
    publisher = talk.peer()
    for number in range(STREAMS_PER_SESSION_MAX):
        publisher.open_stream(f"t/{number}", 10 * CHUNK_BYTES)
    assert publisher.is_open
    publisher.open_stream("one-more", 10 * CHUNK_BYTES)
    assert publisher.session.failure.code == Code.PROTOCOL
    assert str(STREAMS_PER_SESSION_MAX) in str(publisher.session.failure)


def test_a_batch_over_the_limit_closes_the_session() -> None:
    talk = Talk()
    publisher = talk.peer()
    publisher.publish_batch("a", [b""] * (BATCH_MESSAGES_MAX + 1))
    assert str(BATCH_MESSAGES_MAX) in str(publisher.session.failure)


@pytest.mark.parametrize("kind", [Kind.FLUSH, Kind.PING, Kind.UNSUBSCRIBE, Kind.JOIN])
@pytest.mark.parametrize("in_group", [False, True])
def test_a_client_that_asks_and_does_not_read_the_answers_is_closed(
    kind: Kind, in_group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.protocol.session.CONTROL_QUEUE_BYTES_MAX", 1 * MIB)
    talk = Talk()
    peer, other = talk.peer(), talk.peer()
    if in_group:
        peer.put(Kind.JOIN, body=Join("dp", 1), target=1)
    peer.reading = False
    body = Join("dp", 2) if kind == Kind.JOIN else None
    largest = 0
    for _ in range(1000):
        for _ in range(500):
            peer.session.put(Frame(kind, target=1, number=1, body=b"" if body is None else encode_body(body)))
        talk.settle()
        largest = max(largest, peer.record.session.outbox.queued_bytes)
        if not peer.is_open:
            break
    assert peer.record.session.failure.code == Code.LIMIT
    assert largest <= 2 * MIB
    other.put(Kind.FLUSH, target=1)
    assert len(other.all_of(Kind.DONE)) == 1


def test_control_messages_that_nobody_reads_are_bounded_in_bytes() -> None:
    talk = Talk()
    publisher, slow, good = talk.peer(), talk.peer(), talk.peer()
    number = slow.subscribe("a", queue_bytes=8 * MIB)
    good.subscribe("a", queue_messages=10_000, queue_bytes=256 * MIB)
    slow.reading = False
    for _ in range(100):
        publisher.publish("a", bytes(500_000), lane=Lane.CONTROL)
    assert talk.state.held_bytes() <= 14 * MIB
    assert len(good.delivered()) == 100
    slow.reading = True
    talk.settle()
    assert slow.dropped(number) == 100 - len(slow.delivered())
    assert 14 <= len(slow.delivered()) <= 17


def test_bulk_that_waits_does_not_cost_a_control_message_its_place() -> None:
    talk = Talk(publish_window_bytes=64 * MIB)
    publisher, slow = talk.peer(), talk.peer()
    number = slow.subscribe("#", queue_bytes=1 * MIB)
    slow.reading = False
    for _ in range(8):
        publisher.publish("a", bytes(900_000))
    publisher.publish("stop", b"stop", lane=Lane.CONTROL)
    slow.reading = True
    talk.settle()
    assert slow.payloads()[0] == b"stop"
    assert slow.dropped(number) == 0


@pytest.mark.parametrize("size", [0, 1, 4096])
def test_chunks_that_cost_more_than_their_bytes_are_refused(size: int) -> None:
    talk = Talk()
    publisher = talk.peer()
    stream = publisher.open_stream("a", 1 << 30)
    publisher.chunk(stream, bytes(size))
    assert publisher.session.failure.code == Code.PROTOCOL
    assert f"chunk of {size} bytes" in str(publisher.session.failure)


def test_a_silent_client_is_closed_at_its_heartbeat_time_out_and_others_are_not() -> None:
    talk = Talk(heartbeat_interval_s=1.0, heartbeat_timeout_s=3.0)
    alive, silent = talk.peer(), talk.peer()
    record = silent.record
    talk.peers.remove(silent)
    talk.tick(2.9)
    assert record.session.phase is Phase.OPEN
    talk.tick(0.3)
    assert record.session.phase is not Phase.OPEN
    assert record.session.failure.code == Code.HEARTBEAT
    assert alive.is_open


def test_a_drain_sends_everybody_what_waits_and_a_reason() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    reader.reading = False
    publisher.publish("a", b"x")
    talk.state.drain("maintenance")
    reader.reading = True
    talk.settle()
    assert reader.payloads() == [b"x"]
    for peer in (publisher, reader):
        assert peer.session.failure.code == Code.SHUTDOWN
        assert "maintenance" in str(peer.session.failure)
    assert talk.state.sessions == {}


def test_nothing_is_left_of_sessions_that_are_gone() -> None:
    talk = Talk()
    for _ in range(3):
        publisher, reader = talk.peer(), talk.peer()
        reader.subscribe("a")
        reader.subscribe("b", "latest", queue_group="g")
        publisher.publish("a", b"x", Flag.ACKNOWLEDGE, target=1)
        publisher.open_stream("b", 10 * CHUNK_BYTES)
        reader.put(Kind.JOIN, body=Join("dp", 2), target=1)
        publisher.die()
        reader.die()
    state = talk.state
    assert state.sessions == {}
    assert len(state.router._trie) == 0
    assert state.router._inboxes == {}
    assert all(topic.publishers == 0 for topic in state.router.topics.values())
    assert state.own.groups.by_number == {}
    assert state.own.groups._references == {}
    assert state.own.groups._sessions == {}
    assert all(topic.held_back == () for topic in state.router.topics.values())
