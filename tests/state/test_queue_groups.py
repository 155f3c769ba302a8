"""Queue groups: each message to one member."""

from __future__ import annotations

from broker.limits import CHUNK_BYTES
from broker.protocol.frames import Kind
from tests.state.harness import Talk


def test_each_message_goes_to_one_member_and_to_every_plain_subscriber() -> None:
    talk = Talk()
    publisher, watcher = talk.peer(), talk.peer()
    members = [talk.peer() for _ in range(3)]
    for member in members:
        member.subscribe("jobs", queue_group="workers")
    watcher.subscribe("jobs")
    payloads = [b"%d" % number for number in range(30)]
    for payload in payloads:
        publisher.publish("jobs", payload)
    assert sorted(int(p) for member in members for p in member.payloads()) == list(range(30))
    assert all(len(member.payloads()) == 10 for member in members)
    assert watcher.payloads() == payloads


def test_groups_are_independent_of_each_other() -> None:
    talk = Talk()
    publisher, one, two = talk.peer(), talk.peer(), talk.peer()
    one.subscribe("jobs", queue_group="a")
    two.subscribe("jobs", queue_group="b")
    publisher.publish("jobs", b"x")
    assert one.payloads() == two.payloads() == [b"x"]


def test_the_member_with_the_least_unread_gets_the_next_message() -> None:
    talk = Talk()
    publisher, busy, idle = talk.peer(), talk.peer(), talk.peer()
    busy.subscribe("jobs", queue_group="g", queue_messages=100)
    number = idle.subscribe("jobs", queue_group="g", queue_messages=100)
    for _ in range(20):
        publisher.publish("jobs", b"x")
        idle.credit(number, 1, 1)
    assert len(busy.payloads()) <= 2
    assert len(idle.payloads()) >= 18


def test_a_batch_is_shared_out_message_by_message() -> None:
    talk = Talk()
    publisher, one, two = talk.peer(), talk.peer(), talk.peer()
    for member in (one, two):
        member.subscribe("jobs", queue_group="g")
    publisher.publish_batch("jobs", [b"1", b"2", b"3", b"4"])
    assert sorted(one.payloads() + two.payloads()) == [b"1", b"2", b"3", b"4"]
    assert len(one.payloads()) == len(two.payloads()) == 2
    assert sorted(one.sequences() + two.sequences()) == [1, 2, 3, 4]


def test_what_waits_for_a_session_that_dies_goes_to_members_of_other_sessions_only() -> None:
    talk = Talk()
    publisher, dying, heir = talk.peer(), talk.peer(), talk.peer()
    dying.subscribe("jobs", queue_group="g", queue_messages=1)
    payloads = [b"%d" % number for number in range(6)]
    for payload in payloads:
        publisher.publish("jobs", payload)
    dying.subscribe("jobs", queue_group="g", queue_messages=40)
    heir.subscribe("jobs", queue_group="g", queue_messages=40)
    dying.die()
    assert dying.payloads() + heir.payloads() == payloads


def test_what_waits_for_a_member_that_dies_goes_to_the_others_in_order() -> None:
    talk = Talk()
    publisher, stuck, heir = talk.peer(), talk.peer(), talk.peer()
    stuck.subscribe("jobs", queue_group="g", queue_messages=10)
    stuck.reading = False
    for number in range(10):
        publisher.publish("jobs", b"%d" % number)
    heir.subscribe("jobs", queue_group="g", queue_messages=100)
    stuck.die()
    assert heir.payloads() == [b"%d" % number for number in range(10)]


def test_what_waits_for_a_member_that_unsubscribes_goes_to_the_others() -> None:
    talk = Talk()
    publisher, leaver, heir = talk.peer(), talk.peer(), talk.peer()
    number = leaver.subscribe("jobs", queue_group="g", queue_messages=1)
    for _ in range(3):
        publisher.publish("jobs", b"x")
    heir.subscribe("jobs", queue_group="g")
    leaver.put(Kind.UNSUBSCRIBE, number=number, target=1)
    assert len(leaver.payloads()) == 1
    assert len(heir.payloads()) == 2


def test_without_an_heir_what_waits_for_a_dead_member_is_gone_and_nothing_is_held() -> None:
    talk = Talk(ring_messages=0)
    publisher, member = talk.peer(), talk.peer()
    member.subscribe("jobs", queue_group="g")
    member.reading = False
    publisher.publish_large("jobs", bytes(4 * CHUNK_BYTES))
    member.die()
    publisher.publish("jobs", b"x")
    assert talk.state.held_bytes() <= CHUNK_BYTES


def test_a_large_message_goes_to_one_member() -> None:
    talk = Talk()
    publisher, one, two = talk.peer(), talk.peer(), talk.peer()
    for member in (one, two):
        member.subscribe("jobs", queue_group="g")
    for _ in range(2):
        publisher.publish_large("jobs", bytes(3 * CHUNK_BYTES))
    assert one.large() == two.large() == [bytes(3 * CHUNK_BYTES)]


def test_a_large_message_that_still_arrives_moves_to_the_heir_from_its_start() -> None:
    talk = Talk()
    publisher, stuck, heir = talk.peer(), talk.peer(), talk.peer()
    stuck.subscribe("jobs", queue_group="g")
    stuck.reading = False
    stream = publisher.open_stream("jobs", 3 * CHUNK_BYTES)
    publisher.chunk(stream, b"a" * CHUNK_BYTES)
    heir.subscribe("jobs", queue_group="g")
    stuck.die()
    publisher.chunk(stream, b"b" * CHUNK_BYTES)
    publisher.chunk(stream, b"c" * CHUNK_BYTES, last=True)
    assert heir.large() == [b"a" * CHUNK_BYTES + b"b" * CHUNK_BYTES + b"c" * CHUNK_BYTES]


def test_two_subscriptions_of_one_dying_session_in_one_group_leave_everything_to_the_third() -> None:
    talk = Talk()
    publisher, twice, heir = talk.peer(), talk.peer(), talk.peer()
    for _ in range(2):
        twice.subscribe("jobs", queue_group="g")
    twice.reading = False
    for number in range(6):
        publisher.publish("jobs", b"%d" % number)
    heir.subscribe("jobs", queue_group="g")
    twice.die()
    assert sorted(heir.payloads()) == [b"%d" % number for number in range(6)]
