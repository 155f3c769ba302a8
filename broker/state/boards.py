"""The boards of groups whose members are all on this host (docs/wire.md section 14).

A generation has a board if all its members share memory with the broker and can use one. It is made before they are
told of the generation, and ended as soon as the next one begins. The broker looks at it to tell people who is late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from broker.collectives.effects import Changed, Effect
from broker.collectives.group import Group
from broker.collectives.snapshots import GroupSnapshot
from broker.collectives.watching import BoardReader, BoardWatch
from broker.ids import Generation, GroupNumber, SessionId
from broker.limits import BOARDS_MAX
from broker.protocol.bodies import Membership
from broker.protocol.sharing import Memory
from broker.schedules import SHM
from broker.state.records import SessionRecord


class Board(Protocol):
    """Memory in which the members of a generation carry out its operations."""

    @property
    def memory(self) -> Memory:
        """Where it lies."""
        ...

    @property
    def reader(self) -> BoardReader:
        """Reads what members have left there."""
        ...

    def end(self, *, draining: bool) -> None:
        """The generation has ended, and with it every operation on the board; those to which all have come may finish
        when draining.
        """
        ...


@dataclass(frozen=True, slots=True)
class BoardMaker:
    """What makes boards.

    Attributes:
        version: of their layout.
        make: a board for so many members; None when there cannot be one.
    """

    version: int
    make: Callable[[int], Board | None]


class Boards:
    """The board of each group, of those that have one."""

    def __init__(self, maker: BoardMaker | None) -> None:
        self.now_ns = 0
        """The time of the last tick of a group or of the last JOIN, or later."""
        self._maker = maker
        self._generations: dict[GroupNumber, Generation] = {}
        self._boards: dict[GroupNumber, Board] = {}
        self._watches: dict[GroupNumber, BoardWatch] = {}
        self._able: set[tuple[GroupNumber, SessionId]] = set()

    def wished(self, group: Group, session: SessionRecord, version: int) -> None:
        """A session wants to be a member, and can use boards of a version."""
        if self._maker is not None and version == self._maker.version and session.shares is not None:
            self._able.add((group.number, session.id))

    def refused(self, group: Group, session: SessionRecord) -> None:
        """A member cannot use the board that it was given, nor any other one."""
        self._able.discard((group.number, session.id))

    def left(self, group: Group, session: SessionId) -> None:
        """A session is not a member any more."""
        self._able.discard((group.number, session))

    def look(self, group: Group, now_ns: int) -> None:
        """Time has passed: what has happened on a group's board, if it has one, is recorded."""
        self.now_ns = now_ns
        watch = self._watches.get(group.number)
        if watch is not None:
            watch.look(group.recorder, now_ns)

    def still_ns(self, group: Group, now_ns: int) -> int:
        """For how long an operation on a group's board has not moved; 0 when it has none."""
        watch = self._watches.get(group.number)
        return 0 if watch is None else watch.still_ns(now_ns)

    def snapshot(self, group: Group, now_ns: int) -> GroupSnapshot:
        """The state of a group at this moment, with what is in progress on its board."""
        self.look(group, now_ns)
        snapshot, watch = group.snapshot(), self._watches.get(group.number)
        if watch is None:
            return snapshot
        operations = (*snapshot.operations, *watch.operations())
        return replace(snapshot, schedule=SHM, operations=operations)

    def follow(self, group: Group, effects: Iterable[Effect]) -> None:
        """Something has happened in a group: if that has begun a generation, its board is made."""
        if self._generations.get(group.number, 0) == group.generation:
            return
        lost = not group.ranks or any(isinstance(each, Changed) and each.lost_ranks for each in effects)
        watch = self._watches.pop(group.number, None)
        if watch is not None:
            watch.end(group.recorder, self.now_ns)
        self.dissolved(group.number, draining=not lost)
        self._generations[group.number] = group.generation
        members = group.sessions
        if self._maker is None or not members or len(self._boards) >= BOARDS_MAX:
            return
        if all((group.number, session) in self._able for session in members):
            board = self._maker.make(len(members))
            if board is not None:
                self._boards[group.number] = board
                self._watches[group.number] = BoardWatch(
                    board.reader, group.name, group.generation, group.ranks, group.world_size, self.now_ns
                )

    def dissolved(self, number: GroupNumber, *, draining: bool = False) -> None:
        """A group's generation has ended."""
        self._generations.pop(number, None)
        self._watches.pop(number, None)
        board = self._boards.pop(number, None)
        if board is not None:
            board.end(draining=draining)

    def has(self, number: GroupNumber) -> bool:
        """Whether a group's generation has a board."""
        return number in self._boards

    def problem(self, group: Group) -> str:
        """Why a group's generation has no board; nothing when it has one."""
        if group.number in self._boards:
            return ""
        if self._maker is None:
            return "the broker makes none: its shared memory is off, or its engines are not compiled"
        members = zip(group.ranks, group.sessions, strict=True)
        unable = [str(rank) for rank, session in members if (group.number, session) not in self._able]
        if unable:
            return f"no memory shared with the broker, or another schedule asked for: rank {', '.join(unable)}"
        return "a board could not be made" if group.generation else "it has not formed"

    def give(self, group: Group, session: SessionRecord, told: Membership) -> Membership:
        """What a member is told of a generation, with its board if there is one."""
        board = self._boards.get(group.number)
        passage = session.session.passage
        if board is not None and passage is not None and told.generation == group.generation:
            passage.give(board.memory)
            told.board, told.board_bytes = board.memory.identity, board.memory.size_bytes
        return told
