"""A declaration for many topics is followed part by part, and others have their turn in between."""

from __future__ import annotations

import pytest

from broker.protocol.bodies import Declare, Topic, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Frame, Kind
from broker.state.following import PART
from broker.state.topics import TopicRecord
from tests.state.harness import Peer, Talk

TOPICS = 4 * PART


def declare(peer: Peer, topic_filter: str, reference: int, **settings: object) -> None:
    """The broker gets a DECLARE, and nothing more happens."""
    body = encode_body(Declare(topic_filter, **settings))
    peer.talk.state.receive(peer.record, Frame(Kind.DECLARE, target=reference, body=body), peer.talk.now_ns)


def talk_of_many_topics() -> tuple[Talk, Peer, list[TopicRecord]]:
    talk = Talk()
    publisher = talk.peer("publisher")
    for number in range(TOPICS):
        publisher.topic(f"a/{number}")
    return talk, publisher, [talk.state.router.topics[f"a/{number}"] for number in range(TOPICS)]


def followers(topics: list[TopicRecord], lane: str = "bulk") -> int:
    return sum(topic.policy.lane == lane for topic in topics)


def test_each_part_is_bounded_and_done_is_said_at_the_end() -> None:
    talk, publisher, topics = talk_of_many_topics()
    state = talk.state
    declare(publisher, "a/#", 7, lane="bulk")
    assert 0 < followers(topics) < PART
    before, parts = followers(topics), 1
    while state.has_more():
        waiting = publisher.record.session.outbox.waiting
        state.go_on(talk.now_ns)
        assert followers(topics) - before <= PART
        assert publisher.record.session.outbox.waiting - waiting <= PART + 1
        before, parts = followers(topics), parts + 1
    assert parts >= 2 * TOPICS // PART
    assert followers(topics) == TOPICS
    talk.settle()
    assert len(publisher.all_of(Kind.POLICY)) == TOPICS
    assert [frame.target for frame in publisher.all_of(Kind.DONE)][-1] == 7


def test_others_go_on_meanwhile_and_new_topics_follow_at_once() -> None:
    talk, publisher, topics = talk_of_many_topics()
    reader = talk.peer("reader")
    reader.subscribe("b")
    declare(publisher, "#", 7, lane="bulk")
    body = encode_body(Topic("b"))
    talk.state.receive(publisher.record, Frame(Kind.TOPIC, number=TOPICS + 1, body=body), talk.now_ns)
    talk.state.receive(publisher.record, Frame(Kind.PUBLISH, number=TOPICS + 1, payload=b"x"), talk.now_ns)
    assert talk.state.router.topics["b"].published == 1
    assert talk.state.router.topics["b"].policy.lane == "bulk"
    assert talk.state.has_more()
    talk.settle()
    assert reader.payloads() == [b"x"]
    assert followers(topics) == TOPICS


def test_declarations_are_followed_in_their_order_and_the_last_one_holds() -> None:
    talk, publisher, topics = talk_of_many_topics()
    for reference, lane in ((7, "bulk"), (8, "control"), (9, "bulk")):
        declare(publisher, "a/#", reference, lane=lane)
    talk.settle()
    assert followers(topics) == TOPICS
    assert [frame.target for frame in publisher.all_of(Kind.DONE)][-3:] == [7, 8, 9]
    # Every topic has followed what held when its turn came, so nobody was told twice.
    assert len(publisher.all_of(Kind.POLICY)) <= TOPICS + PART


def test_who_has_gone_or_been_renamed_meanwhile_is_not_told() -> None:
    talk, publisher, topics = talk_of_many_topics()
    gone = talk.peer("gone")
    gone.topic("a/0")
    declare(talk.peer("other"), "a/#", 7, lane="bulk")
    state = talk.state
    body = encode_body(Topic("elsewhere"))
    state.receive(publisher.record, Frame(Kind.TOPIC, number=TOPICS, body=body), talk.now_ns)
    gone.die()
    talk.settle()
    told = [frame.number for frame in publisher.all_of(Kind.POLICY)]
    assert sorted(told) == list(range(1, TOPICS))
    assert followers(topics) == TOPICS
    assert not state.has_more()


def test_those_that_wait_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.following.DECLARATIONS_MAX", 2)
    talk, publisher, _ = talk_of_many_topics()
    for reference, lane in ((7, "bulk"), (8, "control"), (9, "bulk")):
        declare(publisher, "a/#", reference, lane=lane)
    talk.settle()
    (failure,) = publisher.failures()
    assert (failure.code, failure.limit, failure.maximum) == (Code.LIMIT, "declarations_max", 2)
