"""Policies of topics: declared, told to publishers, and what they do to what arrives."""

from __future__ import annotations

import pytest

from broker.limits import CHUNK_BYTES, KIB, MIB
from broker.protocol.batches import Batch, split_batch
from broker.protocol.bodies import Declare, Failure, PublishPolicy, Subscribe, Subscribed, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.topics.policy import Declaration
from tests.state.harness import Peer, Talk

REFERENCE = 77


def declare(peer: Peer, topic_filter: str, **settings: object) -> Frame:
    """Declares and returns the broker's answer."""
    seen = len(peer.frames)
    peer.put(Kind.DECLARE, body=Declare(topic_filter, **settings), target=REFERENCE, lane=Lane.CONTROL)
    (answer,) = [frame for frame in peer.frames[seen:] if frame.target == REFERENCE]
    return answer


def declared(peer: Peer, topic_filter: str, **settings: object) -> None:
    assert declare(peer, topic_filter, **settings).kind == Kind.DONE


def refusal(answer: Frame) -> Failure:
    assert answer.kind == Kind.ERROR
    return decode_body(answer.body, Failure)


def policies(peer: Peer) -> list[tuple[int, PublishPolicy]]:
    """What a publisher was told, by its topic numbers."""
    return [(frame.number, decode_body(frame.body, PublishPolicy)) for frame in peer.all_of(Kind.POLICY)]


def replayed(talk: Talk, topic: str) -> list[bytes]:
    reader = talk.peer("late")
    return reader.payloads(reader.subscribe(topic, replay="all"))


# Declaring.


def test_a_declaration_holds_for_topics_that_come_and_for_those_that_are_there() -> None:
    talk = Talk()
    publisher = talk.peer()
    publisher.publish("a/old", b"1")
    declared(publisher, "a/#", acknowledge=True, lease_s=1.5)
    publisher.publish("a/new", b"1")
    publisher.publish("b", b"1")
    topics = talk.state.router.topics
    assert [topics[name].policy.acknowledge for name in ("a/old", "a/new", "b")] == [True, True, False]
    assert topics["a/old"].policy.lease_s == 1.5


@pytest.mark.parametrize(
    ("topic_filter", "settings", "words"),
    [
        ("a", {"ring_messages": -1}, "ring_messages -1"),
        ("a", {"overflow": "drop"}, "overflow 'drop'"),
        ("a//b", {"ring_messages": 1}, "topic filter 'a//b'"),
        ("$sys/#", {"ring_messages": 1}, "the broker's"),
        ("$inbox/1", {"ring_messages": 1}, "the broker's"),
    ],
)
def test_what_cannot_be_is_refused_and_the_session_goes_on(
    topic_filter: str, settings: dict[str, object], words: str
) -> None:
    talk = Talk()
    peer = talk.peer()
    failure = refusal(declare(peer, topic_filter, **settings))
    assert failure.code == Code.INVALID
    assert words in failure.reason
    assert peer.is_open
    assert len(talk.state.router.policies) == 0


def test_a_filter_of_the_configuration_is_refused_and_a_narrower_one_taken() -> None:
    talk = Talk(declarations=(Declaration("a/#", {"ring_messages": 2}, "configuration"),))
    peer = talk.peer()
    failure = refusal(declare(peer, "a/#", ring_messages=5))
    assert (failure.code, "fixed by the broker's configuration" in failure.reason) == (Code.DENIED, True)
    declared(peer, "a/b", ring_messages=1)
    for topic in ("a/b", "a/c"):
        for number in range(4):
            peer.publish(topic, b"%d" % number)
    assert replayed(talk, "a/b") == [b"3"]
    assert replayed(talk, "a/c") == [b"2", b"3"]


def test_too_many_declarations_are_refused_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.topics.declarations.DECLARATIONS_MAX", 1)
    talk = Talk()
    peer = talk.peer()
    declared(peer, "a", ring_messages=5)
    failure = refusal(declare(peer, "b", ring_messages=5))
    assert (failure.code, failure.limit, failure.maximum) == (Code.LIMIT, "declarations_max", 1)
    declared(peer, "a")
    declared(peer, "b", ring_messages=5)


def test_a_malformed_declaration_ends_the_session_that_sent_it() -> None:
    talk = Talk()
    bad, good = talk.peer(), talk.peer()
    bad.put(Kind.DECLARE, body=b"\x81\xa6filter\x07", target=REFERENCE)
    assert not bad.is_open
    assert good.is_open


def test_a_declaration_outlives_its_client_and_the_last_one_wins() -> None:
    talk = Talk()
    first, second = talk.peer("first"), talk.peer("second")
    declared(first, "a", ring_messages=1)
    first.die()
    second.publish("a", b"1")
    topic = talk.state.router.topics["a"]
    assert topic.policy.ring_messages == 1
    declared(second, "a", ring_messages=2)
    assert topic.policy.ring_messages == 2
    origins = {held.origin for held in talk.state.router.policies.explain("a")}
    assert origins == {"default", "declared by second"}


def test_an_inbox_takes_no_policy() -> None:
    talk = Talk()
    peer = talk.peer()
    declared(peer, "#", ring_messages=9, lane="bulk")
    inbox = talk.state.router.topic(f"$inbox/{peer.record.id}")
    declared(peer, "#", ring_messages=8, lane="bulk")
    assert (inbox.policy.ring_messages, inbox.special) == (0, False)


# What is kept.


def test_rings_shrink_and_grow_at_once_and_subscriptions_stay() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    number = reader.subscribe("a")
    for payload in (b"1", b"2", b"3", b"4"):
        publisher.publish("a", payload)
    assert talk.state.router.retained_bytes >= 4
    before = talk.state.router.retained_bytes
    declared(publisher, "a", ring_messages=1)
    assert talk.state.router.retained_bytes == before - 3
    assert replayed(talk, "a") == [b"4"]
    declared(publisher, "a", ring_messages=2)
    publisher.publish("a", b"5")
    assert replayed(talk, "a") == [b"4", b"5"]
    assert reader.payloads(number) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_retained_topic_keeps_its_newest_message_whatever_its_length() -> None:
    talk = Talk()
    publisher = talk.peer()
    declared(publisher, "weights", retain=True, ring_bytes=0)
    for letter in (b"a", b"b"):
        publisher.publish_large("weights", letter * 5 * MIB)
    reader = talk.peer()
    reader.subscribe("weights", replay="latest")
    assert reader.large() == [b"b" * 5 * MIB]
    declared(publisher, "weights", retain=False)
    assert talk.state.router.topics["weights"].ring.held_bytes == 0


def test_declared_values_are_the_last_to_be_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.topics.RETAINED_BYTES_MAX", 10_000)
    talk = Talk()
    publisher = talk.peer()
    declared(publisher, "kept", retain=True)
    publisher.publish("kept", b"k" * 6000)
    for number in range(5):
        publisher.publish(f"other/{number}", b"o" * 2000)
    assert replayed(talk, "kept") == [b"k" * 6000]
    assert talk.state.router.retained_bytes <= 10_000


# What subscriptions get.


@pytest.mark.parametrize(
    ("topic_filter", "outcome"), [("a/+", "latest"), ("a/b", "drop_oldest"), ("a/#", "latest"), ("#", "block")]
)
def test_a_subscription_without_overflow_gets_what_holds_for_its_filter_and_is_told(
    topic_filter: str, outcome: str
) -> None:
    talk = Talk()
    peer = talk.peer()
    declared(peer, "a/#", overflow="latest")
    declared(peer, "a/b", overflow="drop_oldest")
    peer.put(Kind.SUBSCRIBE, body=Subscribe(topic_filter), number=5, target=REFERENCE)
    done = peer.frames[-1]
    assert (done.kind, decode_body(done.body, Subscribed).overflow) == (Kind.DONE, outcome)
    assert peer.record.subscriptions[5].queue.overflow.value == outcome


def test_a_subscription_that_names_its_overflow_gets_it() -> None:
    talk = Talk()
    peer = talk.peer()
    declared(peer, "a", overflow="latest")
    number = peer.subscribe("a", "drop_newest")
    assert peer.record.subscriptions[number].queue.overflow.value == "drop_newest"
    assert peer.all_of(Kind.DONE)[-1].body == b""


def test_a_filter_that_cannot_be_is_refused_without_an_overflow_too() -> None:
    talk = Talk()
    peer = talk.peer()
    peer.put(Kind.SUBSCRIBE, body=Subscribe("a//b"), number=5, target=REFERENCE)
    assert refusal(peer.frames[-1]).code == Code.INVALID
    assert peer.is_open


# What publishers are told.


def test_a_publisher_is_told_what_differs_and_only_that() -> None:
    talk = Talk()
    publisher = talk.peer()
    declared(publisher, "a/#", batch_bytes=0, ring_messages=3)
    declared(publisher, "b", ring_messages=3)
    for topic in ("b", "a/1", "c"):
        publisher.topic(topic)
    assert policies(publisher) == [(2, PublishPolicy(batch_bytes=0))]


def test_a_publisher_is_told_again_when_it_changes_and_not_when_it_does_not() -> None:
    talk = Talk()
    publisher, other = talk.peer(), talk.peer()
    publisher.topic("a")
    other.topic("b")
    other.topic("a")
    declared(other, "a", lane="bulk", batch_window_us=7, max_message_bytes=9)
    declared(other, "a", lane="bulk", batch_window_us=7, max_message_bytes=9)
    declared(other, "a", lane="bulk", batch_window_us=7, max_message_bytes=9, ring_messages=1)
    told = PublishPolicy(batch_window_us=7, lane="bulk", max_message_bytes=9)
    assert policies(publisher) == [(1, told)]
    declared(other, "a")
    assert policies(publisher) == [(1, told), (1, PublishPolicy())]
    assert policies(other) == [(2, told), (2, PublishPolicy())]


# Lanes.


def test_messages_of_the_default_lane_go_on_in_the_topics_lane() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    declared(publisher, "a", lane="bulk")
    publisher.publish("a", b"1")
    publisher.publish("a", b"2", lane=Lane.CONTROL)
    publisher.publish_batch("a", [b"3", b"4"])
    publisher.publish_large("a", b"5" * 300_000)
    lanes = [frame.lane for frame in reader.delivered()]
    assert lanes == [Lane.BULK, Lane.CONTROL, Lane.BULK, Lane.BULK]
    assert {frame.lane for frame in reader.all_of(Kind.CHUNK)} == {Lane.BULK}
    assert reader.large() == [b"5" * 300_000]


def test_what_a_policy_moves_to_the_control_lane_still_costs_its_publisher_credit() -> None:
    talk = Talk(publish_window_messages=8, publish_window_bytes=MIB)
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    declared(publisher, "a", lane="control")
    for _ in range(4):
        publisher.publish("a", b"x")
    assert publisher.topic_credit("a")[0] == 4
    publisher.publish_large("a", b"y" * 3 * CHUNK_BYTES)
    assert publisher.topic_credit("a")[1] >= 2 * CHUNK_BYTES
    assert {frame.lane for frame in reader.delivered()} == {Lane.CONTROL}


# The longest message.


def limited(maximum: int) -> tuple[Talk, Peer, Peer]:
    talk = Talk()
    publisher, reader = talk.peer("publisher"), talk.peer("reader")
    reader.subscribe("a")
    declared(publisher, "a", max_message_bytes=maximum)
    return talk, publisher, reader


def test_a_message_of_the_longest_length_passes_and_a_longer_one_is_refused_and_counted() -> None:
    talk, publisher, reader = limited(4)
    publisher.publish("a", b"1234")
    publisher.publish("a", b"12345")
    publisher.publish("a", b"last")
    assert reader.payloads() == [b"1234", b"last"]
    assert reader.sequences() == [1, 2]
    topic = talk.state.router.topics["a"]
    assert (topic.refused, topic.published) == (1, 2)
    assert talk.state.totals().refused_messages == 1


def test_an_acknowledged_message_that_is_refused_is_answered() -> None:
    _, publisher, reader = limited(4)
    for reference in (5, 6):
        publisher.publish("a", b"12345", Flag.ACKNOWLEDGE, target=reference)
    answers = [(frame.number, frame.target, decode_body(frame.body, Failure)) for frame in publisher.all_of(Kind.ERROR)]
    assert [answer[:2] for answer in answers] == [(0, 5), (0, 6)]
    failure = answers[0][2]
    assert (failure.code, failure.limit, failure.value, failure.maximum) == (Code.LIMIT, "max_message_bytes", 5, 4)
    assert "topic 'a'" in failure.reason
    assert reader.payloads() == []


def test_a_request_that_is_refused_is_answered() -> None:
    _, publisher, _ = limited(4)
    publisher.publish("a", b"12345", Flag.REQUEST, target=5)
    (failure,) = publisher.failures()
    assert failure.limit == "max_message_bytes"


def test_other_messages_that_are_refused_are_told_once_for_each_policy() -> None:
    _, publisher, _ = limited(4)
    for _ in range(3):
        publisher.publish("a", b"12345")
    (told,) = publisher.all_of(Kind.ERROR)
    assert (told.number, told.target) == (1, 0)
    declared(publisher, "a", max_message_bytes=3)
    publisher.publish("a", b"1234")
    assert [failure.maximum for failure in publisher.failures()] == [4, 3]


def test_the_chunks_of_a_refused_message_come_in_and_go_nowhere() -> None:
    talk, publisher, reader = limited(64 * KIB)
    publisher.publish_large("a", b"x" * 20 * MIB, Flag.ACKNOWLEDGE, target=9)
    assert publisher.is_open
    assert reader.delivered() == []
    assert [frame.target for frame in publisher.all_of(Kind.ERROR)] == [9]
    assert [frame.target for frame in publisher.all_of(Kind.DONE) if frame.target == 9] == []
    assert talk.state.held_bytes() == 0
    assert publisher.record.streams == {}
    publisher.publish_large("a", b"y" * 40_000)
    assert reader.large() == [b"y" * 40_000]


def test_a_refused_message_gives_its_credit_back_like_any_other() -> None:
    talk, publisher, _ = limited(64 * KIB)
    publisher.publish_large("a", b"x" * 20 * MIB)
    assert publisher.topic_credit("a")[1] >= 12 * MIB
    assert talk.state.totals().refused_messages == 1


def test_a_refused_message_may_be_given_up_in_the_middle() -> None:
    _, publisher, reader = limited(64 * KIB)
    stream = publisher.open_stream("a", MIB)
    publisher.chunk(stream, b"x" * CHUNK_BYTES)
    publisher.put(Kind.STREAM_ABORT, body=Failure(Code.PUBLISHER_GONE, "no"), stream=stream)
    publisher.publish("a", b"next")
    assert publisher.is_open
    assert reader.payloads() == [b"next"]


def test_a_publisher_that_dies_in_a_refused_message_leaves_nothing() -> None:
    talk, publisher, reader = limited(64 * KIB)
    stream = publisher.open_stream("a", MIB)
    publisher.chunk(stream, b"x" * CHUNK_BYTES)
    publisher.die()
    assert reader.delivered() == []
    assert talk.state.held_bytes() == 0


def test_a_batch_goes_on_with_its_messages_that_are_short_enough() -> None:
    _, publisher, reader = limited(3)
    publisher.publish_batch("a", [b"one", b"three", b"two", b"seventeen"])
    (delivered,) = reader.delivered()
    entries = split_batch(bytes(delivered.payload), delivered.count)
    assert [entry[3] for entry in entries] == [b"one", b"two"]
    (failure,) = publisher.failures()
    assert failure.value == len(b"seventeen")
    publisher.publish("a", b"end")
    assert reader.sequences() == [1, 3]


def test_a_batch_of_short_messages_passes_unopened() -> None:
    _, publisher, reader = limited(3)
    payload = publisher.publish_batch("a", [b"one", b"two"])
    assert bytes(reader.delivered()[0].payload) == payload
    assert publisher.failures() == []


def test_a_batch_of_which_nothing_is_left_is_refused() -> None:
    talk, publisher, reader = limited(3)
    publisher.publish_batch("a", [b"three", b"seven"])
    assert reader.delivered() == []
    assert talk.state.router.topics["a"].refused == 2


def test_a_batch_takes_the_same_credit_whatever_is_refused_of_it() -> None:
    talk = Talk()
    free, bound = talk.peer(), talk.peer()
    declared(free, "bound", max_message_bytes=3)
    payloads = [b"one", b"three", b"two"]
    free.publish_batch("free", payloads)
    bound.publish_batch("bound", payloads)
    credits_ = [
        (publisher.used_messages, publisher.used_bytes)
        for peer in (free, bound)
        for publisher in peer.record.publishers.values()
    ]
    assert credits_[0] == credits_[1]


def test_a_malformed_batch_on_a_limited_topic_ends_its_session_alone() -> None:
    talk, publisher, reader = limited(3)
    batch = Batch(0)
    batch.add(1, 0, b"", b"four")
    publisher.put(Kind.PUBLISH, Flag.BATCH, number=publisher.topic("a"), count=1, payload=batch.close()[:-1] + b"xx")
    assert not publisher.is_open
    assert reader.is_open
    assert talk.peer().is_open


def test_a_limit_that_comes_in_the_middle_of_a_message_lets_it_pass() -> None:
    talk = Talk()
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    stream = publisher.open_stream("a", 2 * CHUNK_BYTES)
    publisher.chunk(stream, b"x" * CHUNK_BYTES)
    declared(reader, "a", max_message_bytes=10, lane="bulk", retain=False)
    publisher.chunk(stream, b"y" * CHUNK_BYTES, last=True)
    assert reader.large() == [b"x" * CHUNK_BYTES + b"y" * CHUNK_BYTES]
    assert talk.state.router.topics["a"].ring.held_bytes == 0


# Work queues.


def test_jobs_that_are_there_hear_of_another_lease_at_once() -> None:
    talk = Talk()
    publisher, worker, second = talk.peer(), talk.peer(), talk.peer()
    declared(publisher, "jobs", acknowledge=True, lease_s=1000)
    worker.subscribe("jobs", queue_group="g", queue_messages=1)
    for number in range(2):
        publisher.publish("jobs", b"%d" % number)
    assert worker.payloads() == [b"0"]
    declared(publisher, "jobs", acknowledge=True, lease_s=1)
    second.subscribe("jobs", queue_group="g", queue_messages=1)
    assert second.payloads() == [b"1"]
    (work,) = talk.state.router.topics["jobs"].works.values()
    assert work.queue.lease_ns == 1_000_000_000


def test_a_publisher_that_only_jobs_hold_back_goes_on_when_they_are_none_any_more() -> None:
    talk = Talk(publish_window_messages=8)
    publisher, worker = talk.peer(), talk.peer()
    declared(publisher, "jobs", acknowledge=True)
    publisher.topic("jobs")
    worker.subscribe("jobs", queue_group="g", queue_messages=1)
    (work,) = talk.state.router.topics["jobs"].works.values()
    work.queue.messages_max = 4
    for number in range(8):
        publisher.publish("jobs", b"%d" % number)
    assert talk.state.router.topics["jobs"].held_back
    before = publisher.topic_credit("jobs")[0]
    declared(publisher, "jobs", acknowledge=False)
    assert publisher.topic_credit("jobs")[0] > before
