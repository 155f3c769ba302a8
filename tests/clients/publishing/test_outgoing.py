"""What a client may send: credit, large messages that are given up, and the bounds of a session. Pure."""

from __future__ import annotations

import numpy as np
import pytest

from broker.errors import ConnectionClosed, LimitExceeded
from broker.limits import (
    CHUNK_BYTES,
    HEARTBEAT_INTERVAL_S,
    HEARTBEAT_TIMEOUT_S,
    MIB,
    PUBLISH_WINDOW_BYTES,
    PUBLISH_WINDOW_MESSAGES,
)
from broker.protocol.bodies import Hello, Subscribe, Welcome
from broker.protocol.frames import HEADER, Flag, Frame, Kind, Lane
from broker.protocol.session import Event, Session
from clients.connection.core import Core, Outbound, try_publish
from clients.connection.signals import Pending
from clients.reading.messages import Sent

WINDOW_MESSAGES, WINDOW_BYTES = PUBLISH_WINDOW_MESSAGES, PUBLISH_WINDOW_BYTES


def connected_core() -> tuple[Core, Session]:
    core = Core("test", lambda request, answer: Sent(), lambda delivery, **how: Sent())
    return core, connect(core)


def connect(core: Core) -> Session:
    session = Session(
        hello=Hello("test"),
        now_ns=0,
        allocate=core.allocate,
        heartbeat_interval_s=HEARTBEAT_INTERVAL_S,
        heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S,
    )
    session._move(Event.OPENED, None)
    session.unsent, session.unsent_bytes = [], 0
    core.connected(session, Welcome(1, "test", 262_144, WINDOW_MESSAGES, WINDOW_BYTES, 5000, 30_000))
    return session


def drain(core: Core, session: Session) -> list[int]:
    """Sends everything; the kinds of the frames."""
    sent: list[bytes] = []

    def send(buffers: list[object]) -> int:
        sent.extend(bytes(buffer) for buffer in buffers)
        return sum(len(buffer) for buffer in buffers)

    session.flush(send)
    core.outgoing.link_drained()
    kinds, data = [], b"".join(sent)
    while data:
        fields = HEADER.unpack_from(data)
        kinds.append(fields[0])
        data = data[HEADER.size + fields[8] + fields[9] :]
    return kinds


def large(lane: str = "default", size: int = MIB) -> Outbound:
    return Outbound.of("t", b"x" * size, lane)


def test_a_large_message_in_the_control_lane_uses_no_credit() -> None:
    core, session = connected_core()
    for _ in range(20):
        try_publish(core, large("control"), 0, 0)
        drain(core, session)
    topic = core.outgoing.topics["t"]
    assert (topic.credit_messages, topic.credit_bytes) == (WINDOW_MESSAGES, WINDOW_BYTES)


def test_a_large_message_is_charged_with_its_body_and_all_its_chunks() -> None:
    core, session = connected_core()
    message = large()
    message.headers = {"name": "v" * 1000}
    try_publish(core, message, 0, 0)
    drain(core, session)
    topic = core.outgoing.topics["t"]
    charged = MIB + len(message.body())
    assert (topic.credit_messages, topic.credit_bytes) == (WINDOW_MESSAGES - 1, WINDOW_BYTES - charged)


def test_a_large_message_that_is_given_up_before_it_began_is_never_heard_of() -> None:
    core, session = connected_core()
    stream = try_publish(core, large(), 0, 0)
    core.outgoing.streams.give_up(core.session, stream, "not wanted")
    assert drain(core, session) == [Kind.TOPIC]
    assert stream.ready
    assert isinstance(stream.error, ConnectionClosed)


def test_a_large_message_that_is_given_up_in_the_middle_is_aborted() -> None:
    core, session = connected_core()
    stream = try_publish(core, large(), 0, 0)
    session.to_send(budget_bytes=300_000)
    core.outgoing.streams.give_up(core.session, stream, "not wanted")
    assert drain(core, session)[-1] == Kind.STREAM_ABORT


def test_the_end_of_a_message_that_was_given_up_is_not_overtaken_by_the_next_one() -> None:
    core, session = connected_core()
    stream = try_publish(core, Outbound.of("a", bytes(4 * CHUNK_BYTES), "bulk"), 0, 0)
    session.to_send()
    core.outgoing.streams.give_up(core.session, stream, "not wanted")
    try_publish(core, Outbound.of("a", bytes(CHUNK_BYTES), "control"), 0, 0)
    kinds = [kind for kind in drain(core, session) if kind != Kind.TOPIC]
    assert kinds[0] == Kind.PUBLISH
    assert kinds[-3:] == [Kind.STREAM_ABORT, Kind.PUBLISH, Kind.CHUNK]


def test_a_large_message_that_is_given_up_with_its_last_chunk_on_the_link_arrives_unharmed() -> None:
    core, session = connected_core()
    memory = bytearray(b"x" * 20_000)
    stream = try_publish(core, Outbound("t", Lane.DEFAULT, 1, None, memoryview(memory)), 0, 0)
    session.to_send()
    core.outgoing.streams.give_up(core.session, stream, "not wanted")
    memory[:] = b"y" * 20_000
    left = b"".join(bytes(buffer) for buffer in session.unsent)
    assert left.endswith(b"x" * 20_000)
    assert Kind.STREAM_ABORT not in drain(core, session)


def test_a_state_dict_leaves_in_full_chunks_from_the_memory_of_its_tensors() -> None:
    core, session = connected_core()
    weights = {f"layer.{number}": np.full(40_000 + number, number) for number in range(6)}
    message = Outbound.of("t", weights, "default")
    assert 3 * CHUNK_BYTES < len(message.payload) < PUBLISH_WINDOW_BYTES
    try_publish(core, message, 0, 0)
    sent: list[memoryview] = []

    def send(buffers: list[memoryview]) -> int:
        sent.extend(buffers)
        return sum(map(len, buffers))

    session.flush(send)
    payload = b"".join(bytes(buffer) for buffer in sent)
    sizes, arrived = [], b""
    while payload:
        kind, body_bytes, size = HEADER.unpack_from(payload)[0], *HEADER.unpack_from(payload)[8:10]
        if kind == Kind.CHUNK:
            sizes.append(size)
            arrived += payload[HEADER.size : HEADER.size + size]
        payload = payload[HEADER.size + body_bytes + size :]
    assert arrived == bytes(message.payload)
    assert set(sizes[:-1]) == {CHUNK_BYTES}
    views = [np.frombuffer(buffer, np.uint8) for buffer in sent if len(buffer) > 4096]
    assert sum(view.nbytes for view in views) > 0.99 * sum(array.nbytes for array in weights.values())
    assert all(any(np.shares_memory(view, array) for array in weights.values()) for view in views)


def test_no_more_large_messages_are_under_way_than_a_broker_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.publishing.streaming.STREAMS_PER_SESSION_MAX", 2)
    core, session = connected_core()
    for topic in ("a", "b"):
        try_publish(core, Outbound.of(topic, b"x" * MIB, "default"), 0, 0)
    third = Outbound.of("c", b"x" * MIB, "default")
    assert try_publish(core, third, 0, 0) is core.outgoing.streams.room
    assert not core.outgoing.streams.room.ready
    drain(core, session)
    assert core.outgoing.streams.room.ready
    assert try_publish(core, third, 0, 0) is core.outgoing.topics["c"].stream


def test_one_topic_too_many_is_refused_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.publishing.outgoing.TOPICS_PER_SESSION_MAX", 3)
    core, session = connected_core()
    for name in ("a", "b", "$inbox/1"):
        try_publish(core, Outbound.of(name, 1, "default"), 0, 0)
    try_publish(core, Outbound.of("$inbox/2", 1, "default"), 0, 0)
    assert core.outgoing.topics["$inbox/2"].number == 3
    try_publish(core, Outbound.of("c", 1, "default"), 0, 0)
    with pytest.raises(LimitExceeded, match="topics_per_session_max: 4 is over the limit of 3"):
        try_publish(core, Outbound.of("d", 1, "default"), 0, 0)
    try_publish(core, Outbound.of("a", 2, "default"), 0, 0)
    assert drain(core, session).count(Kind.PUBLISH) == 6


def test_control_messages_wait_when_the_link_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.connection.core.CONTROL_QUEUE_BYTES_MAX", 1000)
    core, session = connected_core()
    small = Outbound.of("t", b"x" * 600, "control")
    signals = [try_publish(core, small, 0, 0) for _ in range(4)]
    assert signals[-1] is core.outgoing.link_room
    drain(core, session)
    assert core.outgoing.link_room.ready


def test_who_waits_for_a_link_that_takes_none_is_told_when_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.connection.core.CONTROL_QUEUE_BYTES_MAX", 1000)
    core, _ = connected_core()
    small = Outbound.of("t", b"x" * 600, "control")
    room = [try_publish(core, small, 0, 0) for _ in range(4)][-1]
    assert room is core.outgoing.link_room
    assert not room.ready
    core.close(ConnectionClosed("closed"))
    assert room.ready
    with pytest.raises(ConnectionClosed):
        try_publish(core, small, 0, 0)


def test_messages_that_may_be_lost_add_up_until_they_are_told() -> None:
    core, _ = connected_core()
    for number in range(5):
        try_publish(core, Outbound.of("t", number, "control"), 0, 0)
    core.disconnected(ConnectionClosed("one"))
    connect(core)
    try_publish(core, Outbound.of("t", 6, "control"), 0, 0)
    core.disconnected(ConnectionClosed("two"))
    assert core.lost is not None
    assert core.lost.lost_messages_max == 6


def test_who_waits_for_the_latest_asks_a_new_session_again() -> None:
    core, session = connected_core()
    subscription, _ = core.subscribe(Subscribe("t", "latest", 1))
    core.send(subscription.ask())
    drain(core, session)
    core.disconnected(ConnectionClosed("gone"))
    assert Kind.CREDIT in drain(core, connect(core))


def test_an_answer_that_nobody_waits_for_is_forgotten() -> None:
    core, _ = connected_core()
    pending = Pending("something")
    core.pending(pending)
    core.forget(pending)
    assert core._pendings == {}


def test_wishes_that_cannot_be_encoded_leave_nothing_behind() -> None:
    core, _ = connected_core()
    with pytest.raises(TypeError):
        core.subscribe(Subscribe("t", queue_messages=1j))  # type: ignore[arg-type]
    assert core.incoming.subscriptions == {}
    assert core._pendings == {}


def test_a_malformed_reply_ends_no_session() -> None:
    core, _ = connected_core()
    core.receive(Frame(Kind.TOPIC, number=1, body=b"\x81\xa4name\xa8$inbox/1"), 0)
    core.receive(Frame(Kind.DELIVER, number=1, target=0, body=b"\xc1", payload=b"x"), 0)
    assert core.session is not None


@pytest.mark.parametrize("payload", [b"", b"x" * 64])
def test_a_message_has_the_same_bytes_whether_or_not_something_waits_in_front_of_it(payload: bytes) -> None:
    written = []
    for waiting in (False, True):
        core, session = connected_core()
        try_publish(core, Outbound.of("t", 1, "default"), 0, 0)
        drain(core, session)
        if waiting:
            session.put(Frame(Kind.PING, lane=Lane.CONTROL))
        message = Outbound("t", Lane.DEFAULT, 1, None, payload, {"key": "text"}, last=True)
        message.request, message.reference, message.flags, message.priority = (1 << 63) - 1, 7, Flag.LAST, 9
        try_publish(core, message, 10**9, 5)
        assert session.has_unsent()
        topic = core.outgoing.topics["t"]
        data = b"".join(bytes(buffer) for buffer in session.to_send())
        written.append((data[HEADER.size * waiting :], topic.credit_messages, topic.credit_bytes))
    assert written[0] == written[1]
    assert len(written[0][0]) == HEADER.size + len(message.body()) + len(payload)
