"""What the tests of `$sys/pressure` share: somebody who reads it, and somebody who asks."""

from __future__ import annotations

import msgspec

from broker.protocol.batches import split_batch
from broker.protocol.bodies import Failure, decode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane
from broker.protocol.pressure import Pressure, Query
from tests.state.harness import Peer, Talk

TOPIC = "$sys/pressure"
TICK_S = 0.1
REFERENCE = 77


def values_of(frames: list[Frame]) -> list[dict[str, object]]:
    payloads: list[bytes] = []
    for frame in frames:
        if frame.flags & Flag.BATCH:
            payloads += [entry[3] for entry in split_batch(bytes(frame.payload), frame.count)]
        else:
            payloads.append(bytes(frame.payload))
    return [msgspec.msgpack.decode(payload) for payload in payloads]


class Watcher:
    """A client that reads all announcements."""

    def __init__(self, talk: Talk) -> None:
        self.peer = talk.peer("watcher")
        self._talk = talk
        self._number = self.peer.subscribe(TOPIC, "drop_oldest", queue_messages=1_000_000)
        self._read = 0

    def frames(self) -> list[Frame]:
        return self.peer.delivered(self._number)

    def told(self, seconds: float = TICK_S) -> list[dict[str, object]]:
        """What is announced in a while."""
        self._talk.tick(seconds)
        frames = self.frames()[self._read :]
        self._read += len(frames)
        return values_of(frames)


def pairs(told: list[dict[str, object]], *names: str) -> list[tuple[object, ...]]:
    return [tuple(event[name] for name in names) for event in told]


def scene(**settings: object) -> tuple[Talk, Watcher, Peer, Peer]:
    talk = Talk(**settings)
    return talk, Watcher(talk), talk.peer("publisher"), talk.peer("reader")


def ask(peer: Peer, topic: str) -> Frame:
    seen = len(peer.frames)
    peer.put(Kind.QUERY, body=Query(topic), target=REFERENCE, lane=Lane.CONTROL)
    (answer,) = [frame for frame in peer.frames[seen:] if frame.target == REFERENCE]
    return answer


def pressure(peer: Peer, topic: str) -> Pressure:
    answer = ask(peer, topic)
    assert answer.kind == Kind.DONE
    return decode_body(answer.body, Pressure)


def refusal(answer: Frame) -> Failure:
    assert answer.kind == Kind.ERROR
    return decode_body(answer.body, Failure)


def fill(publisher: Peer, topic: str, messages: int = 8) -> None:
    for number in range(messages):
        publisher.publish(topic, b"%d" % number)
