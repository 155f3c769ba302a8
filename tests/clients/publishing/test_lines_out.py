"""What the lines of one publisher share, and how it waits for memory from them."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from weakref import ref

import pytest

from broker.errors import TimeoutError
from broker.limits import LINE_DATA_BYTES, LOANS_MAX, MIB
from broker.protocol.bodies import Line, encode_body
from broker.protocol.frames import Flag, Frame, Kind, Lane, pack_header
from broker.protocol.line import AVAILABLE, DATA_OFFSET, PLACE_BYTES, VERSION, Releases, format_ring
from broker.protocol.places import PLACE
from broker.protocol.sharing import release_frames
from broker.transport.shared_memory import SharedMemory
from clients.connection import operations
from clients.publishing.arenas import Arenas
from clients.publishing.blocks import Place
from clients.publishing.line_out import LineOut, LinesOut
from tests.state.liners import BELL, LinePassage

needs_lines = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


class Offers:
    """A session in which lines are offered."""

    def __init__(self) -> None:
        self.passage = LinePassage()
        self.places: list[SharedMemory] = []
        self.lines = LinesOut()

    def accept(self, number: int) -> LineOut:
        """Has a line be offered, of a topic that keeps nothing, and takes it."""
        ring = SharedMemory.create(DATA_OFFSET + LINE_DATA_BYTES, common=True)
        format_ring(ring.address, ring.size_bytes)
        place = SharedMemory.create(PLACE_BYTES, common=True)
        self.places.append(place)
        self.passage.given = [ring, place]
        told = Line([place.identity], [BELL], [1], MIB, 0, 0)
        frame = Frame(
            Kind.LINE, lane=Lane.CONTROL, number=1, stream=number, count=VERSION, total_bytes=ring.size_bytes,
            sequence=ring.identity, body=encode_body(told),
        )  # fmt: skip
        line = self.lines.accept(self, frame, "a")  # type: ignore[arg-type]
        assert line is not None
        return line


def write(line: LineOut, loan: int) -> None:
    place = PLACE.pack(1, loan, 0)
    header = pack_header(Kind.PUBLISH, Flag.SHARED, Lane.DEFAULT, 1, 1, 0, 0, 0, 0, len(place), 1000, 0, 7)
    assert line.write(header, b"", place, 1000)


@needs_lines
def test_lines_that_have_ended_are_not_remembered_though_nobody_takes_anything_back() -> None:
    offers = Offers()
    lines = [offers.accept(number) for number in range(3)]
    del lines[1:]
    for number in range(3, 50):
        offers.accept(number)
    (taking,) = [each for each in gc.get_referents(offers.lines) if isinstance(each, list)]
    assert all(isinstance(each, ref) for each in taking)
    # The one that is in use, and the last one, of which it is not known yet that it is over.
    assert len(taking) == 2
    assert offers.lines.takes_back
    assert lines[0].number == 0


@needs_lines
def test_memory_is_awaited_from_lines_while_a_reader_has_some() -> None:
    offers = Offers()
    line, other = offers.accept(1), offers.accept(2)
    assert offers.lines.take_back() == []
    assert not offers.lines.awaits
    write(line, 5)
    write(line, 6)
    assert offers.lines.take_back() == []
    assert offers.lines.awaits
    releases = Releases(offers.places[0], offers.places[0].address)
    # 5 is what comes back; 6 is let go of too, but the newest is kept.
    first = 8 + 52 + 16 + 4
    for position in (first, 2 * first):
        releases.release(position)
    assert offers.lines.take_back() == [5]
    assert not offers.lines.awaits
    del line, other
    assert offers.lines.take_back() == []
    assert not offers.lines.takes_back


class Waiter:
    """The driver of a client that waits for memory: what happens meanwhile, a test says.

    Attributes:
        done: what it was asked to do.
        pauses: after so many there is room.
    """

    def __init__(self, *, awaits: bool) -> None:
        self.done: list[str] = []
        self.room = False
        self.pauses = 1 << 30
        lines = SimpleNamespace(takes_back=True, awaits=awaits, wait_for_memory=lambda _: self.done.append("ask"))
        arenas = SimpleNamespace(
            has_room=lambda _: self.room, waited=lambda _: None, widen=lambda _: None,
            came_back=SimpleNamespace(clear=lambda: None),
        )  # fmt: skip
        self.core = SimpleNamespace(
            arenas=arenas, outgoing=SimpleNamespace(lines=lines), session=None, take_back=self.take_back
        )
        self.taken_back = 0

    def take_back(self) -> None:
        self.taken_back += 1

    async def pause(self, seconds: float) -> bool:
        self.done.append("pause")
        self.pauses -= 1
        self.room = not self.pauses
        return True

    async def wait(self, signal: object, timeout_s: float | None, what: str) -> None:
        self.done.append("wait")
        raise TimeoutError(what, timeout_s or 0.0)

    def read_arrived(self) -> None:
        self.done.append("read")


def wait_for_room(waiter: Waiter) -> list[str]:
    asyncio.run(operations.room(waiter, MIB))  # type: ignore[arg-type]
    return waiter.done


def test_who_waits_for_readers_without_a_line_asks_the_broker_at_once() -> None:
    assert wait_for_room(Waiter(awaits=False)) == ["read", "ask", "wait"]


def test_who_waits_for_readers_of_lines_looks_again_and_asks_nobody() -> None:
    waiter = Waiter(awaits=True)
    waiter.pauses = 3
    assert wait_for_room(waiter) == ["read", "pause", "pause", "pause"]


def test_what_nobody_needs_is_taken_back_before_each_block_though_there_is_room() -> None:
    waiter = Waiter(awaits=True)
    waiter.room = True
    assert wait_for_room(waiter) == []
    assert waiter.taken_back == 1
    waiter.core.outgoing.lines.takes_back = False
    assert wait_for_room(waiter) == []
    assert waiter.taken_back == 1


class Lent:
    """Arenas of which the broker takes all, and loans in them."""

    def __init__(self) -> None:
        self.arenas = Arenas()
        self.arenas.connected(enabled=True)

    def place(self) -> Place:
        block = self.arenas.lend(MIB)
        assert block is not None
        block.arena.mapped = True
        return Place(block, block.offset)

    def share(self) -> int:
        shared = self.arenas.share(self.place())
        assert shared is not None
        return PLACE.unpack(shared)[1]

    def told(self, *loans: int) -> None:
        for frame in release_frames(list(loans)):
            self.arenas.released(frame)


def test_the_number_of_a_loan_that_came_back_by_a_line_is_in_use_until_the_broker_tells() -> None:
    lent = Lent()
    first, second = lent.share(), lent.share()
    lent.arenas.take_back([first])
    lent.arenas._last_loan = first - 1
    third = lent.share()
    assert len({first, second, third}) == 3
    lent.told(first)
    lent.arenas._last_loan = first - 1
    assert lent.share() == first
    # What the broker has told first is not waited for.
    lent.told(second)
    lent.arenas.take_back([second])
    lent.arenas._last_loan = second - 1
    assert lent.share() == second


def test_what_came_back_by_a_line_counts_as_lent_until_the_broker_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    # Or its publisher would have more than the broker takes, which ends the session.
    assert LOANS_MAX == 65_536
    monkeypatch.setattr("clients.publishing.arenas.LOANS_MAX", 3)
    lent = Lent()
    loans = [lent.share() for _ in range(3)]
    place = lent.place()
    assert not lent.arenas.can_share(place.block)
    lent.arenas.take_back(loans[:1])
    assert not lent.arenas.can_share(place.block)
    assert lent.arenas.share(place) is None
    lent.told(*loans[:2])
    assert lent.arenas.can_share(place.block)
    lent.arenas.take_back(loans[1:])
    assert lent.arenas.can_share(place.block)


def test_of_an_earlier_session_no_loan_is_in_use() -> None:
    lent = Lent()
    first = lent.share()
    lent.arenas.take_back([first])
    lent.arenas.connected(enabled=True)
    lent.arenas._last_loan = first - 1
    assert lent.share() == first
