"""Boards in the broker's state: which generations get one, and when it ends."""

from __future__ import annotations

import msgspec
import pytest

from broker.collectives.reading import Entry, Standing
from broker.collectives.recorder import Outcome
from broker.collectives.watching import SLACK_NS
from broker.limits import BOARDS_MAX
from broker.protocol.bodies import Join, Membership, decode_body
from broker.protocol.frames import Kind
from broker.state.boards import BoardMaker
from tests.state.harness import SECOND_NS, Peer, Talk
from tests.state.sharers import FakeMemory, FakePassage

VERSION = 4


class FakeReader:
    """Reads a board on which nothing happens but what the test says."""

    def __init__(self, positions: int) -> None:
        self.now = [Standing(0, 0, 0, 0, 0, 0)] * positions
        self.entries: dict[tuple[int, int], Entry] = {}

    def begin(self, position: int, sequence: int, began_ns: int) -> None:
        self.now[position] = self.now[position]._replace(begun=sequence, arrived=sequence)
        self.entries[position, sequence] = Entry(began_ns, 0, b"")

    def pulse(self) -> int:
        return sum(sum(each) for each in self.now)

    def standings(self) -> list[Standing]:
        return [*self.now]

    def entry(self, position: int, sequence: int) -> Entry | None:
        return self.entries.get((position, sequence))

    def verdict(self, sequence: int) -> tuple[int, int, int]:
        return 0, 0, 0

    def failure(self, author: int, sequence: int) -> tuple[int, int, dict[int, bytes]] | None:
        return None


class FakeBoard:
    """Remembers how it has ended."""

    def __init__(self, positions: int, identity: int) -> None:
        self.positions = positions
        self.memory = FakeMemory(identity, 4096)
        self.reader = FakeReader(positions)
        self.ends: list[bool] = []

    def end(self, *, draining: bool) -> None:
        self.ends.append(draining)


class World:
    """A broker that can make boards, and members that share memory with it."""

    def __init__(self) -> None:
        self.boards: list[FakeBoard] = []
        self.most = 1 << 30
        self.talk = Talk(boards=BoardMaker(VERSION, self._make))
        self.passages: dict[Peer, FakePassage] = {}

    def _make(self, positions: int) -> FakeBoard | None:
        if len(self.boards) >= self.most:
            return None
        self.boards.append(FakeBoard(positions, 1000 + len(self.boards)))
        return self.boards[-1]

    def member(self, rank: int, *, shares: bool = True, version: int = VERSION, group: str = "dp") -> Peer:
        passage = FakePassage() if shares else None
        peer = self.talk.peer(f"rank-{rank}", passage)
        if passage is not None:
            self.passages[peer] = passage
        join(peer, rank, version, group)
        return peer

    def given(self, peer: Peer) -> list[int]:
        return [memory.identity for memory in self.passages[peer].given]


def join(peer: Peer, rank: int, version: int = VERSION, group: str = "dp") -> None:
    peer.put(Kind.JOIN, body=Join(group, 2, rank, 10**10, version), target=100 + rank)


def told(peer: Peer, kind: Kind) -> list[Membership]:
    return [decode_body(frame.body, Membership) for frame in peer.all_of(kind)]


@pytest.fixture
def world() -> World:
    return World()


def test_a_generation_whose_members_all_share_memory_has_a_board(world: World) -> None:
    members = [world.member(0), world.member(1)]
    assert [board.positions for board in world.boards] == [2]
    for member in members:
        assert world.given(member) == [1000]
        assert [(each.board, each.board_bytes) for each in told(member, Kind.JOINED)] == [(1000, 4096)]


@pytest.mark.parametrize("other", [{"shares": False}, {"version": 0}, {"version": VERSION + 1}])
def test_one_member_that_cannot_use_a_board_is_enough_for_none(world: World, other: dict[str, int]) -> None:
    members = [world.member(0), world.member(1, **other)]
    assert world.boards == []
    assert [told(member, Kind.JOINED)[0].board for member in members] == [0, 0]


def test_a_lost_member_ends_the_board_at_once_and_the_next_generation_has_one(world: World) -> None:
    survivor, lost = world.member(0), world.member(1)
    lost.die()
    assert world.boards[0].ends == [False]
    assert [each.board for each in told(survivor, Kind.CHANGED)] == [1001]
    assert world.boards[1].positions == 1


def test_a_newcomer_lets_the_operations_in_progress_finish(world: World) -> None:
    world.member(0)
    world.member(1).die()
    world.member(1)
    assert [board.ends for board in world.boards] == [[False], [True], []]
    assert [board.positions for board in world.boards] == [2, 1, 2]


def test_a_newcomer_that_cannot_use_a_board_leaves_the_group_without(world: World) -> None:
    survivor = world.member(0)
    world.member(1).die()
    world.member(1, shares=False)
    assert [each.board for each in told(survivor, Kind.CHANGED)] == [1001, 0]
    assert world.boards[1].ends == [True]


def test_a_member_that_leaves_and_the_last_one_end_their_boards(world: World) -> None:
    first, second = world.member(0), world.member(1)
    number = first.all_of(Kind.JOINED)[0].number
    second.put(Kind.LEAVE, number=number, target=7)
    assert world.boards[0].ends == [False]
    first.put(Kind.LEAVE, number=number, target=7)
    assert world.boards[1].ends == [False]
    assert len(world.boards) == 2


def test_a_member_that_cannot_use_its_board_begins_a_generation_without_one(world: World) -> None:
    first, second = world.member(0), world.member(1)
    number = first.all_of(Kind.JOINED)[0].number
    second.put(Kind.BOARD, number=number, target=1)
    assert world.boards[0].ends == [True]
    for member in (first, second):
        assert told(member, Kind.CHANGED) == [Membership(2, [0, 1])]
    # A word about a generation that is over changes nothing.
    first.put(Kind.BOARD, number=number, target=1)
    assert len(told(first, Kind.CHANGED)) == 1


def test_a_second_join_does_not_change_what_a_member_can_use(world: World) -> None:
    first, second = world.member(0), world.member(1, version=0)
    join(second, 1)
    world.talk.settle()
    second.put(Kind.LEAVE, number=first.all_of(Kind.JOINED)[0].number, target=7)
    join(second, 1, version=0)
    assert [board.positions for board in world.boards] == [1]


def test_without_a_board_from_its_maker_a_generation_has_none(world: World) -> None:
    world.most = 0
    member = world.member(0)
    world.member(1)
    assert [each.board for each in told(member, Kind.JOINED)] == [0]


def test_boards_are_bounded(world: World) -> None:
    for number in range(BOARDS_MAX + 1):
        world.member(0, group=f"group-{number}")
        world.member(1, group=f"group-{number}")
    assert len(world.boards) == BOARDS_MAX


def test_what_is_in_progress_on_a_board_is_shown_and_announced_once_it_does_not_move(world: World) -> None:
    member, _ = world.member(0), world.member(1)
    listener = world.talk.peer("listener")
    number = listener.subscribe("$sys/groups/#")
    group = next(iter(world.talk.state.own.groups.by_number.values()))
    reader = world.boards[0].reader
    reader.begin(1, 7, world.talk.now_ns)
    world.talk.state.tick(world.talk.now_ns)
    for _ in range(40):
        world.talk.now_ns += SECOND_NS // 20
        world.talk.state.tick(world.talk.now_ns)
    world.talk.settle()
    shown = world.talk.state.own.groups.snapshot(group, world.talk.now_ns)
    (operation,) = shown.operations
    assert (shown.schedule, operation.schedule, operation.sequence) == ("shm", "shm", 7)
    assert (list(operation.arrived_ns), operation.missing_ranks) == ([1], (0,))
    assert world.talk.now_ns - operation.moved_ns == 2 * SECOND_NS
    (told,) = [msgspec.msgpack.decode(each) for each in listener.payloads(number)]
    assert (told["event"], told["sequence"], told["missing_ranks"], told["arrived_ranks"]) == ("stuck", 7, [0], [1])
    assert (told["generation"], told["ranks"], told["group"]) == (1, [0, 1], "dp")
    member.die()
    assert [each.outcome for each in group.recorder.recent(9)] == [Outcome.VOID]


@pytest.mark.parametrize("ticked", [True, False])
def test_what_is_recorded_at_the_end_of_a_board_has_the_times_of_its_members(world: World, ticked: bool) -> None:
    world.talk.now_ns = 3600 * SECOND_NS
    world.member(0)
    lost = world.member(1)
    group = next(iter(world.talk.state.own.groups.by_number.values()))
    reader = world.boards[0].reader
    if ticked:
        world.talk.state.tick(world.talk.now_ns)
    reader.begin(0, 1, world.talk.now_ns + 7)
    reader.begin(1, 1, 2**64 - 1)
    lost.die()
    (recorded,) = group.recorder.recent(9)
    assert recorded.arrived_ns[0] == world.talk.now_ns + 7
    assert recorded.arrived_ns[1] <= world.talk.now_ns + SLACK_NS


def test_members_stand_still_while_an_operation_on_their_board_does_not_move(world: World) -> None:
    members = [world.member(0), world.member(1)]
    groups, reader = world.talk.state.own.groups, world.boards[0].reader

    def standing_still() -> list[int]:
        world.talk.tick(0.1)
        return [record.id for record in groups.standing_still(world.talk.now_ns)]

    assert standing_still() == []
    reader.begin(1, 7, world.talk.now_ns)
    assert [standing_still(), standing_still()] == [[], [member.record.id for member in members]]
    reader.now[1] = reader.now[1]._replace(staged=reader.now[1].staged + 1, left=6)
    reader.begin(0, 7, world.talk.now_ns)
    assert standing_still() == []
    assert len(standing_still()) == 2
    members[0].die()
    assert standing_still() == []
