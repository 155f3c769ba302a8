"""A worker refuses what another one has, by the words of the client that has not heard of workers."""

from __future__ import annotations

import pytest

from broker.protocol.bodies import Declare, Failure, Join, Subscribe, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Kind
from broker.topics.owners import owner
from tests.state.harness import Peer, Talk
from tests.state.test_bad_input import expect_closed

WORKERS = 3
OWN = next(name for number in range(99) if owner(name := f"a/{number}", WORKERS) == 1)
OTHER = next(name for number in range(99) if owner(name := f"a/{number}", WORKERS) == 2)
TOLD = "is worker 2's, and this is worker 1 of 3"


@pytest.fixture
def talk() -> Talk:
    return Talk(worker=1, workers=WORKERS)


def refused(peer: Peer, kind: Kind, body: object, **fields: int) -> str:
    """Why a wish was not granted; empty when it was."""
    peer.put(kind, body=body, target=77, **fields)
    found = [frame for frame in peer.all_of(Kind.ERROR) if frame.target == 77]
    if not found:
        return ""
    failure = decode_body(found[-1].body, Failure)
    assert failure.code == Code.INVALID
    return failure.reason


def test_a_publisher_at_the_wrong_worker_is_told_which_one_is_right(talk: Talk) -> None:
    reader, publisher = talk.peer("reader"), talk.peer("publisher")
    reader.subscribe("#")
    publisher.publish(OWN, b"heard")
    publisher.publish(OTHER, b"unheard")
    expect_closed(publisher, Code.INVALID, f"topic {OTHER!r}: {TOLD}")
    assert reader.payloads() == [b"heard"]
    assert OTHER not in talk.state.router.topics


def test_what_else_is_said_about_anothers_topics_and_groups_is_answered_so(talk: Talk) -> None:
    peer = talk.peer("peer")
    assert f"topic {OTHER!r}: {TOLD}" in refused(peer, Kind.SUBSCRIBE, Subscribe(OTHER), number=1)
    assert f"topic {OTHER!r}: {TOLD}" in refused(peer, Kind.DECLARE, Declare(OTHER, retain=True))
    assert f"group {OTHER!r}: {TOLD}" in refused(peer, Kind.JOIN, Join(OTHER, 1))
    assert "is worker 0's" in refused(peer, Kind.SUBSCRIBE, Subscribe("$sys/sessions"), number=2)
    assert not talk.state.own.groups._by_name


def test_what_is_its_own_or_everybodys_is_not(talk: Talk) -> None:
    peer = talk.peer("peer")
    for number, topic_filter in enumerate((OWN, "a/+", "#", "$sys/pressure", f"$dead/{OWN}", f"$sys/groups/{OWN}"), 1):
        assert refused(peer, Kind.SUBSCRIBE, Subscribe(topic_filter), number=number) == ""
    for topic_filter in (OWN, "a/#"):
        assert refused(peer, Kind.DECLARE, Declare(topic_filter, retain=True)) == ""
    assert refused(peer, Kind.JOIN, Join(OWN, 1)) == ""
    # Inboxes are wherever their sessions are.
    for number in range(20):
        peer.publish(f"$inbox/{number}", b"a reply that nobody waits for")
    assert peer.session.failure is None


def test_a_broker_that_is_one_has_everything(talk: Talk) -> None:
    alone = Talk(worker=0, workers=1).peer("peer")
    for name in (OWN, OTHER):
        alone.publish(name, b"x")
        assert refused(alone, Kind.JOIN, Join(name, 1)) == ""
    assert alone.session.failure is None
