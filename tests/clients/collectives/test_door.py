"""The door of a client: members of one generation find one another, and nobody else gets in."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from broker.protocol.links import (
    HELLO_BYTES,
    SEAL_BYTES,
    Greeting,
    Peer,
    address_of,
    address_text,
    answer,
    greet,
    is_answer,
)
from clients.collectives import door as door_module
from clients.collectives.door import Door, Meeting
from clients.collectives.ports import listen, listen_nearby
from tests.loopback import own_host, refusing

PATIENCE_S = 60.0
SECRET = bytes(range(32))
NUMBER, GENERATION = 7, 3


class Member:
    """A member with a door of its own."""

    def __init__(self, rank: int, sock: socket.socket | None = None) -> None:
        self.rank = rank
        # At an address where nobody else listens when its door is closed.
        sock = sock or listen(own_host(), [0])
        assert sock is not None
        self.door = Door(sock)
        self._done = threading.Event()

    def meet(self, peers: list[Peer], secret: bytes = SECRET) -> Meeting:
        self.meeting = Meeting(NUMBER, GENERATION, self.rank, peers, secret, lambda _: self._done.set())
        self.door.meet(self.meeting)
        return self.meeting

    def wait(self) -> Meeting:
        assert self._done.wait(PATIENCE_S)
        return self.meeting

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def call(self) -> socket.socket:
        sock = socket.create_connection(address_of(self.door.address), timeout=PATIENCE_S)
        sock.settimeout(PATIENCE_S)
        return sock


@pytest.fixture
def members() -> Iterator[list[Member]]:
    made = [Member(rank) for rank in range(3)]
    yield made
    for member in made:
        if hasattr(member, "meeting"):
            member.meeting.close()
        member.door.close()


def peers_of(members: list[Member]) -> list[Peer]:
    return [Peer(member.rank, [member.door.address], "host") for member in members]


def ends(sock: socket.socket) -> bool:
    """Whether the other end closes without a word."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def families(members: list[Member]) -> list[int]:
    """Over what the first member is linked to the others."""
    links = [socket.socket(fileno=lane) for lanes in members[0].wait().take() for lane in lanes]
    found = [link.family for link in links]
    for link in links:
        link.close()
    return found


def test_members_of_one_host_meet_without_a_network_and_others_over_it(members: list[Member]) -> None:
    peers = peers_of(members)
    peers[2].host = "another host"
    for member in members:
        member.meet(peers)
    assert families(members) == [socket.AF_UNIX, socket.AF_INET]


def test_members_that_do_not_say_where_they_are_meet_over_the_network(members: list[Member]) -> None:
    for member in members:
        member.meet([Peer(each.rank, [each.door.address], "") for each in members])
    assert families(members) == [socket.AF_INET] * 2


def test_who_has_no_name_on_its_host_is_found_over_the_network() -> None:
    sock = listen("127.0.0.1", [0])
    assert sock is not None
    address = address_text(*sock.getsockname())
    with listen_nearby(address) as squatter:
        made = [Member(0), Member(1, sock)]
        for member in made:
            member.meet(peers_of(made))
        # It takes the call and answers what nobody asks for.
        squatter.setblocking(True)
        call, _ = squatter.accept()
        with call:
            call.sendall(bytes(SEAL_BYTES))
            assert families(made) == [socket.AF_INET]
    for member in made:
        member.meeting.close()
        member.door.close()


def test_each_member_gets_a_link_to_each_other_one(members: list[Member]) -> None:
    for member in members:
        member.meet(peers_of(members))
    found = [member.wait().take() for member in members]
    assert [[len(lanes) for lanes in links] for links in found] == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    for low, high in ((0, 1), (0, 2), (1, 2)):
        os.write(found[low][high][0], b"from low")
        os.set_blocking(found[high][low][0], True)
        assert os.read(found[high][low][0], 100) == b"from low"
    assert not os.get_blocking(found[0][1][0])
    for links in found:
        for lanes in links:
            for end in lanes:
                os.close(end)


def test_who_knocks_before_a_member_has_heard_of_the_generation_waits_outside(members: list[Member]) -> None:
    pair = members[:2]
    pair[0].meet(peers_of(pair))
    with pair[1].call() as early:
        # Somebody who proves it comes in the place of the member itself.
        greeting = Greeting(NUMBER, GENERATION, 0, 1, 0)
        early.sendall(greet(greeting, SECRET))
        pair[1].meet(peers_of(pair))
        got = b""
        try:
            while len(got) < SEAL_BYTES and (part := early.recv(SEAL_BYTES)):
                got += part
        except ConnectionResetError:
            got = b""
    # One of the two is let in, and only one.
    pair[1].wait()
    assert got == b"" or is_answer(got, greeting, SECRET)
    assert len(pair[1].meeting.links) == 1


@pytest.mark.parametrize(
    "words",
    [
        greet(Greeting(NUMBER, GENERATION, 0, 1, 0), bytes(32)),
        greet(Greeting(NUMBER, GENERATION, 2, 1, 0), SECRET),
        greet(Greeting(NUMBER, GENERATION, 0, 2, 0), SECRET),
        greet(Greeting(NUMBER, GENERATION, 1, 1, 0), SECRET),
        greet(Greeting(NUMBER, GENERATION, 9, 1, 0), SECRET),
        greet(Greeting(NUMBER, GENERATION, 0, 1, 1), SECRET),
        answer(Greeting(NUMBER, GENERATION, 0, 1, 0), SECRET) * 2,
    ],
    ids=["another-secret", "from-above", "to-another", "to-oneself", "from-nobody", "another-lane", "an-answer"],
)
def test_nobody_else_gets_in_and_the_one_who_may_still_does(
    members: list[Member], words: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pair = members[:2]
    pair[1].meet(peers_of(members))
    with caplog.at_level(logging.WARNING), pair[1].call() as stranger:
        stranger.sendall(words)
        assert ends(stranger)
    assert "door.refused" in caplog.text
    for member in (members[0], members[2]):
        member.meet(peers_of(members))
    assert len(pair[1].wait().links) == 2


def test_the_same_greeting_a_second_time_is_refused(members: list[Member]) -> None:
    greeting = Greeting(NUMBER, GENERATION, 0, 1, 0)
    members[1].meet(peers_of(members))
    with members[1].call() as first, members[1].call() as second:
        first.sendall(greet(greeting, SECRET))
        assert is_answer(first.recv(SEAL_BYTES), greeting, SECRET)
        second.sendall(greet(greeting, SECRET))
        assert ends(second)


def test_a_greeting_may_come_byte_by_byte(members: list[Member]) -> None:
    greeting = Greeting(NUMBER, GENERATION, 0, 1, 0)
    pair = members[:2]
    pair[1].meet(peers_of(pair))
    with pair[1].call() as slow:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in greet(greeting, SECRET):
            slow.sendall(bytes([byte]))
        assert is_answer(slow.recv(SEAL_BYTES), greeting, SECRET)
        assert list(pair[1].wait().links) == [(0, 0)]


def test_what_follows_the_answer_is_left_for_the_link(members: list[Member]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        host, port = other.getsockname()
        members[0].meet([Peer(0, [members[0].door.address], "a"), Peer(1, [f"{host}:{port}"], "b")])
        sock, _ = other.accept()
        with sock:
            greeting = Greeting(NUMBER, GENERATION, 0, 1, 0)
            assert sock.recv(HELLO_BYTES, socket.MSG_WAITALL) == greet(greeting, SECRET)
            sock.sendall(answer(greeting, SECRET) + b"the first words")
            (_, (end,)) = members[0].wait().take()
            with socket.socket(fileno=end) as link:
                link.settimeout(PATIENCE_S)
                assert link.recv(100) == b"the first words"


@pytest.mark.parametrize("said", [b"", b"short", bytes(SEAL_BYTES)], ids=["nothing", "part", "wrong"])
def test_who_answers_wrongly_is_named_and_left(members: list[Member], said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        host, port = other.getsockname()
        members[0].meet([Peer(0, [members[0].door.address], "a"), Peer(4, [f"{host}:{port}"], "b")])
        sock, _ = other.accept()
        with sock:
            sock.recv(HELLO_BYTES, socket.MSG_WAITALL)
            sock.sendall(said)
    problem = members[0].wait().problem
    assert problem is not None
    assert problem[0] == 4
    assert f"{host}:{port}" in problem[1]


def test_who_does_not_answer_in_time_is_named(members: list[Member], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "LINK_DIAL_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        host, port = other.getsockname()
        members[0].meet([Peer(0, [members[0].door.address], "a"), Peer(1, [f"{host}:{port}"], "b")])
        assert members[0].wait().problem == (1, f"{host}:{port}: no answer within 0.1 s")


def test_the_second_address_is_tried_when_the_first_leads_nowhere(members: list[Member]) -> None:
    pair = members[:2]
    with refusing() as gone:
        peers = [Peer(0, [pair[0].door.address], "a"), Peer(1, [address_text(*gone), pair[1].door.address], "b")]
        for member in pair:
            member.meet(peers)
        assert [len(member.wait().links) for member in pair] == [1, 1]
    assert pair[0].meeting.problem is None


def test_links_of_a_cancelled_meeting_are_closed(members: list[Member]) -> None:
    greeting = Greeting(NUMBER, GENERATION, 0, 1, 0)
    members[1].meet(peers_of(members))
    with members[1].call() as sock:
        sock.sendall(greet(greeting, SECRET))
        assert is_answer(sock.recv(SEAL_BYTES), greeting, SECRET)
        members[1].door.cancel(members[1].meeting)
        assert ends(sock)
    assert not members[1].done


def test_a_closed_door_lets_nobody_in_and_ends_meetings(members: list[Member]) -> None:
    greeting = Greeting(NUMBER, GENERATION, 0, 1, 0)
    members[1].meet(peers_of(members))
    with members[1].call() as sock, members[1].call() as waiting:
        sock.sendall(greet(greeting, SECRET))
        assert is_answer(sock.recv(SEAL_BYTES), greeting, SECRET)
        members[1].door.close()
        assert ends(sock)
        assert ends(waiting)
    with pytest.raises(ConnectionError):
        members[1].call()


def test_a_link_that_is_made_when_its_meeting_is_closed_is_closed() -> None:
    told: list[Meeting] = []
    peers = [Peer(0, ["127.0.0.1:1"], "host"), Peer(1, ["127.0.0.1:2"], "host")]
    meeting = Meeting(NUMBER, GENERATION, 0, peers, SECRET, told.append)
    meeting.close()
    ours, theirs = socket.socketpair()
    with theirs:
        meeting.add(1, 0, ours)
        assert ends(theirs)
    assert not told
