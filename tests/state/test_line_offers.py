"""Lines in the broker: who is offered one."""

from __future__ import annotations

import gc

import pytest

from broker.limits import LINE_OFFER_S, LINES_MAX, LINES_PER_SESSION_MAX
from broker.protocol.line import AVAILABLE, CLOSED
from broker.topics.policy import Declaration
from tests.descriptors import opened
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


@pytest.mark.parametrize("who", ["nobody", "a plain one too", "two responders", "a group", "one without room"])
def test_topics_whose_readers_cannot_all_read_get_none(talk: Talk, publisher: Liner, who: str) -> None:
    reader = Liner(talk, "reader")
    if who != "nobody":
        reader.peer.subscribe("a", queue_messages=12 if who == "one without room" else 1000)
    if who == "a plain one too":
        talk.peer("plain").subscribe("#")
    elif who == "two responders":
        reader.peer.subscribe("a", responder=True)
        reader.peer.subscribe("a", responder=True, queue_group="g")
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
    before = len(opened())
    for _ in range(100):
        publisher.peer.publish("a", b"x")
    assert not publisher.offers()
    assert "the others are for connections" in caplog.text
    gc.collect()
    assert len(opened()) <= before


def test_an_offer_that_nobody_takes_is_taken_back(talk: Talk, publisher: Liner, reader: Liner) -> None:
    for _ in range(8):
        publisher.peer.publish("a", b"x")
    publisher.accept()
    talk.tick(0.1)
    talk.tick(LINE_OFFER_S / 2)
    assert publisher.line in talk.state.own.lines._offered
    talk.tick(LINE_OFFER_S / 2 + 0.1)
    assert not talk.state.own.lines._offered
    assert publisher.write("a", b"y") == CLOSED
    # What it says too late is about nothing, and the next message comes by the socket.
    publisher.start("a")
    publisher.peer.publish("a", b"z")
    assert reader.peer.payloads() == [b"x"] * 8 + [b"z"]
    assert publisher.peer.is_open


def test_what_is_on_an_offer_that_was_taken_back_comes_where_it_belongs(
    talk: Talk, publisher: Liner, reader: Liner
) -> None:
    for _ in range(8):
        publisher.peer.publish("a", b"x")
    publisher.accept()
    publisher.write("a", b"on the line")
    talk.tick(0.1)
    talk.tick(LINE_OFFER_S + 0.1)
    assert publisher.write("a", b"too late") == CLOSED
    publisher.peer.publish("a", b"sent before the line began")
    publisher.start("a")
    assert reader.peer.payloads()[8:] == [b"sent before the line began", b"on the line"]
    assert not talk.state.own.lines._offered
    assert publisher.peer.is_open


def test_offers_that_nobody_takes_use_no_ones_lines_up(talk: Talk, reader: Liner) -> None:
    reader.peer.subscribe("#", queue_messages=1000)
    idle = [Liner(talk, f"idle-{number}") for number in range(LINES_MAX // LINES_PER_SESSION_MAX)]
    for place, each in enumerate(idle):
        for number in range(LINES_PER_SESSION_MAX):
            for _ in range(8):
                each.peer.publish(f"t/{place}/{number}", b"x")
    honest = Liner(talk, "honest")
    for _ in range(8):
        honest.peer.publish("h", b"x")
    assert not honest.offers()
    talk.tick(0.1)
    talk.tick(LINE_OFFER_S + 0.1)
    for _ in range(64):
        honest.peer.publish("h", b"x")
    assert honest.offers()
