"""Lines in the broker: who is offered one."""

from __future__ import annotations

import gc
import os

import pytest

from broker.limits import LINES_PER_SESSION_MAX
from broker.protocol.line import AVAILABLE
from broker.topics.policy import Declaration
from tests.state.harness import Talk
from tests.state.liners import Liner, line_memory

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


@pytest.fixture
def talk() -> Talk:
    return Talk(line_memory=line_memory)


@pytest.fixture
def publisher(talk: Talk) -> Liner:
    return Liner(talk, "publisher", bell=False)


@pytest.fixture
def reader(talk: Talk) -> Liner:
    reader = Liner(talk, "reader")
    reader.peer.subscribe("a", queue_messages=1000)
    return reader


def test_of_a_second_publisher_neither_gets_one(talk: Talk, publisher: Liner, reader: Liner) -> None:
    Liner(talk, "second").peer.topic("a")
    for _ in range(100):
        publisher.peer.publish("a", b"x")
    assert not publisher.offers()


@pytest.mark.parametrize("settings", [{"lane": "bulk"}, {"max_message_bytes": 10}, {"acknowledge": True}])
def test_topics_with_a_policy_of_their_own_get_none(settings: dict[str, object]) -> None:
    talk = Talk(line_memory=line_memory, declarations=(Declaration("a", settings, "here"),))
    publisher, reader = Liner(talk, "publisher"), Liner(talk, "reader")
    reader.peer.subscribe("a", queue_messages=1000)
    for _ in range(20):
        publisher.peer.publish("a", b"x")
    assert not publisher.offers()


@pytest.mark.parametrize("who", ["nobody", "a plain one too", "a responder", "a group", "one without room"])
def test_topics_whose_readers_cannot_all_read_get_none(talk: Talk, publisher: Liner, who: str) -> None:
    reader = Liner(talk, "reader")
    if who != "nobody":
        reader.peer.subscribe("a", queue_messages=12 if who == "one without room" else 1000)
    if who == "a plain one too":
        talk.peer("plain").subscribe("#")
    elif who == "a responder":
        reader.peer.subscribe("a", responder=True)
    elif who == "a group":
        reader.peer.subscribe("a", queue_group="g")
    for _ in range(20):
        publisher.peer.publish("a", b"x")
    assert not publisher.offers()


def test_who_does_not_know_lines_is_offered_none(talk: Talk, reader: Liner) -> None:
    old = Liner(talk, "old", lines=0)
    for _ in range(100):
        old.peer.publish("a", b"x")
    assert not old.offers()


def test_a_session_has_a_bounded_number_of_lines(talk: Talk, publisher: Liner) -> None:
    reader = Liner(talk, "reader")
    reader.peer.subscribe("#", queue_messages=1000)
    for number in range(LINES_PER_SESSION_MAX + 5):
        for _ in range(8):
            publisher.peer.publish(f"t/{number}", b"x")
    assert len(publisher.offers()) == LINES_PER_SESSION_MAX


def test_lines_leave_descriptors_for_connections(caplog: pytest.LogCaptureFixture) -> None:
    talk = Talk(line_memory=line_memory, arena_descriptor_max=2)
    publisher, reader = Liner(talk, "publisher"), Liner(talk, "reader")
    reader.peer.subscribe("a", queue_messages=1000)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        publisher.peer.publish("a", b"x")
    assert not publisher.offers()
    assert "the others are for connections" in caplog.text
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before
