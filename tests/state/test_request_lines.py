"""Requests and replies on lines: the broker learns of both late, and knows of each what it would have known at once."""

from __future__ import annotations

import pytest

from broker.limits import LINE_AFTER_MESSAGES
from broker.protocol.bodies import MessageBody, encode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
from broker.protocol.line import AVAILABLE
from broker.security.identity import Identity
from tests.state.harness import Talk
from tests.state.liners import Liner, line_memory
from tests.state.test_authority import permissions, role

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


class Pair:
    """A requester and a responder, whose requests and replies are on lines.

    Attributes:
        asker, responder: they.
        inbox: of the first one.
    """

    def __init__(self, talk: Talk, *, queue_group: str = "") -> None:
        self.talk = talk
        self.asker, self.responder = Liner(talk, "asker"), Liner(talk, "responder")
        self.number = self.responder.peer.subscribe("a", responder=True, queue_group=queue_group)
        self.inbox = f"$inbox/{self.asker.peer.record.id}"
        for number in range(1, LINE_AFTER_MESSAGES + 1):
            self.asker.peer.publish("a", b"?", Flag.REQUEST, target=number, sequence=number, body=self._body(number))
            self.responder.peer.publish(self.inbox, b"!", Flag.LAST, sequence=number, body=self._body(number))

    def begin(self) -> None:
        self.asker.accept()
        self.asker.start("a")
        self.responder.accept()
        self.responder.start(self.inbox)
        assert len(self.talk.state.router.lines) == 2
        assert not self.followed

    def _body(self, number: int) -> bytes:
        return encode_body(MessageBody(reply_to=self.inbox, request=number))

    def ask(self, number: int) -> None:
        body = self._body(number)
        assert self.asker.write("a", b"?", Flag.REQUEST, body=body, target=number, sequence=number) >= 0

    def reply(self, number: int, payload: bytes = b"!") -> None:
        body = self._body(number)
        assert self.responder.write(self.inbox, payload, Flag.LAST, body=body, sequence=number) >= 0

    @property
    def followed(self) -> int:
        return len(self.talk.state.own.requests)

    @property
    def cancelled(self) -> list[int]:
        """The requests that the responder was told to stop."""
        return [frame.sequence for frame in self.responder.peer.all_of(Kind.CANCEL)]

    @property
    def lost(self) -> list[tuple[int, int]]:
        """What the requester was told of requests to which no reply will come: reference and responders left."""
        assert {failure.code for failure in self.asker.peer.failures()} <= {Code.RESPONDER_LOST}
        return [(frame.target, frame.count) for frame in self.asker.peer.all_of(Kind.ERROR)]


@pytest.fixture
def talk() -> Talk:
    return Talk(line_memory=line_memory)


@pytest.fixture
def pair(talk: Talk) -> Pair:
    pair = Pair(talk)
    pair.begin()
    return pair


@pytest.mark.parametrize("queue_group", ["", "workers"])
def test_the_only_responder_is_asked_on_a_line_and_replies_on_another(talk: Talk, queue_group: str) -> None:
    pair = Pair(talk, queue_group=queue_group)
    assert [offer.flags for offer in (*pair.asker.offers(), *pair.responder.offers())] == [Flag.REQUEST] * 2
    pair.begin()
    pair.ask(100)
    assert pair.responder.read() == [b"?"]
    pair.reply(100, b"yes")
    assert pair.asker.read() == [b"yes"]
    talk.tick(0.1)
    assert (pair.followed, pair.cancelled, pair.lost) == (0, [], [])
    assert len(talk.state.router.lines) == 2


@pytest.mark.parametrize("queue_group", ["", "workers"])
def test_where_two_respond_there_is_no_line(talk: Talk, queue_group: str) -> None:
    Liner(talk, "other").peer.subscribe("a", responder=True, queue_group=queue_group)
    assert not Pair(talk, queue_group=queue_group).asker.offers()


def test_a_reply_that_is_taken_in_before_its_request_ends_it_all_the_same(pair: Pair) -> None:
    pair.ask(100)
    pair.reply(100)
    pair.responder.drain(pair.inbox)
    assert (pair.followed, pair.cancelled) == (0, [])
    pair.asker.drain("a")
    assert (pair.followed, pair.cancelled) == (0, [])


def test_a_reply_by_the_socket_ends_a_request_that_stands_on_a_line(pair: Pair) -> None:
    pair.ask(100)
    pair.responder.peer.publish(pair.inbox, b"!", Flag.LAST, sequence=100)
    assert (pair.followed, pair.cancelled) == (0, [])
    assert [frame.payload for frame in pair.asker.peer.delivered(0)][-1:] == [b"!"]


def test_a_request_that_stands_on_a_line_can_be_cancelled(pair: Pair) -> None:
    pair.ask(100)
    pair.ask(101)
    pair.asker.peer.put(Kind.CANCEL, sequence=100)
    assert pair.cancelled == [100]
    assert pair.followed == 1


def test_a_reply_that_stands_on_a_line_comes_before_the_cancellation(pair: Pair) -> None:
    pair.ask(100)
    pair.reply(100)
    pair.asker.peer.put(Kind.CANCEL, sequence=100)
    assert (pair.followed, pair.cancelled) == (0, [])


@pytest.mark.parametrize("read", [0, 1, 2])
@pytest.mark.parametrize("drained", [False, True])
def test_a_responder_that_dies_is_told_of_for_each_request_without_a_reply(
    pair: Pair, read: int, drained: bool
) -> None:
    pair.ask(100)
    pair.ask(101)
    pair.responder.read(read)
    if drained:
        pair.asker.drain("a")
    pair.responder.peer.die()
    assert sorted(pair.lost) == [(100, 0), (101, 0)]
    assert not pair.followed


@pytest.mark.parametrize("taken", [False, True])
def test_a_reply_that_its_responder_wrote_before_it_died_counts(pair: Pair, taken: bool) -> None:
    pair.ask(100)
    pair.ask(101)
    before = len(pair.asker.peer.delivered(0))
    pair.reply(100, b"last words")
    if taken:
        assert pair.asker.read() == [b"last words"]
    pair.responder.peer.die()
    delivered = [bytes(frame.payload) for frame in pair.asker.peer.delivered(0)[before:]]
    assert delivered == ([] if taken else [b"last words"])
    assert pair.lost == [(101, 0)]


def test_what_a_requester_asked_before_it_died_is_cancelled(pair: Pair) -> None:
    pair.ask(100)
    pair.ask(101)
    pair.reply(100)
    pair.asker.peer.die()
    assert pair.cancelled == [101]
    assert not pair.followed


def test_when_another_one_responds_the_line_ends_and_nothing_is_asked_twice(talk: Talk, pair: Pair) -> None:
    pair.ask(100)
    pair.ask(101)
    before = len(pair.responder.peer.delivered(pair.number))
    assert pair.responder.read(1) == [b"?"]
    other = Liner(talk, "other").peer
    other.subscribe("a", responder=True)
    (again,) = pair.responder.peer.delivered(pair.number)[before:]
    assert again.flags & Flag.REQUEST
    assert not other.delivered()
    assert (pair.followed, pair.lost) == (2, [])


def test_a_responder_that_stops_responding_loses_what_it_has_not_read(pair: Pair) -> None:
    pair.ask(100)
    pair.ask(101)
    pair.responder.read(1)
    pair.responder.peer.reading = False
    pair.responder.peer.put(Kind.UNSUBSCRIBE, number=pair.number, target=5, lane=Lane.CONTROL)
    pair.responder.peer.reading = True
    pair.reply(100)
    pair.responder.drain(pair.inbox)
    assert 100 not in [reference for reference, _ in pair.lost]


@pytest.mark.parametrize(
    ("topic", "flags", "sequence"),
    [
        ("a", Flag.LAST, 100),
        ("a", Flag.REQUEST | Flag.ACKNOWLEDGE, 100),
        ("a", Flag.REQUEST | Flag.BATCH, 100),
        ("a", Flag.REQUEST | Flag.TRACED, 100),
        ("inbox", Flag.REQUEST, 100),
        ("inbox", Flag.LAST | Flag.ACKNOWLEDGE, 100),
    ],
)
def test_what_cannot_travel_on_a_line_ends_the_session_that_wrote_it(
    pair: Pair, topic: str, flags: int, sequence: int
) -> None:
    writer, name = (pair.asker, "a") if topic == "a" else (pair.responder, pair.inbox)
    writer.write(name, b"x", flags, sequence=sequence)
    writer.drain(name)
    assert not writer.peer.is_open


def test_a_request_on_a_line_where_nobody_responds_ends_its_session(talk: Talk) -> None:
    publisher, reader = Liner(talk, "publisher", bell=False), Liner(talk, "reader")
    reader.peer.subscribe("a")
    publisher.go_on_line("a")
    publisher.write("a", b"?", Flag.REQUEST, sequence=1)
    publisher.drain("a")
    assert not publisher.peer.is_open


@pytest.mark.parametrize("may_request", [False, True])
def test_whoever_may_publish_and_not_request_gets_no_line_to_a_responder(may_request: bool) -> None:
    rights = {"publish": ("a",), "request": ("a",)} if may_request else {"publish": ("a",)}
    talk = Talk(line_memory=line_memory, permissions=permissions(some=role(rights), other=role({"respond": ("a",)})))
    responder = Liner(talk, "responder", identity=Identity("responder", ("other",)))
    responder.peer.subscribe("a", responder=True)
    publisher = Liner(talk, "publisher", identity=Identity("publisher", ("some",)))
    for _ in range(LINE_AFTER_MESSAGES):
        publisher.peer.publish("a", b"x")
    assert bool(publisher.offers()) == may_request
