"""The boards of groups whose members are all on this host (docs/wire.md section 14).

A generation has a board if all its members share memory with the broker and can use one. It is made before they are
told of the generation, and ended as soon as the next one begins. The broker reads nothing in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from broker.collectives.effects import Changed, Effect
from broker.collectives.group import Group
from broker.ids import Generation, GroupNumber, SessionId
from broker.limits import BOARDS_MAX
from broker.protocol.bodies import Membership
from broker.protocol.sharing import Memory
from broker.state.records import SessionRecord


class Board(Protocol):
    """Memory in which the members of a generation carry out its operations."""

    @property
    def memory(self) -> Memory:
        """Where it lies."""
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
        self._maker = maker
        self._generations: dict[GroupNumber, Generation] = {}
        self._boards: dict[GroupNumber, Board] = {}
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

    def follow(self, group: Group, effects: Iterable[Effect]) -> None:
        """Something has happened in a group: if that has begun a generation, its board is made."""
        if self._generations.get(group.number, 0) == group.generation:
            return
        lost = not group.ranks or any(isinstance(each, Changed) and each.lost_ranks for each in effects)
        self.dissolved(group.number, draining=not lost)
        self._generations[group.number] = group.generation
        members = group.sessions
        if self._maker is None or not members or len(self._boards) >= BOARDS_MAX:
            return
        if all((group.number, session) in self._able for session in members):
            board = self._maker.make(len(members))
            if board is not None:
                self._boards[group.number] = board

    def dissolved(self, number: GroupNumber, *, draining: bool = False) -> None:
        """A group's generation has ended."""
        self._generations.pop(number, None)
        board = self._boards.pop(number, None)
        if board is not None:
            board.end(draining=draining)

    def has(self, number: GroupNumber) -> bool:
        """Whether a group's generation has a board."""
        return number in self._boards

    def give(self, group: Group, session: SessionRecord, told: Membership) -> Membership:
        """What a member is told of a generation, with its board if there is one."""
        board = self._boards.get(group.number)
        passage = session.session.passage
        if board is not None and passage is not None and told.generation == group.generation:
            passage.give(board.memory)
            told.board, told.board_bytes = board.memory.identity, board.memory.size_bytes
        return told
