"""What a client has of lines in shared memory: only places that there are, each let go of once, and the broker told."""

from __future__ import annotations

import gc

import pytest

from broker.errors import ProtocolError
from broker.protocol.bodies import Hello
from broker.protocol.frames import Flag, Frame, Kind
from broker.protocol.line import AVAILABLE, PLACE_BYTES, RELEASES, Releases
from broker.protocol.places import PLACE
from broker.protocol.session import Session
from broker.protocol.sharing import arena_frame
from broker.transport.shared_memory import SharedMemory
from clients.reading.leases import Leases

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")

SIZE = 4096
ARENA = 7


class Passage:
    """Memory that has arrived."""

    enabled = True

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory

    def adopt(self, identity: int, size_bytes: int) -> SharedMemory:
        return self._memory


class Reading:
    """A client's leases, a line on which messages come to it, and the broker's end of its place."""

    def __init__(self) -> None:
        self.memory = SharedMemory.create(4 * SIZE)
        self.session = Session(
            hello=Hello("reader"), now_ns=0, allocate=lambda frame, size_bytes: memoryview(bytearray(size_bytes)),
            heartbeat_interval_s=5.0, heartbeat_timeout_s=30.0, passage=Passage(self.memory),
        )  # fmt: skip
        self.leases = Leases()
        self.leases.arena(self.session, arena_frame(ARENA, self.memory))
        place = SharedMemory.create(PLACE_BYTES, common=True)
        self.line = self.leases.line(Releases(place, place.address))
        self.broker = Releases(place, place.address)
        self.told()

    def lined(self, position: int, arena: int = ARENA, offset: int = 0, size_bytes: int = SIZE) -> memoryview:
        frame = Frame(Kind.PUBLISH, Flag.SHARED, total_bytes=size_bytes, payload=PLACE.pack(arena, 1, offset))
        return self.leases.lined(self.line, position, frame)

    def let_go(self) -> list[int]:
        gc.collect()
        return self.broker.collect(self.broker.released())

    def told(self) -> int:
        """How many frames the client has said since the last time."""
        waiting = self.session.outbox.waiting
        self.session.outbox.clear()
        return waiting


@pytest.fixture
def reading() -> Reading:
    return Reading()


def test_a_message_is_let_go_of_with_its_last_view_and_nobody_is_told(reading: Reading) -> None:
    first, second = reading.lined(8), reading.lined(16, offset=SIZE)
    part = first[10:20]
    del first
    assert reading.let_go() == []
    del part
    assert reading.let_go() == [8]
    assert not reading.leases.due()
    reading.leases.give_back(reading.session)
    assert reading.told() == 0
    del second
    assert reading.let_go() == [16]


@pytest.mark.parametrize(
    "lie",
    [
        {"arena": ARENA + 1},
        {"offset": 3 * SIZE + 1},
        {"offset": (1 << 64) - 1},
        {"size_bytes": 4 * SIZE + 1},
        {"size_bytes": (1 << 64) - 1, "offset": 1},
        {"size_bytes": 0},
    ],
)
def test_over_a_place_that_there_is_not_no_array_is_built(reading: Reading, lie: dict[str, int]) -> None:
    with pytest.raises(ProtocolError, match="no such place"):
        reading.lined(8, **lie)
    assert reading.let_go() == [8]


def test_a_broker_that_waits_is_told_once_when_there_is_as_much_as_it_waits_for(reading: Reading) -> None:
    views = [reading.lined(8 * number) for number in range(1, 5)]
    assert not reading.broker.want(2)
    views.pop()
    assert not reading.leases.due()
    views.pop()
    assert reading.leases.due()
    reading.leases.give_back(reading.session)
    assert reading.told() == 1
    views.clear()
    assert not reading.leases.due()


def test_before_it_waits_itself_a_client_tells_a_broker_that_waits_of_less(reading: Reading) -> None:
    views = [reading.lined(8 * number) for number in range(1, 5)]
    assert not reading.broker.want(3)
    views.pop()
    reading.leases.give_back(reading.session)
    assert reading.told() == 1
    reading.leases.give_back(reading.session)
    assert reading.told() == 0


def test_what_a_place_has_no_room_for_is_said_later(reading: Reading) -> None:
    views = [reading.lined(8 * number) for number in range(1, RELEASES + 11)]
    views.clear()
    assert reading.leases.due()
    reading.leases.give_back(reading.session)
    assert reading.told() == 1
    assert len(reading.let_go()) == RELEASES
    reading.leases.give_back(reading.session)
    assert len(reading.let_go()) == 10


def test_after_the_session_nothing_is_let_go_of_and_what_is_kept_is_a_copy(reading: Reading) -> None:
    writable = reading.memory.view(0, SIZE, reading.memory)
    writable[:5] = b"as it"
    kept, gone = reading.lined(8), reading.lined(16, offset=SIZE)
    del gone
    reading.leases.disconnected()
    assert reading.let_go() == [16]
    assert bytes(kept[:5]) == b"as it"
    del kept
    assert reading.let_go() == []
