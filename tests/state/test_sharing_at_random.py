"""Whatever publishers and readers do, in whatever order: each loan comes back once, and when nobody holds it."""

from __future__ import annotations

import gc
import random
from collections import Counter

import pytest

from broker.protocol.bodies import Declare, Settle
from broker.protocol.frames import Flag, Kind, Lane
from broker.protocol.places import PLACE
from broker.protocol.sharing import released
from tests.state.harness import Peer, Talk
from tests.state.sharers import SIZE, Sharer

POLICIES = ["block", "drop_oldest", "drop_newest", "latest"]
LONGEST = 40_000


class Actor(Sharer):
    """A peer that publishes and reads at random, and keeps to the protocol."""

    def __init__(self, talk: Talk, name: str, generator: random.Random) -> None:
        super().__init__(talk, name, arena=True)
        self.random = generator
        self.lent: list[int] = []
        self.subscriptions: list[int] = []
        self._answered: set[int] = set()
        self._released: set[int] = set()
        self._settled: set[int] = set()

    def subscribe(self) -> None:
        choose = self.random.choice
        if self.random.random() < 0.3:
            number = self.peer.subscribe("jobs", queue_group="workers", queue_messages=3)
        else:
            wishes = {"queue_messages": self.random.randrange(1, 5), "replay": choose([None, "all"])}
            number = self.peer.subscribe(choose(["a", "b", "#"]), choose(POLICIES), **wishes)
        self.subscriptions.append(number)

    def unsubscribe(self) -> None:
        if self.subscriptions:
            self.peer.put(Kind.UNSUBSCRIBE, number=self.subscriptions.pop(), target=99)

    def lend(self) -> None:
        choose = self.random.choice
        payload = bytes(choose([1, 100, 5000, LONGEST]))
        offset = self.random.randrange(0, SIZE - LONGEST, 4096)
        self.lent.append(self.publish(choose(["a", "b", "jobs"]), payload, offset=offset, lane=choose([0, 1, 1, 2])))

    def map(self) -> None:
        for frame in self.peer.all_of(Kind.ARENA):
            if not frame.flags & Flag.LAST and frame.number not in self._answered:
                self._answered.add(frame.number)
                count = int(self.random.random() < 0.8)
                self.peer.put(Kind.MAPPED, number=frame.number, count=count, lane=Lane.CONTROL)

    def let_go(self, share: float = 0.5) -> None:
        for frame in self.peer.delivered():
            if frame.flags & Flag.SHARED and self.random.random() < share:
                lease = PLACE.unpack(frame.payload)[1]
                if lease not in self._released:
                    self._released.add(lease)
                    self.release(lease)

    def credit(self, messages: int = 2) -> None:
        for number in self.subscriptions:
            self.peer.credit(number, messages, messages * LONGEST)

    def settle(self, refused: float = 0.3) -> None:
        for frame in self.peer.delivered():
            if frame.flags & Flag.TRACKED and frame.stream not in self._settled:
                self._settled.add(frame.stream)
                body = Settle([frame.stream], refused=self.random.random() < refused)
                self.peer.put(Kind.SETTLE, body=body, number=frame.target)

    def pause(self) -> None:
        self.peer.reading = self.random.random() < 0.7
        self.peer.talk.settle()


@pytest.mark.parametrize("seed", range(30))
def test_each_loan_comes_back_once_when_nobody_holds_it(seed: int) -> None:
    generator = random.Random(seed)
    talk = Talk(ring_messages=generator.choice([0, 3]))
    gc.collect()
    # A loan that a cycle of objects holds would come back only when somebody looks for cycles.
    gc.disable()
    try:
        actors = [Actor(talk, f"actor-{number}", generator) for number in range(5)]
        actors[0].peer.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True), target=1)
        far = talk.peer("far")
        far.subscribe("#", generator.choice(POLICIES), queue_messages=4)
        _act(talk, actors, generator)
        held = _end(talk, actors, far)
        far.frames.clear()
        for actor in actors:
            back = Counter(loan for frame in actor.peer.all_of(Kind.RELEASE) for loan in released(frame))
            missing = set(actor.lent) - back.keys()
            assert set(back.values()) <= {1}
            assert actor.peer.record.shares._lent.keys() == missing
            held -= len(missing)
            assert actor.peer.record.shares.leases == {}
        # Jobs that nobody does.
        assert held >= 0
    finally:
        gc.enable()


def _act(talk: Talk, actors: list[Actor], generator: random.Random) -> None:
    acts = ["lend"] * 5 + ["map", "let_go", "credit", "settle", "pause", "subscribe", "unsubscribe"]
    for step in range(generator.randrange(50, 250)):
        actor = generator.choice(actors)
        getattr(actor, generator.choice(acts))()
        if generator.random() < 0.03:
            actor.peer.die()
            actors[actors.index(actor)] = Actor(talk, f"actor-{step}", generator)
        assert all(each.peer.is_open for each in actors)


def _end(talk: Talk, actors: list[Actor], far: Peer) -> int:
    """Everybody reads and gives back everything; returns how many jobs are left."""
    topics = talk.state.router.topics.values()
    for peer in talk.peers:
        peer.reading = True
    talk.settle()
    subscriptions = [each for record in talk.state.sessions.values() for each in record.subscriptions.values()]
    while any(each.queue.waiting_messages or each.is_under_way for each in subscriptions):
        for actor in actors:
            actor.map()
            actor.let_go(1.0)
            actor.credit(100)
            actor.settle(refused=0.0)
        far.credit(1, 100, 1 << 26)
    # To settle a job brings the next one.
    while any(actor.peer.record.shares.leases for actor in actors):
        for actor in actors:
            actor.settle(refused=0.0)
            actor.let_go(1.0)
    for topic in topics:
        talk.state.router.retained_bytes -= topic.ring.clear()
    talk.settle()
    return sum(work.queue.held for topic in topics for work in topic.works.values())
