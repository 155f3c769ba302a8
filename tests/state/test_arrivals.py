"""Who is let in: strangers neither use up what others need nor keep them out."""

from __future__ import annotations

import pytest

from broker.protocol.codes import Code
from broker.protocol.session import Phase
from broker.state import BrokerState, Settings
from broker.state.arrivals import address_of
from broker.state.records import SessionRecord
from tests.state.harness import SECOND_NS, Talk


def silent(talk: Talk, count: int, peer: str = "tcp://10.0.0.9:{}") -> list[SessionRecord]:
    """Connections that say nothing."""
    return [talk.state.connect(peer.format(1000 + number), talk.now_ns) for number in range(count)]


def test_the_oldest_of_too_many_silent_connections_goes_and_who_says_hello_gets_in() -> None:
    talk = Talk(half_open_max=3)
    strangers = silent(talk, 5)
    assert [record.session.phase for record in strangers] == [Phase.CLOSING] * 2 + [Phase.AWAIT_HELLO] * 3
    assert "half_open_max" in str(strangers[0].session.failure)
    peer = talk.peer()
    assert peer.is_open
    silent(talk, 100)
    peer.publish("a", b"x")
    assert peer.is_open


def test_silent_connections_are_no_sessions() -> None:
    talk = Talk(sessions_max=1)
    silent(talk, 10)
    assert talk.peer().is_open
    refused = talk.peer()
    assert refused.session.failure.code == Code.LIMIT
    assert "sessions_max: 2 is over the limit of 1" in str(refused.session.failure)


def test_a_stranger_has_its_time_and_no_more() -> None:
    talk = Talk(hello_timeout_s=3.0)
    (record,) = silent(talk, 1)
    talk.tick(2.9)
    assert record.session.phase is Phase.AWAIT_HELLO
    talk.tick(0.3)
    assert record.session.phase is Phase.CLOSING
    assert "no complete hello within 3 s" in str(record.session.failure)
    talk.state.disconnect(record.id, talk.now_ns)
    assert not talk.state.arrivals.half_open


def test_who_waits_for_a_hello_is_not_looked_at_before_its_time_and_all_of_them_at_their_own() -> None:
    talk = Talk(hello_timeout_s=3.0)
    (first,) = silent(talk, 1)
    talk.tick(1.0)
    (second,) = silent(talk, 1, "tcp://10.0.0.8:{}")
    talk.tick(1.0)
    (third,) = silent(talk, 1, "tcp://10.0.0.7:{}")
    talk.tick(1.1)
    phases = [record.session.phase for record in (first, second, third)]
    assert phases == [Phase.CLOSING, Phase.AWAIT_HELLO, Phase.AWAIT_HELLO]
    talk.tick(2.0)
    assert [record.session.phase for record in (second, third)] == [Phase.CLOSING, Phase.CLOSING]
    assert not talk.state.arrivals.half_open


def test_one_address_has_a_bounded_number_of_connections() -> None:
    state = BrokerState(Settings(connections_per_address_max=2))
    first, second, third = (state.connect(f"tcp://10.0.0.9:{port}", SECOND_NS) for port in (1, 2, 3))
    other = state.connect("tcp://10.0.0.8:1", SECOND_NS)
    assert [record.session.phase for record in (first, second, other)] == [Phase.AWAIT_HELLO] * 3
    assert third.session.phase is Phase.CLOSING
    assert "connections_per_address_max: 3 is over the limit of 2" in str(third.session.failure)
    state.disconnect(third.id, SECOND_NS)
    state.disconnect(second.id, SECOND_NS)
    assert state.connect("tcp://10.0.0.9:4", SECOND_NS).session.phase is Phase.AWAIT_HELLO


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("tcp://10.0.0.9:5", "10.0.0.9"),
        ("tcp://[::1]:5", "[::1]"),
        ("zmq+tcp://10.0.0.9:5", "10.0.0.9"),
        ("unix:pid=7", ""),
        ("unix:///run/x", ""),
        ("zmq+ipc:///run/x", ""),
        ("inproc://x", ""),
    ],
)
def test_only_peers_on_a_network_have_an_address(peer: str, address: str) -> None:
    assert address_of(peer) == address
