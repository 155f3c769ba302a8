"""What a client does about a topic's policy: lanes, lengths, batches. Pure."""

from __future__ import annotations

import pytest

from broker.errors import ConnectionClosed, LimitExceeded, ProtocolError
from broker.protocol.bodies import Declare, Failure, PublishPolicy, Subscribe, Subscribed, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import HEADER, Frame, Kind, Lane
from broker.protocol.session import Session
from clients.connection.core import Core, Outbound, try_publish
from clients.publishing.outgoing import BATCH_OPENED, BATCHED, SENT
from tests.clients.publishing.test_outgoing import connect, connected_core, drain

US = 1000


def headers(core: Core, session: Session) -> list[tuple[int, int, int]]:
    """Sends everything; kind, lane and target of the frames."""
    sent: list[bytes] = []

    def send(buffers: list[object]) -> int:
        sent.extend(bytes(buffer) for buffer in buffers)
        return sum(len(buffer) for buffer in buffers)

    session.flush(send)
    core.outgoing.link_drained()
    found, data = [], b"".join(sent)
    while data:
        fields = HEADER.unpack_from(data)
        found.append((fields[0], fields[2], fields[5]))
        data = data[HEADER.size + fields[8] + fields[9] :]
    return found


def publish(core: Core, payload: bytes = b"x", lane: str | None = None, now_ns: int = 0) -> object:
    return try_publish(core, Outbound.of("t", payload, lane), now_ns, 0)


def told(core: Core, **policy: object) -> None:
    """The broker tells the policy of the topic t."""
    core.outgoing.topic("t")
    core.receive(Frame(Kind.POLICY, number=1, body=encode_body(PublishPolicy(**policy))), 0)


def refuse(core: Core, number: int = 1) -> None:
    failure = Failure(Code.LIMIT, "shorter ones", "max_message_bytes", 9, 5)
    core.receive(Frame(Kind.ERROR, number=number, body=encode_body(failure)), 0)


def rapid(core: Core, messages: int) -> list[object]:
    """Publishes messages a microsecond apart."""
    return [publish(core, now_ns=US * number) for number in range(1, messages + 1)]


@pytest.mark.parametrize(("lane", "number"), [("control", Lane.CONTROL), ("bulk", Lane.BULK)])
def test_a_message_without_a_lane_takes_its_topics(lane: str, number: Lane) -> None:
    core, session = connected_core()
    told(core, lane=lane)
    publish(core)
    publish(core, b"y" * 20_000)
    publish(core, lane="default")
    published = [lane for kind, lane, _ in headers(core, session) if kind == Kind.PUBLISH]
    assert sorted(published) == sorted([number, number, Lane.DEFAULT])


def test_the_shortest_way_is_not_for_topics_with_a_lane_or_a_limit() -> None:
    core, _ = connected_core()
    for policy in ({"lane": "bulk"}, {"max_message_bytes": 5}):
        told(core, **policy)
        assert core.outgoing.publish_plain("t", Lane.DEFAULT, 1, b"x", 0, 0, urgent=False) is None
    for policy in ({}, {"batch_bytes": 5, "batch_window_us": 9}):
        told(core, **policy)
        assert core.outgoing.publish_plain("t", Lane.DEFAULT, 1, b"x", 0, 0, urgent=False) is SENT


@pytest.mark.parametrize("size", [6, 20_000])
def test_a_message_that_is_too_long_is_refused_here(size: int) -> None:
    core, session = connected_core()
    told(core, max_message_bytes=5)
    drain(core, session)
    with pytest.raises(
        LimitExceeded, match=f"max_message_bytes: {size} is over the limit of 5; the policy of topic 't'"
    ):
        publish(core, b"x" * size)
    assert drain(core, session) == []
    assert publish(core, b"12345") is SENT


def test_what_the_broker_refused_is_raised_once_by_the_next_publish() -> None:
    core, _ = connected_core()
    publish(core)
    refuse(core)
    assert core.outgoing.publish_plain("t", Lane.DEFAULT, 1, b"x", 0, 0, urgent=False) is None
    with pytest.raises(LimitExceeded, match="max_message_bytes: 9 is over the limit of 5; shorter ones"):
        publish(core)
    assert publish(core) is SENT
    assert core.outgoing.publish_plain("t", Lane.DEFAULT, 1, b"x", 0, 0, urgent=False) is SENT


def test_what_the_broker_refused_is_raised_once_by_a_flush() -> None:
    core, _ = connected_core()
    publish(core)
    refuse(core)
    with pytest.raises(LimitExceeded):
        core.outgoing.take_refusal()
    core.outgoing.take_refusal()
    assert publish(core) is SENT


def test_a_refusal_of_what_nobody_waits_for_is_no_fault_of_the_broker() -> None:
    core, _ = connected_core()
    refuse(core, number=0)
    assert core.session is not None


def test_a_batch_leaves_when_it_has_the_topics_bytes() -> None:
    core, session = connected_core()
    told(core, batch_bytes=3 * 17)
    drain(core, session)
    outcomes = rapid(core, 11)
    assert outcomes[:7] == [SENT] * 7
    assert outcomes[7:] == [BATCH_OPENED, BATCHED, SENT, BATCH_OPENED]


def test_a_batch_leaves_after_the_topics_window() -> None:
    core, _ = connected_core()
    told(core, batch_window_us=5000)
    rapid(core, 8)
    opened_ns = 8 * US
    assert core.outgoing.batches_due_ns() == opened_ns + 5000 * US
    core.tick(opened_ns + 4999 * US)
    assert publish(core, now_ns=opened_ns + 4999 * US) is BATCHED
    core.tick(opened_ns + 5000 * US)
    assert core.outgoing.open_batches == []
    assert core.outgoing.batches_due_ns() is None


def test_the_batch_that_is_due_first_is_told_whichever_was_opened_first() -> None:
    core, _ = connected_core()
    told(core, batch_window_us=5000)
    rapid(core, 8)
    for number in range(1, 9):
        try_publish(core, Outbound.of("u", 1, None), US * number, 0)
    assert [topic.name for topic in core.outgoing.open_batches] == ["t", "u"]
    assert core.outgoing.batches_due_ns() == (8 + 200) * US
    core.tick(300 * US)
    assert [topic.name for topic in core.outgoing.open_batches] == ["t"]


@pytest.mark.parametrize("policy", [{"batch_bytes": 0}, {"batch_window_us": 0}])
def test_a_topic_without_batches_has_none(policy: dict[str, int]) -> None:
    core, _ = connected_core()
    told(core, **policy)
    assert rapid(core, 100) == [SENT] * 100


def test_a_batch_that_is_open_when_batches_end_leaves_with_the_next_message() -> None:
    core, session = connected_core()
    rapid(core, 9)
    drain(core, session)
    told(core, batch_bytes=0)
    assert publish(core, now_ns=10 * US) is SENT
    assert core.outgoing.open_batches == []
    assert drain(core, session) == [Kind.PUBLISH]


def test_a_batch_leaves_ahead_of_what_the_topics_new_lane_takes() -> None:
    core, session = connected_core()
    rapid(core, 9)
    drain(core, session)
    told(core, lane="bulk")
    publish(core, now_ns=10 * US)
    assert [lane for _, lane, _ in headers(core, session)] == [Lane.DEFAULT, Lane.BULK]


def test_another_session_starts_without_policies() -> None:
    core, _ = connected_core()
    told(core, lane="bulk", max_message_bytes=5, batch_bytes=9, batch_window_us=1)
    core.disconnected(ConnectionClosed("gone"))
    connect(core)
    topic = core.outgoing.topics["t"]
    fresh = connected_core()[0].outgoing.topic("t")
    names = ("lane", "max_message_bytes", "batch_bytes", "batch_window_ns", "burst_messages", "special")
    assert [getattr(topic, name) for name in names] == [getattr(fresh, name) for name in names]


@pytest.mark.parametrize(
    "policy",
    [{"lane": "fast"}, {"batch_bytes": -1}, {"batch_bytes": 1 << 30}, {"batch_window_us": 1 << 40},
     {"max_message_bytes": 0}],
)  # fmt: skip
def test_a_policy_that_cannot_be_is_the_brokers_fault(policy: dict[str, object]) -> None:
    core, _ = connected_core()
    with pytest.raises(ProtocolError, match="POLICY of topic 't'"):
        told(core, **policy)


@pytest.mark.parametrize("kind", [Kind.POLICY, Kind.ERROR])
def test_a_word_about_a_topic_that_was_never_named_is_the_brokers_fault(kind: Kind) -> None:
    core, _ = connected_core()
    body = encode_body(Failure(Code.LIMIT, "") if kind == Kind.ERROR else PublishPolicy())
    with pytest.raises(ProtocolError, match="topic number 4"):
        core.receive(Frame(kind, number=4, body=body), 0)


# Declarations.


def answer(core: Core, session: Session, kind: Kind = Kind.DONE, body: bytes = b"") -> None:
    """The broker answers the last question."""
    reference = headers(core, session)[-1][2]
    core.receive(Frame(kind, target=reference, body=body), 0)


def test_a_client_declares_again_what_the_broker_had_agreed_to_ahead_of_its_topics() -> None:
    core, session = connected_core()
    core.outgoing.topic("t")
    core.declare(Declare("a", ring_messages=1))
    answer(core, session)
    core.declare(Declare("b", ring_messages=1))
    answer(core, session, Kind.ERROR, encode_body(Failure(Code.DENIED, "fixed")))
    core.declare(Declare("c", ring_messages=1))
    core.disconnected(ConnectionClosed("gone"))
    assert drain(core, connect(core)) == [Kind.DECLARE, Kind.TOPIC]


def test_what_was_cleared_is_not_declared_again() -> None:
    core, session = connected_core()
    for wishes in (Declare("a", ring_messages=1), Declare("a")):
        core.declare(wishes)
        answer(core, session)
    core.disconnected(ConnectionClosed("gone"))
    assert drain(core, connect(core)) == []


# Subscriptions.


def test_the_overflow_that_the_broker_decides_holds_for_what_comes_right_behind() -> None:
    core, session = connected_core()
    subscription, _ = core.subscribe(Subscribe("t", None, 2))
    answer(core, session, body=encode_body(Subscribed("drop_oldest")))
    core.receive(Frame(Kind.TOPIC, number=1, body=b"\x81\xa4name\xa1t"), 0)
    for sequence in range(1, 5):
        core.receive(Frame(Kind.DELIVER, number=1, target=1, count=1, sequence=sequence, payload=b"\x01"), 0)
    assert (subscription.pending, subscription.dropped) == (2, 2)
    assert subscription.wishes.overflow == "drop_oldest"


def test_what_the_broker_decided_as_latest_is_asked_for() -> None:
    core, session = connected_core()
    subscription, _ = core.subscribe(Subscribe("t", None, 1000))
    assert subscription.ask() is None
    answer(core, session, body=encode_body(Subscribed("latest")))
    assert subscription.ask() is not None
