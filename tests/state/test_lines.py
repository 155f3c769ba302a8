"""Lines in the broker: who gets one, what ends it, and that nobody loses or gets twice what was on it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from broker.limits import LINE_AFTER_MESSAGES, LINE_DATA_BYTES
from broker.protocol.bodies import Declare, Topic
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.line import AVAILABLE, CLOSED, NO_ROOM, VERSION
from broker.security.identity import Identity
from broker.security.quotas import Quotas
from broker.state.records import SessionRecord
from tests.state.harness import Talk
from tests.state.liners import Liner, line_memory
from tests.state.test_authority import permissions, role

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


def lines(talk: Talk) -> int:
    return len(talk.state.router.lines)


def queue_of(reader: Liner, number: int = 1) -> tuple[int, int, int]:
    """Unread messages, credit in bytes, messages delivered."""
    subscription = reader.peer.record.subscriptions[number]
    return subscription.queue.unread_messages, subscription.queue.credit_bytes, subscription.delivered


def test_the_eighth_message_in_a_frame_of_its_own_brings_an_offer(talk: Talk, publisher: Liner, reader: Liner) -> None:
    for number in range(LINE_AFTER_MESSAGES - 1):
        publisher.peer.publish("a", b"%d" % number)
    assert not publisher.offers()
    publisher.peer.publish("a", b"7")
    (offer,) = publisher.offers()
    assert (offer.lane, offer.number, offer.count) == (Lane.CONTROL, publisher.peer.topic("a"), VERSION)
    assert not offer.flags
    assert not reader.attached()
    publisher.accept()
    publisher.start("a")
    (attached,) = reader.attached()
    assert (attached.sequence, attached.lane) == (9, Lane.DEFAULT)
    assert reader.peer.names()[attached.number] == Topic("a", "publisher")


def test_what_is_published_between_the_offer_and_the_beginning_comes_by_the_socket(
    publisher: Liner, reader: Liner
) -> None:
    for number in range(10):
        publisher.peer.publish("a", b"%d" % number)
    publisher.accept()
    publisher.peer.publish("a", b"10")
    publisher.start("a")
    assert reader.peer.payloads() == [b"%d" % number for number in range(11)]
    assert reader.attached()[0].sequence == 12


def test_entries_before_the_beginning_was_heard_are_read_from_the_first(publisher: Liner, reader: Liner) -> None:
    for number in range(8):
        publisher.peer.publish("a", b"%d" % number)
    publisher.accept()
    publisher.write("a", b"early")
    publisher.start("a")
    assert reader.read() == [b"early"]


def test_a_look_that_overtakes_the_beginning_does_nothing(talk: Talk, publisher: Liner, reader: Liner) -> None:
    for number in range(8):
        publisher.peer.publish("a", b"%d" % number)
    publisher.accept()
    publisher.write("a", b"early")
    publisher.drain("a")
    assert not lines(talk)
    assert not reader.attached()
    publisher.start("a")
    assert lines(talk) == 1


def test_the_broker_keeps_counts_and_charges_what_it_drains(talk: Talk, publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    before = queue_of(reader)
    for number in range(10):
        publisher.write("a", b"%d" % number)
    topic = talk.state.router.topics["a"]
    assert topic.published == 8
    talk.tick(0.1)
    assert topic.published == 18
    assert topic.ring.next_sequence == 19
    after = queue_of(reader)
    assert (after[0] - before[0], before[1] - after[1], after[2] - before[2]) == (10, 10, 10)
    assert not reader.peer.delivered()[8:]
    assert reader.read() == [b"%d" % number for number in range(10)]


def test_an_acknowledged_entry_is_answered_when_the_broker_looks(publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    publisher.write("a", b"x", Flag.ACKNOWLEDGE, target=33)
    publisher.drain("a")
    assert [frame.sequence for frame in publisher.peer.all_of(Kind.DONE) if frame.target == 33] == [9]


def test_a_publisher_gets_credit_for_what_was_on_the_line(talk: Talk, publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    for _ in range(40):
        for _ in range(100):
            assert publisher.write("a", b"x") >= 0
        publisher.drain("a")
        reader.read()
        reader.peer.credit(1, 100, 100)
    assert lines(talk) == 1
    assert publisher.peer.topic_credit("a")[0] >= 2048


END_AT = 3


@pytest.mark.parametrize(
    "what",
    [
        "publish",
        "control",
        "large",
        "topic",
        "subscribe",
        "unsubscribe",
        "declare",
        "gone",
        "reader",
        "drain",
        "given up",
    ],
)
def test_whatever_ends_a_line_gives_a_reader_the_rest_once_and_in_order(
    talk: Talk, publisher: Liner, reader: Liner, what: str
) -> None:
    other = Liner(talk, "other")
    other.peer.subscribe("#", queue_messages=1000)
    publisher.go_on_line("a")
    sent = [b"on %d" % number for number in range(10)]
    for payload in sent:
        publisher.write("a", payload)
    assert reader.read(END_AT) == sent[:END_AT]
    assert other.read() == sent
    if what == "publish":
        publisher.peer.publish("a", b"behind")
    elif what == "control":
        publisher.peer.publish("a", b"behind", lane=Lane.CONTROL)
    elif what == "large":
        publisher.peer.publish_large("a", bytes(100_000))
    elif what == "topic":
        Liner(talk, "second").peer.topic("a")
    elif what == "subscribe":
        Liner(talk, "third").peer.subscribe("+")
    elif what == "unsubscribe":
        other.peer.put(Kind.UNSUBSCRIBE, number=1, target=5)
    elif what == "declare":
        talk.peer("declarer").put(Kind.DECLARE, body=Declare("a", lane="bulk"), target=6, lane=Lane.CONTROL)
    elif what == "gone":
        publisher.peer.die()
    elif what == "reader":
        other.peer.die()
    elif what == "drain":
        talk.state.drain("over")
        talk.settle()
    else:
        publisher.peer.put(Kind.LINE, Flag.LAST, stream=publisher.line, lane=Lane.CONTROL)
    assert not lines(talk)
    assert publisher.write("a", b"too late") == CLOSED
    assert reader.read() == []
    # A control message may pass.
    rest = sorted(reader.peer.delivered(), key=lambda frame: frame.sequence)[LINE_AFTER_MESSAGES:]
    expected = sent[END_AT:] + ([b"behind"] if what in ("publish", "control") else [])
    assert [bytes(frame.payload) for frame in rest if not frame.flags & Flag.CHUNKED] == expected
    assert [frame.sequence for frame in rest] == list(range(9 + END_AT, 9 + END_AT + len(rest)))
    assert reader.ended() == [publisher.line]
    if what not in ("unsubscribe", "reader"):
        more = other.peer.delivered()[LINE_AFTER_MESSAGES:]
        assert [frame.sequence for frame in more] == list(range(19, 19 + len(more)))
    assert queue_of(reader)[2] == LINE_AFTER_MESSAGES + END_AT + len(rest)


def test_a_reader_that_dies_leaves_the_others_what_they_have_not_read(
    talk: Talk, publisher: Liner, reader: Liner
) -> None:
    other = Liner(talk, "other")
    other.peer.subscribe("a", queue_messages=1000)
    publisher.go_on_line("a")
    publisher.write("a", b"1")
    publisher.write("a", b"2")
    assert reader.read(1) == [b"1"]
    reader.peer.die()
    assert other.peer.payloads()[-2:] == [b"1", b"2"]


def test_a_reader_without_credit_ends_the_line_and_is_served_by_its_policy(talk: Talk, publisher: Liner) -> None:
    slow = Liner(talk, "slow")
    slow.peer.subscribe("a", queue_messages=64)
    publisher.go_on_line("a")
    slow.peer.credit(1, 8, 8)
    slow.peer.reading = False
    for number in range(100):
        publisher.write("a", b"%d" % number)
    publisher.drain("a")
    assert not lines(talk)
    subscription = slow.peer.record.subscriptions[1]
    assert subscription.queue.unread_messages == 100
    assert subscription.queue.over_limit
    slow.peer.reading = True
    talk.settle()
    assert len(slow.peer.payloads()) == 8 + 64
    slow.peer.credit(1, 64, 1000)
    assert slow.peer.payloads()[8:] == [b"%d" % number for number in range(100)]
    assert subscription.dropped == 0


def test_credit_that_comes_with_the_entries_that_it_is_for_keeps_the_line(talk: Talk, publisher: Liner) -> None:
    quick = Liner(talk, "quick")
    quick.peer.subscribe("a", queue_messages=64)
    publisher.go_on_line("a")
    quick.peer.credit(1, 8, 8)
    for _ in range(10):
        for _ in range(64):
            publisher.write("a", b"x")
        assert len(quick.read()) == 64
        quick.peer.credit(1, 64, 64)
    talk.tick(0.1)
    assert lines(talk) == 1


def test_a_publisher_that_finds_no_room_goes_by_the_socket_and_nothing_is_overtaken(
    talk: Talk, publisher: Liner, reader: Liner
) -> None:
    publisher.go_on_line("a")
    written = 0
    while publisher.write("a", bytes(4000)) != NO_ROOM:
        written += 1
    publisher.peer.publish("a", b"behind")
    assert not lines(talk)
    assert reader.peer.sequences() == list(range(1, 8 + written + 2))
    assert reader.peer.payloads()[-1] == b"behind"


# Peers that do not keep to the rules.


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": int(Kind.SUBSCRIBE)},
        {"number": 77},
        {"lane": int(Lane.CONTROL)},
        {"lane": 7},
        {"flags": int(Flag.REQUEST)},
        {"flags": int(Flag.CHUNKED)},
        {"flags": int(Flag.SHARED)},
        {"flags": int(Flag.BATCH), "count": 4000},
        {"sequence": 5},
    ],
)
def test_an_entry_that_may_not_be_there_costs_its_publisher_the_session(
    talk: Talk, publisher: Liner, reader: Liner, fields: dict[str, int]
) -> None:
    publisher.go_on_line("a")
    publisher.write("a", b"good")
    publisher.write("a", b"bad", **fields)
    publisher.write("a", b"behind the bad one")
    talk.tick(0.1)
    assert not lines(talk)
    assert not publisher.peer.is_open
    assert publisher.peer.session.failure.code == Code.PROTOCOL
    assert reader.peer.payloads()[8:] == [b"good"]
    assert reader.peer.is_open


def test_a_reader_that_sets_its_bit_is_served_by_the_broker(talk: Talk, publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    publisher.write("a", b"1")
    reader.reader().leave()
    publisher.write("a", b"2")
    talk.tick(0.1)
    assert not lines(talk)
    assert reader.peer.payloads()[8:] == [b"1", b"2"]


def test_a_reader_that_cannot_map_the_line_is_served_by_the_broker(talk: Talk, publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    publisher.write("a", b"1")
    reader.peer.put(Kind.ATTACH, target=publisher.line, lane=Lane.CONTROL)
    assert not lines(talk)
    assert reader.peer.payloads()[8:] == [b"1"]


def test_a_publisher_that_declines_goes_on_by_the_socket(talk: Talk, publisher: Liner, reader: Liner) -> None:
    for number in range(8):
        publisher.peer.publish("a", b"%d" % number)
    offer = publisher.offers()[-1]
    publisher.peer.put(Kind.LINE, Flag.LAST, stream=offer.stream, lane=Lane.CONTROL)
    publisher.peer.put(Kind.DRAIN, number=1, stream=offer.stream, count=1)
    publisher.peer.publish("a", b"8")
    assert not lines(talk)
    assert reader.peer.payloads()[-1] == b"8"


def test_nobody_says_anything_about_the_lines_of_others(talk: Talk, publisher: Liner, reader: Liner) -> None:
    stranger = Liner(talk, "stranger")
    publisher.go_on_line("a")
    for kind, flags in ((Kind.LINE, Flag.LAST), (Kind.DRAIN, 0), (Kind.ATTACH, 0)):
        stranger.peer.put(kind, flags, stream=publisher.line, target=publisher.line, number=1, count=1)
    assert stranger.peer.is_open
    assert lines(talk) == 1


def test_who_shares_no_memory_has_no_bell(talk: Talk) -> None:
    plain = talk.peer("plain")
    plain.put(Kind.BELL, sequence=1)
    assert not plain.is_open


def test_when_readers_change_between_offer_and_beginning_what_is_on_the_line_goes_the_brokers_way(
    talk: Talk, publisher: Liner, reader: Liner
) -> None:
    for number in range(8):
        publisher.peer.publish("a", b"%d" % number)
    publisher.accept()
    late = talk.peer("late")
    late.subscribe("a")
    publisher.write("a", b"x")
    publisher.start("a")
    assert not lines(talk)
    assert publisher.write("a", b"y") == CLOSED
    assert late.payloads() == [b"x"]
    assert reader.peer.payloads()[8:] == [b"x"]


def test_a_publisher_that_dies_before_it_has_begun_leaves_no_hole(talk: Talk, publisher: Liner, reader: Liner) -> None:
    for number in range(8):
        publisher.peer.publish("a", b"%d" % number)
    publisher.accept()
    publisher.write("a", b"x")
    publisher.peer.die()
    assert len(reader.peer.payloads()) == 8
    assert not talk.state.own.lines._offered


def test_after_a_short_line_it_takes_longer_until_the_next_one(talk: Talk, publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    for count in (32, 128):
        publisher.peer.publish("a", b"x")
        offers = len(publisher.offers())
        for _ in range(count - 2):
            publisher.peer.publish("a", b"x")
        reader.peer.credit(1, count, count)
        assert len(publisher.offers()) == offers
        publisher.peer.publish("a", b"x")
        assert len(publisher.offers()) == offers + 1
        publisher.accept()
        publisher.start("a")
        assert lines(talk) == 1


def test_a_frame_is_taken_once_by_the_reader_or_delivered_once_by_the_broker(
    talk: Talk, publisher: Liner, reader: Liner
) -> None:
    """At every point at which the line can end, between any two steps of the reader."""
    for taken in range(6):
        topic = f"b/{taken}"
        one = Liner(talk, f"one {taken}")
        one.peer.subscribe(topic, queue_messages=1000)
        publisher.go_on_line(topic)
        for number in range(5):
            publisher.write(topic, b"%d" % number)
        got = one.read(taken)
        publisher.peer.publish(topic, b"5")
        got += one.read()
        got += one.peer.payloads()[8:]
        assert got == [b"%d" % number for number in range(6)]


def test_when_memory_runs_short_there_are_no_lines(talk: Talk, publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    publisher.write("a", b"read already")
    assert reader.read() == [b"read already"]
    publisher.write("a", b"not yet")
    talk.state.watermark.look(90, 100, [])
    talk.settle()
    assert not lines(talk)
    assert publisher.write("a", b"too late") == CLOSED
    assert reader.peer.payloads()[8:] == [b"not yet"]
    assert talk.state.router.topics["a"].published == 10
    for _ in range(100):
        publisher.peer.publish("a", b"refused")
    assert len(publisher.offers()) == 1


@pytest.mark.parametrize("loser", ["publisher", "reader"])
def test_when_a_right_is_taken_away_what_was_on_the_line_before_counts_and_nothing_after_it(loser: str) -> None:
    everything = {"publish": ("#",), "subscribe": ("#",)}
    talk = Talk(line_memory=line_memory, permissions=permissions(some=role(everything), other=role(everything)))
    some = Identity("somebody", ("some",))
    publisher = Liner(talk, "publisher", identity=some if loser == "publisher" else Identity("other", ("other",)))
    reader = Liner(talk, "reader", identity=some if loser == "reader" else Identity("other", ("other",)))
    reader.peer.subscribe("a", queue_messages=1000)
    publisher.go_on_line("a")
    publisher.write("a", b"before")
    talk.state.replace_permissions(permissions(some=role({"publish": ("b",)}), other=role(everything)))
    talk.settle()
    assert not lines(talk)
    assert publisher.write("a", b"after") == CLOSED
    publisher.peer.publish("a", b"after")
    for _ in range(100):
        publisher.peer.publish("a", b"more")
    assert len(publisher.offers()) == 1
    got = reader.peer.payloads()[LINE_AFTER_MESSAGES:]
    assert b"after" not in got if loser == "publisher" else got in ([], [b"before"])
    assert got[:1] == [b"before"] or loser == "reader"
    assert talk.state.router.topics["a"].published >= LINE_AFTER_MESSAGES + 1


def test_tenants_have_lines_of_their_own() -> None:
    talk = Talk(line_memory=line_memory)
    blue, red = Identity("b", (), "blue"), Identity("r", (), "red")
    publisher, reader = Liner(talk, "p", identity=blue), Liner(talk, "q", identity=blue)
    stranger = Liner(talk, "s", identity=red)
    reader.peer.subscribe("a", queue_messages=1000)
    stranger.peer.subscribe("a", queue_messages=1000)
    publisher.go_on_line("a")
    publisher.write("a", b"x")
    assert reader.read() == [b"x"]
    stranger.peer.put(Kind.DRAIN, number=1, stream=publisher.line, count=1)
    stranger.peer.publish("a", b"y")
    talk.tick(0.1)
    assert len(talk.state.tenants["blue"].router.lines) == 1
    assert not stranger.attached()
    assert reader.peer.payloads()[8:] == []


def test_a_tenant_whose_bytes_are_counted_has_no_lines(talk: Talk, publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    talk.state.replace_quotas({"*": Quotas(bytes_per_second_max=1_000_000), "": Quotas(bytes_per_second_max=1_000_000)})
    assert not lines(talk)
    for _ in range(100):
        publisher.peer.publish("a", b"x")
    assert len(publisher.offers()) == 1


def test_one_that_writes_on_while_the_broker_drains_loses_its_session(
    talk: Talk, publisher: Liner, reader: Liner, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.go_on_line("a")
    line = next(iter(talk.state.router.lines.values()))
    drained: list[int] = []

    def publish_and_write_on(session: SessionRecord, frame: Frame) -> None:
        # As a publisher that gives itself room, and takes care that the broker never comes to the end.
        drained.append(len(frame.payload))
        assert len(drained) < 100
        line._end.drained()
        reader.read()
        assert publisher.write("a", bytes(40_000)) >= 0

    monkeypatch.setattr(line._lines, "publishing", SimpleNamespace(publish=publish_and_write_on))
    assert publisher.write("a", bytes(40_000)) >= 0
    talk.tick(0.1)
    assert sum(drained) <= LINE_DATA_BYTES
    assert publisher.write("a", b"x") == CLOSED
    assert not lines(talk)
    assert not publisher.peer.is_open
    assert "since it was last drained" in str(publisher.peer.record.session.failure)
    assert reader.peer.is_open


def test_a_line_that_was_written_full_is_drained_at_once(talk: Talk, publisher: Liner, reader: Liner) -> None:
    publisher.go_on_line("a")
    for _ in range(3):
        while publisher.write("a", bytes(1000)) >= 0:
            reader.read()
        publisher.drain("a")
    assert publisher.peer.is_open
