"""Messages in the memory of devices in the broker's state: who can have them there, and when the others get bytes."""

from __future__ import annotations

import gc

import pytest

from broker.limits import MIB
from broker.protocol.bodies import Declare, Failure, Line, Subscribe, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
from broker.protocol.line import AVAILABLE
from broker.protocol.places import PLACE, charge
from broker.protocol.sharing import DeviceArena
from tests.state.harness import Talk
from tests.state.liners import line_memory
from tests.state.placers import Placer, reader_of
from tests.state.sharers import SIZE, FakeMemory, FakePassage, Sharer, failure_of

GPU, OTHER = "gpu-1", "gpu-2"
LINED = pytest.mark.skipif(not AVAILABLE, reason="lines take the compiled module broker.protocol.line")
TOKEN = b"t" * 16
FLAGS = Flag.SHARED | Flag.ACKNOWLEDGE


class DevicePassage(FakePassage):
    """One by which descriptors of devices' memory arrive."""

    def take_device(self, identity: int) -> FakeMemory | None:
        return self.arrived.pop(identity, None)


class Placing(Sharer):
    """A peer that shares the memory of a device: arena 9 is its own."""

    def __init__(self, talk: Talk, name: str = "placing", *, topic: str = "a", device: str = GPU) -> None:
        self.memory = FakeMemory(identity=55)
        self.passage = DevicePassage(self.memory)
        self.peer = talk.peer(name, self.passage)
        self._loans = 100
        self.peer.topic(topic)
        self.announce(DeviceArena(device, TOKEN, topic))

    def announce(self, told: DeviceArena | None, number: int = 9, size_bytes: int = SIZE) -> None:
        self.peer.put(
            Kind.ARENA, number=number, count=2, total_bytes=size_bytes, sequence=55, body=told, lane=Lane.CONTROL
        )

    def place(self, topic: str = "a", flags: int = FLAGS, **fields: object) -> int:
        """Publishes a message that lies there; returns its loan."""
        self._loans += 1
        self.peer.publish(topic, PLACE.pack(9, self._loans, 256), flags, target=self._loans, total_bytes=MIB, **fields)
        return self._loans

    def answers(self) -> list[str]:
        """What the broker has said to each: `taken`, `new`, or why it wants the bytes."""
        answers = []
        for frame in self.peer.frames:
            if frame.kind == Kind.DONE and frame.target > 100:
                answers.append("taken")
            elif frame.kind == Kind.ERROR:
                failure = decode_body(frame.body, Failure)
                assert failure.code == Code.STAGED
                answers.append("new" if failure.value else failure.reason)
        return answers

    def mapped(self) -> list[int]:
        return [frame.count for frame in self.peer.all_of(Kind.MAPPED)]


class Taking(Sharer):
    """A reader of a topic in the memory of devices."""

    def __init__(self, talk: Talk, name: str = "taking", *, topic: str = "a", device: str = GPU) -> None:
        self.passage = DevicePassage()
        self.peer = talk.peer(name, self.passage)
        self.subscribe(1, topic, device)

    def subscribe(self, number: int, topic: str, device: str) -> None:
        wishes = Subscribe(topic, "block", devices=[device] if device else [])
        self.peer.put(Kind.SUBSCRIBE, number=number, target=number, body=wishes, lane=Lane.CONTROL)

    def answer(self, *, count: int = 1) -> None:
        """Says whether it has mapped what it was last told of."""
        frame = [frame for frame in self.peer.all_of(Kind.ARENA) if not frame.flags & Flag.LAST][-1]
        self.peer.put(Kind.MAPPED, number=frame.number, count=count, lane=Lane.CONTROL)


@pytest.fixture
def talk() -> Talk:
    return Talk(ring_messages=0, device_memory_bytes=2 * SIZE)


@pytest.fixture
def taking(talk: Talk) -> Taking:
    return Taking(talk)


@pytest.fixture
def placing(talk: Talk, taking: Taking) -> Placing:
    """A publisher whose memory the reader has mapped."""
    placing = Placing(talk)
    taking.answer()
    assert placing.mapped() == [1]
    return placing


def test_a_publisher_hears_of_its_arena_when_the_readers_of_its_topic_have_mapped_it(talk: Talk) -> None:
    readers = [Taking(talk, "one"), Taking(talk, "two")]
    Taking(talk, "elsewhere", topic="b")
    placing = Placing(talk)
    for reader in readers:
        (arena,) = reader.peer.all_of(Kind.ARENA)
        assert (arena.count, arena.total_bytes, arena.sequence) == (2, SIZE, 55)
        assert decode_body(arena.body, DeviceArena) == DeviceArena(GPU, TOKEN)
        assert [given.name for given in reader.passage.given] == [GPU]
        assert placing.mapped() == []
        reader.answer()
    assert placing.mapped() == [1]


def test_a_reader_that_dies_before_it_has_answered_is_not_waited_for(talk: Talk) -> None:
    one, two = Taking(talk, "one"), Taking(talk, "two")
    placing = Placing(talk)
    one.peer.die()
    assert placing.mapped() == []
    two.peer.die()
    assert placing.mapped() == [1]


def test_a_reader_that_dies_after_it_has_answered_is_not_asked_again(talk: Talk) -> None:
    one, two = Taking(talk, "one"), Taking(talk, "two")
    placing = Placing(talk)
    one.answer()
    one.peer.die()
    two.answer()
    assert placing.mapped() == [1]
    assert len(one.passage.given) == 1


@pytest.mark.parametrize(
    "told", [DeviceArena("", TOKEN, "a"), DeviceArena("x" * 65, TOKEN, "a"), DeviceArena(GPU, b"t", "a")]
)
def test_memory_that_is_of_no_device_or_has_no_token_ends_the_session(placing: Placing, told: DeviceArena) -> None:
    placing.passage.arrived[55] = FakeMemory(55)
    placing.announce(told, number=10)
    assert "arena of a device named in" in failure_of(placing.peer)


def test_without_readers_there_it_is_mapped_at_once(talk: Talk) -> None:
    assert Placing(talk).mapped() == [1]


def test_a_message_is_taken_and_delivered_as_a_place(placing: Placing, taking: Taking) -> None:
    loan = placing.place()
    assert placing.answers() == ["taken"]
    (frame,) = taking.peer.delivered()
    (arena,) = taking.peer.all_of(Kind.ARENA)
    assert (frame.flags, frame.total_bytes, frame.sequence) == (Flag.SHARED, MIB, 1)
    assert PLACE.unpack(frame.payload) == (arena.number, 1, 256)
    assert placing.back() == []
    taking.release(1)
    assert placing.back() == [loan]


def test_one_that_nobody_reads_is_taken_and_comes_back(talk: Talk) -> None:
    placing = Placing(talk)
    loan = placing.place()
    assert placing.answers() == ["taken"]
    assert placing.back() == [loan]


@pytest.mark.parametrize(
    ("reader", "why"),
    [
        (lambda talk: talk.peer("far").subscribe("a"), "'far' reads 'a' in host memory, or on another host"),
        (lambda talk: Taking(talk, "host", device=""), "'host' reads 'a' in host memory, or on another host"),
        (lambda talk: Taking(talk, "gpu", device=OTHER), "'gpu' reads 'a' in host memory, or on another host"),
        (lambda talk: talk.peer("m").subscribe("a", queue_group="g"), "topic 'a' has a queue group or a responder"),
    ],
    ids=["far", "host", "gpu", "group"],
)  # fmt: skip
def test_while_somebody_cannot_have_it_there_nobody_gets_it_and_the_bytes_are_asked_for(
    talk: Talk, placing: Placing, taking: Taking, reader: object, why: str
) -> None:
    reader(talk)  # type: ignore[operator]
    loan = placing.place()
    assert placing.answers() == [why]
    assert placing.back() == [loan]
    assert taking.peer.delivered() == []
    assert talk.state.router.topics["a"].published == 0


def test_a_topic_that_keeps_it_gets_bytes(talk: Talk, placing: Placing) -> None:
    placing.peer.put(Kind.DECLARE, target=1, body=Declare("a", retain=True), lane=Lane.CONTROL)
    placing.place()
    assert placing.answers() == [f"topic 'a' keeps messages of {MIB} bytes"]
    placing.peer.put(
        Kind.DECLARE, target=2, body=Declare("a", retain=None, ring_messages=4, ring_bytes=MIB - 1), lane=Lane.CONTROL
    )
    placing.place()
    assert placing.answers()[1:] == ["taken"]


def test_a_reader_that_comes_later_is_told_with_the_next_message(talk: Talk, placing: Placing, taking: Taking) -> None:
    late = Taking(talk, "late")
    for _ in range(2):
        placing.place()
    assert placing.answers() == ["new", "new"]
    assert len(late.peer.all_of(Kind.ARENA)) == 1
    late.answer()
    placing.place()
    assert placing.answers() == ["new", "new", "taken"]
    assert [len(reader.peer.delivered()) for reader in (taking, late)] == [1, 1]


def test_a_reader_that_comes_later_is_told_of_all_memory_of_the_publisher_at_once(
    talk: Talk, placing: Placing, taking: Taking
) -> None:
    placing.passage.arrived[55] = FakeMemory(55)
    placing.announce(DeviceArena(GPU, TOKEN, "none"), number=10)
    late = Taking(talk, "late")
    placing.place()
    assert len(late.peer.all_of(Kind.ARENA)) == 2


def test_a_reader_that_cannot_map_it_makes_it_bytes_until_it_is_gone(talk: Talk, placing: Placing) -> None:
    late = Taking(talk, "late")
    placing.place()
    late.answer(count=0)
    placing.place()
    assert placing.answers() == ["new", "'late' cannot map the memory"]
    late.peer.die()
    placing.place()
    assert placing.answers()[2:] == ["taken"]


def test_another_subscription_of_the_same_session_that_reads_in_host_memory_counts(
    placing: Placing, taking: Taking
) -> None:
    taking.subscribe(2, "#", "")
    placing.place()
    assert placing.answers() == ["'taking' reads 'a' in host memory, or on another host"]
    taking.peer.put(Kind.UNSUBSCRIBE, number=2, target=7, lane=Lane.CONTROL)
    placing.place()
    assert placing.answers()[1:] == ["taken"]


def test_a_session_that_has_ended_all_that_it_took_there_is_asked_for_nothing(placing: Placing, taking: Taking) -> None:
    taking.peer.put(Kind.UNSUBSCRIBE, number=1, target=7, lane=Lane.CONTROL)
    taking.subscribe(1, "a", "")
    placing.place()
    assert placing.answers() == ["'taking' reads 'a' in host memory, or on another host"]


@LINED
def test_who_has_not_named_the_device_is_told_of_none_of_its_memory_also_by_a_line() -> None:
    talk = Talk(line_memory=line_memory, ring_messages=0, device_memory_bytes=2 * SIZE)
    publisher = Placer(talk, "publisher", arena=True, bell=False)
    publisher.passage.take_device = lambda identity: FakeMemory(identity)  # type: ignore[attr-defined]
    told = DeviceArena(GPU, TOKEN, "b")
    publisher.peer.put(Kind.ARENA, number=9, count=2, total_bytes=SIZE, sequence=55, body=told, lane=Lane.CONTROL)
    assert sorted(publisher.names) == [1, 9]
    reader = reader_of(talk, publisher, "reader")
    publisher.go_on_line("a", 7)
    assert [frame for frame in reader.peer.all_of(Kind.ARENA) if not frame.flags & Flag.LAST] == []
    assert publisher.known() == {1}


@LINED
def test_memory_of_a_device_is_none_of_what_may_lie_on_a_line() -> None:
    talk = Talk(line_memory=line_memory, ring_messages=0, device_memory_bytes=2 * SIZE)
    publisher = Placer(talk, "publisher", bell=False)
    publisher.passage.take_device = lambda identity: FakeMemory(identity)  # type: ignore[attr-defined]
    reader = Placer(talk, "reader")
    reader.peer.put(Kind.SUBSCRIBE, number=1, target=1, body=Subscribe("a", "block", devices=[GPU]), lane=Lane.CONTROL)
    publisher.peer.topic("a")
    told = DeviceArena(GPU, TOKEN, "a")
    publisher.peer.put(Kind.ARENA, number=9, count=2, total_bytes=SIZE, sequence=55, body=told, lane=Lane.CONTROL)
    reader.map_arenas()
    assert sorted(publisher.names) == [9]
    for _ in range(64):
        publisher.peer.publish("a", b"small")
    assert decode_body(publisher.offers()[-1].body, Line).arenas == []


def test_what_was_taken_is_delivered_when_the_publisher_is_gone(talk: Talk, placing: Placing, taking: Taking) -> None:
    taking.peer.reading = False
    placing.place()
    placing.peer.die()
    gc.collect()
    taking.peer.reading = True
    talk.settle()
    (frame,) = taking.peer.delivered()
    assert frame.flags == Flag.SHARED
    ends = [frame for frame in taking.peer.all_of(Kind.ARENA) if frame.flags & Flag.LAST]
    assert ends == []
    taking.release(PLACE.unpack(frame.payload)[1])
    gc.collect()
    talk.settle()
    assert [frame for frame in taking.peer.all_of(Kind.ARENA) if frame.flags & Flag.LAST] != []


def test_a_reader_that_dies_has_released_all(placing: Placing, taking: Taking) -> None:
    loans = [placing.place() for _ in range(3)]
    assert placing.back() == []
    taking.peer.die()
    assert sorted(placing.back()) == loans


def test_what_is_refused_takes_credit_as_what_is_taken(talk: Talk, placing: Placing) -> None:
    (publisher,) = [each for each in placing.peer.record.publishers.values() if each.topic.name == "a"]
    placing.place()
    taken_bytes = publisher.used_bytes
    assert taken_bytes == charge(MIB)
    Taking(talk, "host", device="")
    placing.place()
    assert (publisher.used_bytes, publisher.used_messages) == (2 * taken_bytes, 2)


@pytest.mark.parametrize("flags", [Flag.SHARED, FLAGS | Flag.REQUEST, FLAGS | Flag.LAST, FLAGS | Flag.TRACED])
def test_other_flags_end_the_session(placing: Placing, flags: int) -> None:
    placing.place(flags=flags)
    assert "in the memory of a device" in failure_of(placing.peer)


def test_memory_of_devices_has_a_limit_of_its_own(talk: Talk, placing: Placing) -> None:
    placing.passage.arrived[55] = FakeMemory(55)
    placing.announce(DeviceArena(GPU, TOKEN, "a"), number=10, size_bytes=SIZE + 1)
    assert placing.mapped() == [1, 0]
    placing.passage.arrived[55] = FakeMemory(55)
    placing.announce(DeviceArena(GPU, TOKEN, "none"), number=11)
    assert placing.mapped() == [1, 0, 1]
    placing.announce(DeviceArena(GPU, TOKEN, "a"), number=12, size_bytes=0)
    assert placing.mapped() == [1, 0, 1, 0]


def test_where_it_is_off_none_is_taken(talk: Talk) -> None:
    talk = Talk(ring_messages=0)
    placing = Placing(talk)
    assert placing.mapped() == [0]
    welcome = placing.peer.welcome
    assert welcome is not None
    assert welcome.device_bytes == 0


def test_who_shares_no_memory_is_told_of_none(talk: Talk) -> None:
    far, near = talk.peer("far"), talk.peer("near", DevicePassage())
    assert far.welcome is not None
    assert near.welcome is not None
    assert (far.welcome.device_bytes, near.welcome.device_bytes) == (0, 2 * SIZE)


def test_a_session_that_may_not_read_all_topics_gets_bytes(talk: Talk, placing: Placing, taking: Taking) -> None:
    taking.peer.record.shares.reads = False
    placing.place()
    assert placing.answers() == ["'taking' reads 'a' in host memory, or on another host"]


def test_too_many_devices_are_refused(talk: Talk) -> None:
    peer = talk.peer("many", DevicePassage())
    peer.put(Kind.SUBSCRIBE, number=1, target=1, body=Subscribe("a", devices=["x"] * 65), lane=Lane.CONTROL)
    peer.put(Kind.SUBSCRIBE, number=1, target=1, body=Subscribe("a", devices=["x" * 65]), lane=Lane.CONTROL)
    assert [decode_body(frame.body, Failure).code for frame in peer.all_of(Kind.ERROR)] == [Code.INVALID] * 2


def test_what_is_refused_comes_again_and_counts_then(talk: Talk, placing: Placing) -> None:
    publishing = talk.state.publishing
    placing.place()
    assert publishing.shared_bytes == MIB
    Taking(talk, "host", device="")
    placing.place()
    assert placing.answers()[0] == "taken"
    assert "reads 'a' in host memory" in placing.answers()[1]
    assert publishing.shared_bytes == MIB
