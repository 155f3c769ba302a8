"""What tests of work queues need: a broker whose topics are acknowledged, and members that settle."""

from __future__ import annotations

from dataclasses import replace

from broker.protocol.bodies import Settle
from broker.protocol.frames import Frame, Kind, Lane
from broker.state.topics import TopicRecord
from tests.state.harness import Peer, Talk


def talk_with(**policy: object) -> Talk:
    """A broker in which the jobs of every topic are acknowledged."""
    talk = Talk()
    router = talk.state.router
    router.policies.defaults = replace(router.policies.defaults, acknowledge=True, **policy)
    return talk


def settle(peer: Peer, number: int, *frames: Frame, refused: bool = False, delay_s: float = 0.0) -> None:
    body = Settle([frame.stream for frame in frames], refused, int(delay_s * 1e9))
    peer.put(Kind.SETTLE, number=number, body=body, lane=Lane.CONTROL)


def take(peer: Peer, number: int, *, settles: bool = True) -> list[bytes]:
    """Takes and settles what has come, until nothing comes any more."""
    taken = []
    while frames := peer.delivered(number):
        peer.frames = [frame for frame in peer.frames if frame not in frames]
        taken += [bytes(frame.payload) for frame in frames]
        peer.credit(number, len(frames), sum(len(frame.payload) for frame in frames))
        if settles:
            settle(peer, number, *frames)
    return taken


def works(talk: Talk, topic: str = "jobs") -> list[tuple[int, int, int]]:
    return [(w.queue.waiting, w.queue.delayed, w.queue.leased) for w in talk.state.router.topics[topic].works.values()]


def topic_of(talk: Talk, name: str) -> TopicRecord:
    return talk.state.router.topics[name]
