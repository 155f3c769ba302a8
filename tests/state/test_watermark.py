"""When memory runs short: publishers are held back, then nothing new is taken, then the heaviest goes."""

from __future__ import annotations

import pytest

from broker.limits import CHUNK_BYTES, MIB
from broker.protocol.bodies import Declare, Join, Subscribe
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
from broker.state.watermark import Level
from tests.state.harness import Peer, Talk
from tests.state.pressing import Watcher

LIMIT = 1000


def look(talk: Talk, used: int) -> None:
    talk.state.watermark.look(used, LIMIT, talk.state.sessions.values())
    talk.settle()


@pytest.fixture
def talk() -> Talk:
    return Talk(publish_window_messages=8)


@pytest.mark.parametrize(
    ("path", "levels"),
    [
        ([0, 749, 750, 849, 850, 949, 950, 2000], [0, 0, 1, 1, 2, 2, 3, 3]),
        ([950, 949, 900, 899, 850, 800, 799, 750, 700, 699], [3, 3, 3, 2, 2, 2, 1, 1, 1, 0]),
        ([750, 740, 760, 740, 700, 690, 740, 750], [1, 1, 1, 1, 1, 0, 0, 1]),
        ([960, 100, 960], [3, 0, 3]),
    ],
)
def test_levels_begin_at_their_marks_and_end_below(talk: Talk, path: list[int], levels: list[int]) -> None:
    found = []
    for used in path:
        look(talk, used)
        found.append(int(talk.state.watermark.level))
    assert found == levels


def credit_of(publisher: Peer) -> int:
    return sum(frame.count for frame in publisher.all_of(Kind.CREDIT))


def test_publishers_get_no_credit_while_memory_is_short_and_all_of_it_afterwards(talk: Talk) -> None:
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    look(talk, 750)
    for _ in range(8):
        publisher.publish("a", b"x")
    assert credit_of(publisher) == 0
    assert len(reader.payloads()) == 8
    look(talk, 720)
    assert credit_of(publisher) == 0
    look(talk, 699)
    assert credit_of(publisher) == 8


def test_what_was_held_back_by_a_reader_too_waits_for_it_still(talk: Talk) -> None:
    publisher, reader = talk.peer(), talk.peer()
    reader.subscribe("a", queue_messages=1)
    for _ in range(8):
        publisher.publish("a", b"x")
    before = credit_of(publisher)
    look(talk, 800)
    look(talk, 0)
    assert credit_of(publisher) == before


def test_nothing_new_is_taken_and_the_error_names_the_limit(talk: Talk) -> None:
    peer = talk.peer()
    look(talk, 850)
    peer.put(Kind.SUBSCRIBE, body=Subscribe("a"), number=9, target=5)
    peer.put(Kind.JOIN, body=Join("dp", 1), target=6)
    peer.put(Kind.DECLARE, body=Declare("a", ring_messages=1), target=7)
    peer.publish("a", b"x", flags=Flag.ACKNOWLEDGE, target=8)
    failures = peer.failures()
    assert [(failure.code, failure.limit, failure.value, failure.maximum) for failure in failures] == [
        (Code.LIMIT, "memory_max_bytes", 850, LIMIT)
    ] * 4
    assert peer.is_open
    late = talk.peer()
    assert late.session.failure.code == Code.LIMIT
    assert "memory_max_bytes: 850 of 1000; from 85 % on nothing new is taken, until" in str(late.session.failure)
    look(talk, 0)
    assert talk.peer().is_open
    peer.subscribe("a")
    peer.publish("a", b"y")
    assert peer.payloads() == [b"y"]


def test_each_refused_message_is_told_and_counted(talk: Talk) -> None:
    peer = talk.peer()
    peer.publish("a", b"x")
    look(talk, 850)
    for _ in range(3):
        peer.publish("a", b"x")
    peer.publish_batch("a", [b"1", b"2"])
    assert [failure.limit for failure in peer.failures()] == ["memory_max_bytes"] * 4
    assert talk.state.router.topics["a"].refused == 5


def test_control_messages_and_replies_pass(talk: Talk) -> None:
    peer, reader = talk.peer(), talk.peer()
    reader.subscribe("control/#")
    look(talk, 900)
    peer.publish("control/stop", b"now", lane=Lane.CONTROL)
    peer.publish(f"$inbox/{reader.record.id}", b"reply")
    assert reader.payloads() == [b"now", b"reply"]
    peer.publish("control/large", bytes(64 * 1024), lane=Lane.CONTROL)
    assert peer.failures()[-1].limit == "memory_max_bytes"


def test_a_large_message_that_is_refused_comes_in_and_goes_nowhere(talk: Talk) -> None:
    peer, reader = talk.peer(), talk.peer()
    reader.subscribe("a")
    look(talk, 850)
    stream = peer.open_stream("a", 2 * CHUNK_BYTES)
    peer.chunk(stream, bytes(CHUNK_BYTES))
    peer.chunk(stream, bytes(CHUNK_BYTES), last=True)
    assert peer.is_open
    assert reader.delivered() == []
    assert talk.state.held_bytes() == 0


def test_at_last_the_session_for_which_most_waits_is_closed_and_only_it(talk: Talk) -> None:
    publisher, slow, slower = talk.peer(), talk.peer("slow"), talk.peer("slower")
    slow.reading = slower.reading = False
    for reader, topics in ((slow, ("a",)), (slower, ("a", "b"))):
        for topic in topics:
            reader.subscribe(topic, "drop_oldest", queue_messages=100)
    for topic in ("a", "b"):
        for _ in range(8):
            publisher.publish(topic, bytes(MIB // 4))
    look(talk, 940)
    assert len(talk.state.sessions) == 3
    closed = talk.state.watermark.look(950, LIMIT, talk.state.sessions.values())
    assert closed is slower.record
    assert "memory has run out" in str(closed.session.failure)
    assert [record.session.failure for record in talk.state.sessions.values() if record is not closed] == [None] * 2


def test_what_is_kept_for_replay_is_let_go_of_by_halves(talk: Talk) -> None:
    publisher = talk.peer()
    for number in range(8):
        publisher.publish(f"t/{number}", bytes(1000))
    before = talk.state.router.retained_bytes
    talk.state.watermark.make_room()
    assert before // 2 <= talk.state.router.retained_bytes <= before * 3 // 4
    look(talk, 950)
    assert talk.state.router.retained_bytes <= before * 3 // 8
    assert publisher.is_open


def test_each_change_is_announced(talk: Talk) -> None:
    watcher = Watcher(talk)
    for used in (750, 760, 850, 0):
        look(talk, used)
    told = [event for event in watcher.told() if event["event"] == "memory"]
    assert [(event["before"], event["level"], event["used_bytes"], event["limit_bytes"]) for event in told] == [
        ("normal", "push_back", 750, LIMIT),
        ("push_back", "refuse", 850, LIMIT),
        ("refuse", "normal", 0, LIMIT),
    ]


def test_a_limit_that_cannot_be_is_no_division_by_zero(talk: Talk) -> None:
    talk.state.watermark.look(1, 0, [])
    assert talk.state.watermark.level is Level.SHED
