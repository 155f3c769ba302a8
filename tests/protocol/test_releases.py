"""What a reader of a line lets go of reaches the broker once, whatever the place has room for and whoever lies."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidValue, ProtocolError
from broker.protocol.line import AVAILABLE, FULL, NOTED, PLACE_BYTES, RELEASES, WAITED_FOR, Releases, Writer
from broker.transport.shared_memory import SharedMemory
from tests.protocol.test_line import Whole

RELEASED_AT = 256

if not AVAILABLE:

    def test_without_the_compiled_module_there_are_none() -> None:
        with pytest.raises(InvalidValue, match="not compiled"):
            Releases(bytearray(PLACE_BYTES), 1)


lined = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")


class Place:
    """A place with both its ends in this process."""

    def __init__(self) -> None:
        self.memory = SharedMemory.create(PLACE_BYTES, common=True)
        self.reader = Releases(self.memory, self.memory.address)
        self.broker = Releases(self.memory, self.memory.address)

    def collect(self) -> list[int]:
        return self.broker.collect(self.broker.released())


@lined
def test_what_was_let_go_of_is_collected_once_and_in_order() -> None:
    place = Place()
    assert place.collect() == []
    assert [place.reader.release(position) for position in (80, 160, 40)] == [NOTED] * 3
    assert place.collect() == [80, 160, 40]
    assert place.collect() == []


@lined
def test_what_was_let_go_of_after_the_look_is_for_the_next_time() -> None:
    place = Place()
    place.reader.release(8)
    seen = place.broker.released()
    place.reader.release(16)
    assert place.broker.collect(seen) == [8]
    assert place.collect() == [16]


@lined
def test_a_place_without_room_keeps_what_is_late_until_there_is_some() -> None:
    place = Place()
    assert {place.reader.release(8 * number) for number in range(RELEASES)} == {NOTED}
    assert place.reader.release(8 * RELEASES) == FULL
    assert place.reader.late == [8 * RELEASES]
    assert place.reader.again()
    assert place.collect() == [8 * number for number in range(RELEASES)]
    assert not place.reader.again()
    assert place.reader.late == []
    assert place.collect() == [8 * RELEASES]


@lined
def test_the_broker_is_told_when_there_are_as_many_as_it_waits_for_and_then_no_more() -> None:
    place = Place()
    place.reader.release(8)
    assert not place.broker.want(3)
    assert [place.reader.release(position) for position in (16, 24, 32)] == [NOTED, WAITED_FOR, NOTED]
    assert len(place.collect()) == 4


@lined
def test_who_waits_for_what_is_there_already_is_told_so() -> None:
    place = Place()
    place.reader.release(8)
    assert place.broker.want(1)


@lined
def test_a_reader_that_is_about_to_wait_tells_a_broker_that_waits_of_fewer() -> None:
    place = Place()
    assert not place.broker.want(2)
    assert not place.reader.due()
    place.reader.release(8)
    assert place.reader.due()
    assert not place.reader.due()
    place.collect()
    place.reader.release(16)
    assert not place.reader.due()


@lined
@pytest.mark.parametrize("count", [RELEASES + 1, 1 << 63, (1 << 64) - 1])
def test_a_count_that_cannot_be_is_not_followed(count: int) -> None:
    place = Place()
    ctypes.memmove(place.memory.address + RELEASED_AT, count.to_bytes(8, "little"), 8)
    with pytest.raises(ProtocolError, match="let go of"):
        place.collect()
    assert place.broker.collect(0) == []


@lined
def test_a_count_that_goes_back_is_not_followed() -> None:
    place = Place()
    place.reader.release(8)
    place.collect()
    ctypes.memmove(place.memory.address + RELEASED_AT, bytes(8), 8)
    with pytest.raises(ProtocolError, match="after 1"):
        place.collect()


@lined
def test_a_publisher_sees_what_all_readers_have_let_go_of() -> None:
    whole = Whole(readers=2)
    releases = [Releases(place, place.address) for place in whole.places]
    writer: Writer = whole.writer
    for position in (8, 16, 24):
        releases[0].release(position)
    assert writer.collectable() == 0
    releases[1].release(8)
    assert writer.collectable() == 1
    broker = Releases(whole.places[0], whole.places[0].address)
    # The count at which it began is what it does not ask for.
    assert broker.collect(broker.released()) == []


@lined
@given(st.lists(st.integers(0, 2), max_size=3000))
def test_nothing_is_lost_and_nothing_comes_twice(steps: list[int]) -> None:
    place, number, collected = Place(), 0, []
    for step in steps:
        if step == 0:
            collected += place.collect()
        elif step == 1:
            place.reader.again()
        else:
            number += 1
            place.reader.release(8 * number)
    while True:
        place.reader.again()
        found = place.collect()
        collected += found
        if not found and not place.reader.late:
            break
    assert sorted(collected) == [8 * each for each in range(1, number + 1)]
