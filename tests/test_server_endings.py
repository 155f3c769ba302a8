"""At whose processes a server looks while operations of collectives stand still."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from broker.ids import SessionId
from broker.limits import PROCESSES_AT_ONCE
from broker.protocol.frames import Kind
from broker.server_endings import Endings
from tests.state.harness import Talk
from tests.state.test_groups_on_the_wire import claim, contribute, joined


@dataclass
class Connected:
    peer_process: int


@dataclass
class Link:
    connection: Connected


class World:
    """A group of ranks, each in a process of its own number, and those at which was looked."""

    def __init__(self, ranks: int) -> None:
        self.talk = Talk()
        self.peers = joined(self.talk, ranks)
        self.links = {peer.record.id: Link(Connected(1000 + rank)) for rank, peer in enumerate(self.peers)}
        self.ending: set[int] = set()
        self.looked: list[int] = []
        self._endings: Endings[Link] = Endings(self.talk.state, self.links, self._is_ending)

    def _is_ending(self, process: int) -> bool:
        self.looked.append(process)
        return process in self.ending

    def find(self) -> list[int]:
        """The processes that are found a tick later."""
        self.talk.tick(0.1)
        self.looked.clear()
        return [link.connection.peer_process for link in self._endings.find(self.talk.now_ns)]

    def wait(self, rank: int = 0) -> None:
        """A rank begins to wait for the others."""
        contribute(self.peers[rank], np.zeros(4, "float32"), claim())
        self.talk.tick(0.1)


def test_nobody_is_looked_at_while_nobody_waits() -> None:
    world = World(2)
    world.ending = {1001}
    assert world.find() == []
    assert world.looked == []


def test_a_member_for_which_others_wait_is_found_and_one_that_lives_is_not() -> None:
    world = World(3)
    world.wait()
    assert world.find() == []
    assert sorted(world.looked) == [1000, 1001, 1002]
    world.ending = {1001}
    assert world.find() == [1001]


def test_who_has_left_or_cannot_be_seen_is_not_looked_at() -> None:
    world = World(3)
    number = world.peers[1].all_of(Kind.JOINED)[-1].number
    world.peers[1].put(Kind.LEAVE, number=number, target=1)
    world.links[world.peers[2].record.id].connection.peer_process = 0
    contribute(world.peers[0], np.zeros(4, "float32"), claim(), generation=2)
    world.talk.tick(0.1)
    assert world.find() == []
    assert world.looked == [1000]


def test_a_session_that_is_just_gone_is_nobodys() -> None:
    world = World(2)
    world.wait()
    world.ending = {1001}
    del world.links[SessionId(world.peers[1].record.id)]
    assert world.find() == []


def test_of_many_all_have_their_turn() -> None:
    world = World(PROCESSES_AT_ONCE + 8)
    world.wait()
    world.ending = {1000, 1000 + PROCESSES_AT_ONCE + 7}
    found, looked = [], []
    for _ in range(2):
        found += world.find()
        assert len(world.looked) == PROCESSES_AT_ONCE
        looked += world.looked
    assert set(found) == world.ending
    assert set(looked) == {1000 + rank for rank in range(PROCESSES_AT_ONCE + 8)}
