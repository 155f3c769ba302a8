"""Peers that share memory with a broker's state, without any: what their memory is, a test says."""

from __future__ import annotations

import gc

from broker.errors import InvalidValue, LimitExceeded
from broker.limits import MIB
from broker.protocol.frames import Flag, Kind, Lane
from broker.protocol.places import PLACE
from broker.protocol.sharing import Release, released
from broker.security.identity import ANYBODY, Identity
from tests.state.harness import Peer, Talk

SIZE = 4 * MIB


class FakeMemory:
    """Bytes that pretend to be shared."""

    descriptor = -1

    def __init__(self, identity: int, size_bytes: int = SIZE) -> None:
        self.identity = identity
        self.size_bytes = size_bytes
        self.data = bytearray(size_bytes)

    def view(self, offset: int, size_bytes: int, holder: object) -> memoryview:
        return memoryview(Held(self.data[offset : offset + size_bytes], holder))

    def close_descriptor(self) -> None:
        pass


class Held(bytearray):
    """Bytes that keep something alive."""

    def __init__(self, data: bytearray, holder: object) -> None:
        super().__init__(data)
        self.holder = holder


class FakePassage:
    """Memory that has arrived, by its identity, and what was given to the other end."""

    def __init__(self, *arrived: FakeMemory) -> None:
        self.enabled = False
        self.arrived = {memory.identity: memory for memory in arrived}
        self.given: list[FakeMemory] = []

    def give(self, memory: FakeMemory) -> None:
        self.given.append(memory)

    def adopt(self, identity: int, size_bytes: int) -> FakeMemory:
        memory = self.arrived.pop(identity, None)
        if memory is None:
            raise LimitExceeded("shared memory", size_bytes, 0)
        if memory.size_bytes != size_bytes:
            raise InvalidValue("shared memory of bytes", size_bytes, "is not the length")
        return memory


class Sharer:
    """A peer that shares memory: arena 1 is its own."""

    def __init__(self, talk: Talk, name: str = "sharer", *, arena: bool = False, identity: Identity = ANYBODY) -> None:
        self.memory = FakeMemory(identity=77)
        self.passage = FakePassage(self.memory)
        self.peer = talk.peer(name, self.passage, identity)
        self._loans = 0
        if arena:
            self.peer.put(Kind.ARENA, number=1, count=1, total_bytes=SIZE, sequence=77, lane=Lane.CONTROL)
            assert self.peer.all_of(Kind.MAPPED)[-1].count == 1

    def publish(self, topic: str, payload: bytes, flags: int = 0, offset: int = 0, **fields: object) -> int:
        """Publishes a message in shared memory; returns its loan."""
        self._loans += 1
        self.memory.data[offset : offset + len(payload)] = payload
        self.peer.publish(
            topic, PLACE.pack(1, self._loans, offset), Flag.SHARED | flags, total_bytes=len(payload), **fields
        )
        return self._loans

    def back(self) -> list[int]:
        """Loans that the broker has released, in order."""
        gc.collect()
        self.peer.talk.settle()
        return [loan for frame in self.peer.all_of(Kind.RELEASE) for loan in released(frame)]

    def read(self, number: int, topic: str = "a") -> tuple[int, int]:
        """A subscription and the arena that the first shared message brought, mapped."""
        (frame,) = [frame for frame in self.peer.all_of(Kind.ARENA) if not frame.flags & Flag.LAST]
        self.peer.put(Kind.MAPPED, number=frame.number, count=1, lane=Lane.CONTROL)
        return number, frame.number

    def leases(self) -> list[int]:
        """Of all shared messages that were delivered."""
        return [PLACE.unpack(frame.payload)[1] for frame in self.peer.delivered() if frame.flags & Flag.SHARED]

    def release(self, *leases: int) -> None:
        self.peer.put(Kind.RELEASE, body=Release(list(leases)), lane=Lane.CONTROL)


def failure_of(peer: Peer) -> str:
    assert not peer.is_open
    return str(peer.session.failure)
