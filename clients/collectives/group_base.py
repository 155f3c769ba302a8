"""What a group of either kind of client tells of its membership."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

from clients.collectives.compression import Compression
from clients.collectives.membership import Place
from clients.connection.checks import stays_here


class GroupBase:
    """One rank's membership of a group.

    Attributes:
        name: the group's name.
        world_size: how many ranks the group was made for; `ranks` are those present.
    """

    def __init__(self, place: Place, compression: Compression) -> None:
        self._place = place
        self._compression = compression
        self.name = place.name
        self.world_size = place.member.world_size

    @property
    def rank(self) -> int:
        """This member's rank, the same for as long as it is a member."""
        return self._place.member.rank

    @property
    def generation(self) -> int:
        """The version of the membership, from 1 upwards."""
        return self._place.member.generation

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that are present, ascending."""
        return tuple(self._place.member.ranks)

    @property
    def position(self) -> int:
        """The index of this rank among the present ones: which shard of data or parameters is its own."""
        return self._place.member.position

    @property
    def schedule(self) -> str:
        """How operations go at the moment: `shm`, `star`, or `ring` or `halving`, with auto the quicker for each."""
        return self._place.used_schedule

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise stays_here(self, "Connect in the other process, and join the group there")

    def __repr__(self) -> str:
        return f"<Group {self.name!r} rank={self.rank} of {self.ranks} generation={self.generation}>"
